"""Several teachers as one: the flat mixture is that of the teachers' mixture and the student, with another λ."""

import pytest
import torch

from amidkd.kernels.several import merge, merged_terms, shared_mixture
from amidkd.kernels.terms import terms_of
from amidkd.maths import Objective
from amidkd.maths.mixture import mix

N, V = 5, 13


def log_probs(seed):
    return (3 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(-1)


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.3, 1.0 - 1e-9, 1.0, 3.0, torch.tensor([-3.0, 1.0, 0.99999, 1.5, 0.0])])
@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3], [0.0, 0.6, 0.4], [0.333333, 0.333333, 0.333334]])
@pytest.mark.parametrize("dead", [None, 0, 2])
def test_two_steps_are_the_flat_mixture(alpha, weights, dead):
    teachers, student = [log_probs(seed) for seed in range(3)], log_probs(3)
    if dead is not None:
        teachers[dead][:, 4] = -torch.inf
    lam = torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0], dtype=torch.float64)
    objective = Objective(alpha=alpha, lam=lam, teacher_weights=weights)
    merged, level = merge(teachers, objective)
    (term,) = merged_terms(terms_of(objective), level)
    found = mix([merged, student], [term.lam, 1.0 - term.lam], alpha).distribution.plain()
    parts = [lam * weight for weight in weights or [1 / 3] * 3]
    wanted = mix([*teachers, student], [*parts, 1.0 - lam], alpha).distribution.plain()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_teachers_that_never_meet_leave_lambda_alone():
    teachers = [log_probs(0), log_probs(1)]
    teachers[0][0, :6] = teachers[1][0, 6:] = -torch.inf
    merged, level = merge(teachers, Objective(alpha=3.0))
    assert (merged[0] == -torch.inf).all()
    assert level[0] == 0
    assert level.isfinite().all()


def test_what_is_shared_by_all_terms():
    one, other = Objective(alpha=0.5), Objective(alpha=torch.tensor(0.5), lam=0.3)
    assert shared_mixture(one + other, 2) is one
    assert shared_mixture(one + Objective(alpha=0.4), 2) is None
    assert shared_mixture(one + Objective(alpha=0.5, teacher_weights=[0.5, 0.5]), 2) is one
    assert shared_mixture(one + Objective(alpha=0.5, teacher_weights=[0.4, 0.6]), 2) is None
    each = torch.zeros(3)
    assert shared_mixture(Objective(alpha=each) + Objective(alpha=each, lam=0.2), 2) is not None
    assert shared_mixture(Objective(alpha=each) + Objective(alpha=each.clone()), 2) is None
