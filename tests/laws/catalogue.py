"""What the laws run over: every divergence, every pair, α, λ and masks; and random distributions to try them on."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

from amidkd.maths import Objective, divergence

__all__ = [
    "ALPHAS",
    "ASSISTANT",
    "BETWEEN",
    "DIVERGENCES",
    "F_DIVERGENCES",
    "LAMS",
    "MASKS",
    "SEEDED",
    "alphas",
    "error",
    "lams",
    "logits",
    "made",
    "masked",
    "objective",
    "pairs",
]

F_DIVERGENCES = [
    ("kl", {}),
    ("reverse_kl", {}),
    ("jeffreys", {}),
    ("jensen_shannon", {}),
    ("total_variation", {}),
    ("squared_hellinger", {}),
    ("chi_squared", {}),
    ("amari", {"order": -1.0}),
    ("amari", {"order": 0.4}),
    ("amari", {"order": 1.0}),
    ("amari", {"order": -2.0}),
]
DIVERGENCES = [
    *F_DIVERGENCES,
    ("alpha_beta", {"a": 0.2, "b": 0.7}),
    ("alpha_beta", {"a": 0.7, "b": 0.0}),
    ("alpha_beta", {"a": 0.0, "b": 0.7}),
    ("alpha_beta", {"a": 0.5, "b": -0.5}),
    ("alpha_beta", {"a": 0.0, "b": 0.0}),
    ("alpha_beta", {"a": -0.3, "b": 0.9}),
]
ASSISTANT = ["teacher||assistant", "assistant||teacher", "student||assistant", "assistant||student"]
BETWEEN = ["teacher||student", "student||teacher", *ASSISTANT]
ALPHAS = [-5.0, -3.0, -1.0, -0.5, 0.0, 0.5, 0.99999, 1.0, 1.00001, 1.5, 3.0, 5.0]
LAMS = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0]
MASKS = {
    "none": ((), ()),
    "teacher": ((1, 4), ()),
    "student": ((), (1, 4)),
    "both": ((1, 4), (1, 4)),
    "overlapping": ((1, 4), (4, 6)),
    "disjoint": ((0, 1, 2, 3), (4, 5, 6, 7, 8)),
}
"""Tokens of −inf in the teacher's and in the student's logits; V = 9."""

SEEDED = settings(derandomize=True, database=None, deadline=None, max_examples=25)


def logits(seed, *, rows=6, vocabulary=9, spread=2.0):
    """Random logits [rows, vocabulary] in float64 that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * spread).double()


def masked(values, tokens):
    """The same with −inf at some tokens."""
    out = values.clone()
    out[..., list(tokens)] = -torch.inf
    return out


def made(name):
    """A divergence from its entry above."""
    return divergence(name[0], **name[1])


def objective(name, between, alpha=-0.5, lam=0.1, **rest):
    """An objective from entries above."""
    return Objective(divergence=made(name), between=between, alpha=alpha, lam=lam, **rest)


def error(found, wanted):
    """max|error| / max(max|reference|, 1e-3) over everything."""
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-3)).item()


alphas = st.one_of(st.sampled_from(ALPHAS), st.floats(-5.0, 5.0), st.floats(-1e-3, 1e-3).map(lambda x: 1.0 + x))
lams = st.floats(0.01, 0.99)


@st.composite
def pairs(draw, dtype=torch.float64):
    """log p and log q [4, V] on full support, from nearly equal to far apart."""
    seed = draw(st.integers(0, 2**31))
    vocabulary = draw(st.integers(2, 40))
    spread = draw(st.sampled_from([0.3, 2.0, 5.0]))
    apart = draw(st.sampled_from([1e-3, 0.1, 1.0, 3.0]))
    z = logits(seed, rows=4, vocabulary=vocabulary, spread=spread)
    other = z + logits(seed + 1, rows=4, vocabulary=vocabulary, spread=apart)
    return z.to(dtype).log_softmax(-1), other.to(dtype).log_softmax(-1)
