"""Row kernels where numbers end: masked tokens, nearly equal sides, logits of any size."""

import pytest
import torch
from blocks import (
    ALPHAS,
    BETWEEN,
    GRID,
    LIMIT,
    NAMES,
    OUT_OF_RANGE,
    block_of,
    gradient_error,
    kernels,
    made,
    randn,
    skewed,
    value_error,
    wanted_of,
)

MASKS = {
    "teacher": ((1, 4), ()),
    "student": ((), (1, 4)),
    "both": ((1, 4), (1, 4)),
    "overlapping": ((1, 4), (4, 6)),
    "disjoint": (range(5), range(5, 13)),
    "one left": (range(12), range(12)),
}
"""Tokens of −inf in teacher and student; V = 13."""


@kernels
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("between", BETWEEN)
def test_masked_vocabulary(kernel, between, mask):
    """The value on what lives, or +inf where it is infinite (or passes the range of float32); never NaN."""
    count = len(GRID["alpha"])
    student, teacher = randn(count, 13), randn(count, 13, seed=1)
    for logits, dead in zip((teacher, student), MASKS[mask], strict=True):
        logits[:, list(dead)] = -torch.inf
    for name in NAMES:
        objective = skewed(name, between, **GRID)
        block = block_of(objective, student, teacher)
        kernel(block)
        wanted = wanted_of(objective, student, teacher)
        beyond = wanted.values > OUT_OF_RANGE
        assert (block.values[beyond] > OUT_OF_RANGE).all(), name
        assert (value_error(block.values, wanted.values) <= LIMIT)[~beyond].all(), name
        assert (gradient_error(block, wanted) <= LIMIT)[~beyond].all(), name
        assert (block.gradient[wanted.values == torch.inf] == 0).all(), name
        assert block.gradient.isfinite().all(), name
        assert (block.gradient[:, list(MASKS[mask][1])] == 0).all(), name
        assert not block.metrics[:5].isnan().any(), name


@kernels
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_a_side_without_any_token_is_infinite_with_gradient_zero(kernel, between, dead):
    student, teacher = randn(2, 9), randn(2, 9, seed=1)
    for side, logits in (("student", student), ("teacher", teacher)):
        if dead in (side, "both"):
            logits[0] = -torch.inf
    for alpha in (-3.0, 1.0, 3.0):
        block = block_of(skewed("kl", between, alpha=alpha), student, teacher)
        kernel(block)
        alone = block_of(skewed("kl", between, alpha=alpha), student[1:], teacher[1:])
        kernel(alone)
        # below α = 1 the assistant is what is left of the other side
        if dead == "both" or dead in between or alpha >= 1:
            assert block.values[0] == torch.inf
        assert not block.values.isnan().any()
        assert (block.gradient[0] == 0).all()
        assert torch.allclose(block.values[1:], alone.values, rtol=1e-6)
        assert torch.allclose(block.gradient[1:], alone.gradient, rtol=1e-5, atol=1e-7)


@kernels
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "squared_hellinger", "jensen_shannon", "jeffreys", "chi_squared"])
def test_near_convergence_no_digit_is_lost(kernel, between, name):
    """Student = teacher + 1e-4 noise: the divergence is near 1e-9, where a plain float32 sum has lost it."""
    lams = [0.0, 0.1, 0.5, 0.9]
    settings = {
        "alpha": torch.tensor(ALPHAS, dtype=torch.float64).repeat_interleave(len(lams)),
        "lam": torch.tensor(lams, dtype=torch.float64).repeat(len(ALPHAS)),
    }
    if between in ("student||assistant", "assistant||student"):
        settings["lam"] = 1 - settings["lam"]
    teacher = randn(len(settings["lam"]), 400, seed=1)
    student = teacher + randn(*teacher.shape, scale=1e-4)
    block = block_of(skewed(name, between, **settings), student, teacher)
    kernel(block)
    wanted = wanted_of(skewed(name, between, **settings), student, teacher)
    assert (block.values >= 0).all()
    assert ((block.values - wanted.values).abs() <= 1e-2 * wanted.values).all()
    size = wanted.gradient.abs().amax(-1)
    assert ((block.gradient - wanted.gradient).abs().amax(-1) <= 1e-2 * size).all()


@kernels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("between", BETWEEN)
def test_extreme_logits_stay_finite(kernel, name, between):
    """Logits of standard deviation 10,000. A power divergence with a negative exponent passes the range of float32."""
    count = len(GRID["alpha"])
    student, teacher = randn(count, 100, scale=1e4), randn(count, 100, seed=1, scale=1e4)
    objective = skewed(name, between, **GRID)
    block = block_of(objective, student, teacher)
    kernel(block)
    assert not block.values.isnan().any()
    assert (block.values >= 0).all()
    assert block.gradient.isfinite().all()
    assert block.metrics[: 7 if "assistant" in between else 5].isfinite().all()
    exponents = vars(made(name))
    if min(exponents.get("a", 0.0), exponents.get("b", 0.0)) >= 0:
        assert block.values.isfinite().all()


@kernels
@pytest.mark.parametrize("far", [-1e3, -1e4, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("between", BETWEEN)
def test_large_negative_logits_that_stand_for_minus_infinity(kernel, between, far):
    """What stands beside them keeps its digits, and where one side alone has them the value is that of the numbers."""
    for sides in ("student", "teacher", "both"):
        student, teacher = randn(6, 29), randn(6, 29, seed=1)
        for side, logits in (("student", student), ("teacher", teacher)):
            if sides in (side, "both"):
                logits[1:, 20:] = far
        for name in ("kl", "jensen_shannon"):
            objective = skewed(name, between)
            block = block_of(objective, student, teacher)
            kernel(block)
            wanted = wanted_of(objective, student, teacher)
            beyond = wanted.values > OUT_OF_RANGE
            assert (block.values[beyond] > OUT_OF_RANGE).all()
            assert (value_error(block.values, wanted.values) <= LIMIT)[~beyond].all(), (sides, name)
            assert (gradient_error(block, wanted) <= LIMIT)[~beyond].all(), (sides, name)
            assert not block.gradient.isnan().any()
            assert not block.metrics[:5].isnan().any()


@kernels
def test_the_same_logits_cost_nothing(kernel):
    student = randn(len(GRID["alpha"]), 77)
    for name in NAMES:
        for between in BETWEEN:
            block = block_of(skewed(name, between, **GRID), student, student.clone())
            kernel(block)
            assert (block.values == 0).all()
            assert block.gradient.abs().max() <= 1e-6


@kernels
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("size", [5, 64, 700])
def test_a_logit_that_is_no_number_is_seen_in_the_value(kernel, side, bad, size):
    """A diverged model must stop the run: no comparison hides NaN, and it does not reach its neighbours."""
    for alpha in (-3.0, 0.5, 1.0, 3.0):
        for name in ("kl", "reverse_kl", "jensen_shannon", "squared_hellinger"):
            student, teacher = randn(3, size), randn(3, size, seed=1)
            (student if side == "student" else teacher)[1, size - 2] = bad
            block = block_of(skewed(name, "teacher||assistant", alpha=alpha, lam=0.3), student, teacher)
            kernel(block)
            assert block.values.isfinite().tolist() == [True, False, True], (name, alpha)
            assert block.values[1].isnan() or bad == torch.inf
            assert block.gradient[[0, 2]].isfinite().all()
