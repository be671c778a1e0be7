"""Merging outcomes never increases an f-divergence: the theorem, and where it ends."""

import pytest
import torch

from amidkd.maths import Objective, divergence
from amidkd.maths.coarse import coarse_grain, truncate, with_tail

PAIRS, V, K = 2000, 12, 4
F_DIVERGENCES = [
    ("kl", {}),
    ("reverse_kl", {}),
    ("jeffreys", {}),
    ("jensen_shannon", {}),
    ("total_variation", {}),
    ("squared_hellinger", {}),
    ("chi_squared", {}),
    ("amari", {"order": -3.0}),
    ("amari", {"order": 0.5}),
    ("alpha_beta", {"a": 0.3, "b": 0.7}),
]
WITH_ASSISTANT = ["teacher||assistant", "assistant||teacher", "student||assistant", "assistant||student"]


def log_p(seed, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(PAIRS, V, generator=generator, dtype=torch.float64) * spread).log_softmax(-1)


def full_and_merged(objective):
    p, q = log_p(0), log_p(1)
    ids, log_probs, tail = truncate(p, K)
    merged = objective(teacher=with_tail(log_probs, tail), student=coarse_grain(q, ids))
    return objective(teacher=p, student=q), merged


@pytest.mark.parametrize("name", F_DIVERGENCES, ids=str)
@pytest.mark.parametrize("between", ["teacher||student", "student||teacher"])
def test_an_f_divergence_of_teacher_and_student_never_grows(name, between):
    full, merged = full_and_merged(Objective(divergence=divergence(name[0], **name[1]), between=between))
    assert (merged <= full * (1 + 1e-10) + 1e-12).all()
    assert (merged < 0.999 * full).any()


@pytest.mark.parametrize("name", F_DIVERGENCES, ids=str)
@pytest.mark.parametrize("between", WITH_ASSISTANT)
@pytest.mark.parametrize("lam", [0.1, 0.6])
def test_nor_does_one_with_the_arithmetic_assistant(name, between, lam):
    objective = Objective(divergence=divergence(name[0], **name[1]), between=between, alpha=-1.0, lam=lam)
    full, merged = full_and_merged(objective)
    assert (merged <= full * (1 + 1e-10) + 1e-12).all()


@pytest.mark.parametrize("alpha", [-3.0, 0.5, 1.0, 3.0])
def test_at_another_alpha_it_is_an_approximation_and_no_bound(alpha):
    """The merged mixture is not the mixture of the merged; documentation that called it a bound would be wrong."""
    p, q = log_p(0), log_p(1)
    ids = truncate(p, K)[0]
    objective = Objective(between="assistant||student", alpha=alpha, lam=0.1)
    grown = [
        (o(teacher=coarse_grain(p, ids), student=coarse_grain(q, ids)) > 1.001 * o(teacher=p, student=q)).any()
        for o in (objective, Objective(between="teacher||assistant", alpha=alpha, lam=0.1))
    ]
    assert any(grown)


def test_alpha_beta_with_a_plus_b_other_than_one_can_grow():
    full, merged = full_and_merged(
        Objective(divergence=divergence("alpha_beta", a=1.5, b=0.7), between="teacher||student")
    )
    assert (merged > 1.001 * full).any()


def test_merging_everything_chosen_changes_nothing():
    p, q = log_p(0), log_p(1)
    ids = torch.arange(V).expand(PAIRS, V)
    objective = Objective(alpha=0.5, lam=0.3)
    torch.testing.assert_close(
        objective(teacher=coarse_grain(p, ids), student=coarse_grain(q, ids)), objective(teacher=p, student=q)
    )
