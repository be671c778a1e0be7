"""Blocks for the row kernels, and what the mathematics says of them in float64."""

import os
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch

from amidkd.kernels.block import MEASURED, Block
from amidkd.kernels.cpu_rows import INSTRUCTIONS, cpu_missing, cpu_rows, instructions
from amidkd.kernels.metrics import measure
from amidkd.kernels.terms import terms_of
from amidkd.kernels.torch_rows import torch_rows
from amidkd.maths import Objective, WeightedSum, divergence
from amidkd.maths.gradient import value_and_gradient

__all__ = [
    "ALPHAS",
    "BETWEEN",
    "GRID",
    "KERNELS",
    "LIMIT",
    "NAMES",
    "OBJECTIVES",
    "OUT_OF_RANGE",
    "Wanted",
    "block_of",
    "gradient_error",
    "kernels",
    "made",
    "randn",
    "skewed",
    "value_error",
    "wanted_of",
]


ALPHAS = [-5.0, -3.0, -1.0, 0.0, 0.5, 0.99999, 1.0, 1.00001, 1.5, 3.0, 5.0]
LAMS = [0.0, 1e-6, 0.01, 0.1, 0.5, 0.99, 1.0]
NAMES = {
    "kl": {},
    "reverse_kl": {},
    "jeffreys": {},
    "total_variation": {},
    "jensen_shannon": {},
    "squared_hellinger": {},
    "chi_squared": {},
    "amari 0.4": {"order": 0.4},
    "amari -2": {"order": -2.0},
    "alpha_beta .2 .7": {"a": 0.2, "b": 0.7},
    "alpha_beta .7 0": {"a": 0.7, "b": 0.0},
    "alpha_beta .5 -.5": {"a": 0.5, "b": -0.5},
    "alpha_beta 0 0": {"a": 0.0, "b": 0.0},
    "alpha_beta -.3 .9": {"a": -0.3, "b": 0.9},
}
BETWEEN = [
    "teacher||student",
    "student||teacher",
    "teacher||assistant",
    "assistant||teacher",
    "student||assistant",
    "assistant||student",
]
LIMIT = 1e-4


def made(name):
    return divergence(name.split()[0], **NAMES[name])


def skewed(name, between="teacher||assistant", alpha=-3.0, lam=0.3, **rest):
    return Objective(divergence=made(name), between=between, alpha=alpha, lam=lam, **rest)


OBJECTIVES = {
    "kl": skewed("kl"),
    "jensen_shannon": skewed("jensen_shannon", "assistant||student", alpha=1.0),
    "power": skewed("alpha_beta .2 .7", "student||assistant", alpha=0.5),
    "gkd": 0.3 * skewed("kl", alpha=-1.0) + 0.7 * skewed("kl", "student||assistant", alpha=-1.0),
    "three": (
        0.5 * skewed("total_variation", "student||teacher")
        + 0.2 * skewed("squared_hellinger", "assistant||teacher", alpha=3.0)
        + 2.0 * skewed("jeffreys", "assistant||student", detach_assistant=True)
    ),
}
"""The order in "three" puts the first term with an assistant second."""

GRID = {
    "alpha": torch.tensor(ALPHAS, dtype=torch.float64).repeat_interleave(len(LAMS)),
    "lam": torch.tensor(LAMS, dtype=torch.float64).repeat(len(ALPHAS)),
}
"""One token for each α and λ."""
OUT_OF_RANGE = 1e29
"""A power divergence with a negative exponent is infinite from here on in float32."""


def _forced(name):
    """The C++ kernel with one of its instruction sets."""

    def kernel(block):
        with patch.dict(os.environ, {"AMIDKD_INSTRUCTIONS": name}):
            assert instructions() == name
            cpu_rows(block)

    return kernel


def _missing(name):
    missing = cpu_missing()
    if missing is None and INSTRUCTIONS.index(name) > INSTRUCTIONS.index(instructions()):
        return f"this processor has no {name}"
    return missing


KERNELS = {"torch": (torch_rows, None)} | {name: (_forced(name), _missing(name)) for name in INSTRUCTIONS}
"""Each row kernel that runs on the CPU, the C++ one once for each instruction set; and why it is not there, or None."""

kernels = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(kernel, id=name, marks=[] if missing is None else pytest.mark.skip(reason=missing))
        for name, (kernel, missing) in KERNELS.items()
    ],
)


def randn(*shape, seed=0, scale=3.0, dtype=torch.float32):
    """Random numbers that float32 holds exactly."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def block_of(objective, student, teacher, *, wants_metrics=True, **rest):
    """A block of all rows and columns with every output wanted and full of NaN; ``rest`` replaces its fields."""
    fields = {
        "count": student.shape[0],
        "vocab_size": student.shape[1],
        "student": student,
        "student_rows": None,
        "teacher": teacher,
        "teacher_rows": None,
        "terms": () if objective is None else terms_of(objective),
        "temperature": 1.0,
        "labels": None,
        "cross_entropy_weight": 0.0,
        "scale": None,
        "assistant": None if objective is None else _assistant(objective),
        "gradient": torch.full_like(student, torch.nan, memory_format=torch.contiguous_format),
    } | rest
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    nan = torch.full((3 + len(MEASURED), fields["count"]), torch.nan, dtype=wide)
    values, divergences, cross_entropies = nan[:3].unbind()
    outputs = {"values": values, "divergences": divergences, "cross_entropies": cross_entropies}
    metrics = nan[3:] if wants_metrics and teacher is not None else None
    return Block(**(outputs | {"metrics": metrics} | fields))


def _assistant(objective):
    """The first term with an assistant, among those that count."""
    terms = [t for w, t in objective.terms if w] if isinstance(objective, WeightedSum) else [objective]
    return next((k for k, term in enumerate(terms) if "assistant" in term.between), None)


@dataclass(frozen=True)
class Wanted:
    """What `Block` says of its outputs, in float64.

    Args:
        values: [n].
        divergences: [n].
        cross_entropies: [n].
        metrics: [7, n], NaN where not written.
        gradient: [n, V].
    """

    values: torch.Tensor
    divergences: torch.Tensor
    cross_entropies: torch.Tensor
    metrics: torch.Tensor
    gradient: torch.Tensor


def wanted_of(objective, student, teacher, *, temperature=1.0, labels=None, cross_entropy_weight=0.0, scale=None):
    """The outputs by `amidkd.maths`, from the very numbers that the kernel sees.

    Args:
        objective: Settings per token are those of these tokens.
        student: Logits [n, V], the columns that count.
        teacher: Logits [n, V].
        temperature: As of `Block`.
        labels: As of `Block`.
        cross_entropy_weight: As of `Block`.
        scale: As of `Block`.
    """
    z, zt = student.double(), None if teacher is None else teacher.double()
    divergences, gradient = z.new_zeros(z.shape[0]), torch.zeros_like(z)
    metrics = z.new_full((len(MEASURED), z.shape[0]), torch.nan)
    if objective is not None:
        sides = {"teacher": (zt / temperature).log_softmax(-1), "student": (z / temperature).log_softmax(-1)}
        divergences, gradient = value_and_gradient(objective, **sides)
        gradient = gradient / temperature
        found = measure(objective, **sides)
        for k, name in enumerate(MEASURED):
            metrics[k] = found.get(name, torch.nan)
    cross_entropies = torch.zeros_like(divergences)
    if labels is not None:
        given = (labels >= 0).double()
        some = labels.clamp(min=0).unsqueeze(-1)
        cross_entropies = given * -z.log_softmax(-1).gather(-1, some).squeeze(-1)
        hard = z.softmax(-1).scatter_add(-1, some, -torch.ones_like(z[:, :1]))
        gradient = gradient + cross_entropy_weight * given.unsqueeze(-1) * hard
    return Wanted(
        values=divergences + cross_entropy_weight * cross_entropies,
        divergences=divergences,
        cross_entropies=cross_entropies,
        metrics=metrics,
        gradient=gradient if scale is None else gradient * scale.unsqueeze(-1).double(),
    )


def value_error(found, wanted):
    """|error| / max(reference, 1e-2) of each value [n]; what is smaller has a test of its own, near convergence."""
    return (found - wanted).abs() / wanted.abs().clamp(min=1e-2)


def gradient_error(block, wanted):
    """max|error| / max(max|reference|, 1e-2, D/100) of each token [n].

    The gradient is a difference of parts as large as D and as probabilities: that of a single token, where they may
    cancel, cannot be surer than their rounding.
    """
    size = torch.maximum(wanted.gradient.abs().amax(-1), wanted.values / 100).clamp(min=1e-2)
    return (block.gradient - wanted.gradient).abs().amax(-1) / size
