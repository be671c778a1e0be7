"""Laws of the objectives over divergence × pair × α × λ × mask: value, autograd and closed form.

The whole grid is marked ``full``; by default a seeded sample runs in which every two settings meet.
"""

import math

import pytest
import torch
from catalogue import (
    ALPHAS,
    ASSISTANT,
    BETWEEN,
    DIVERGENCES,
    LAMS,
    MASKS,
    SEEDED,
    alphas,
    error,
    lams,
    logits,
    masked,
    objective,
    pairs,
)
from covering import covering, grid
from hypothesis import given
from hypothesis import strategies as st

from amidkd.maths import Objective, divergence, log_mixture, value_and_gradient

INF = torch.inf
AXES = {
    "name": DIVERGENCES,
    "between": BETWEEN,
    "alpha": ALPHAS,
    "lam": LAMS,
    "mask": list(MASKS),
    "form": ["numbers", "per token", "two teachers"],
    "detach": [False, True],
}
SAMPLE = covering(AXES, seed=3)


def build(case, dtype):
    """The objective of a case, its teacher and its student's logits."""
    dead_p, dead_q = MASKS[case["mask"]]
    alpha, lam, weights = case["alpha"], case["lam"], None
    if case["form"] == "per token":
        alpha, lam = torch.full((6,), alpha, dtype=torch.float64), torch.full((6,), lam, dtype=torch.float64)
    log_p = masked(logits(0), dead_p).to(dtype).log_softmax(-1)
    teacher = log_p
    if case["form"] == "two teachers":
        teacher, weights = [log_p, masked(logits(2), dead_p).to(dtype).log_softmax(-1)], [0.3, 0.7]
    detach = case["detach"] and case["between"] in ASSISTANT and "student" in case["between"]
    made_ = objective(case["name"], case["between"], alpha, lam, detach_assistant=detach, teacher_weights=weights)
    return made_, teacher, masked(logits(1), dead_q).to(dtype)


def truly_infinite(case):
    """From the supports alone: does the pair's first or second meet a mass that the formula cannot bear?"""
    has = {seat: torch.ones(9, dtype=torch.bool) for seat in ("teacher", "student")}
    has["teacher"][list(MASKS[case["mask"]][0])] = False
    has["student"][list(MASKS[case["mask"]][1])] = False
    p, q, lam = has["teacher"], has["student"], case["lam"]
    inner = p | q if case["alpha"] < 1 else p & q
    has["assistant"] = {0.0: q, 1.0: p}.get(lam, inner)
    a, b = (has[seat] for seat in case["between"].split("||"))
    name, parameters = case["name"]
    first, second = {
        "kl": (1, 0),
        "reverse_kl": (0, 1),
        "jeffreys": (0, 0),
        "chi_squared": (2, -1),
        "amari": ((1 - parameters.get("order", 0)) / 2, (1 + parameters.get("order", 0)) / 2),
        "alpha_beta": (parameters.get("a"), parameters.get("b")),
    }.get(name, (1, 1))
    only_a, only_b = bool((a & ~b).any()), bool((b & ~a).any())
    total = first + second
    return (
        not a.any()
        or not b.any()
        or (only_a and not (second > 0 and total > 0))
        or (only_b and not (first > 0 and total > 0))
    )


def rounding(value):
    """Of slopes of the value's size that cancel: all of them do where the supports are disjoint."""
    return 8 * torch.finfo(value.dtype).eps * value.detach().double().clamp(max=1e300)


def close(found, wanted, limit, value):
    """Whether each row's error is within the limit in the metric of the golden file, and the rounding of its value."""
    size = wanted.abs().amax(-1).clamp(min=1e-3)
    return ((found - wanted).abs().amax(-1) <= limit * size + rounding(value)).all()


def check(case):
    made_, teacher, z = build(case, torch.float64)
    z.requires_grad_()
    value = made_(teacher=teacher, student=z.log_softmax(-1))
    (slope,) = torch.autograd.grad(value.sum(), z)
    closed, closed_slope = value_and_gradient(made_, teacher=teacher, student=z.detach().log_softmax(-1))
    assert value.shape == (6,)
    assert torch.equal(value.detach(), closed)
    assert (value >= 0).all()
    for gradient in (slope, closed_slope):
        assert gradient.isfinite().all()
        assert (gradient[z.detach() == -INF] == 0).all()
        assert (gradient.sum(-1).abs() <= 1e-12 * (1.0 + gradient.abs().amax(-1)) + rounding(value)).all()
    infinite = value == INF
    # a finite value may pass what the dtype can hold, where α is just below 1 and λ^{1/s} meets a negative power
    overflows = abs(case["alpha"] - 1) < 1e-3 and case["mask"] not in ("none", "both")
    assert infinite.all() or not truly_infinite(case)
    assert overflows or truly_infinite(case) or not infinite.any()
    assert (slope[infinite] == 0).all()
    assert (closed_slope[infinite] == 0).all()
    assert close(closed_slope, slope, 1e-8, value)
    _check_float32(case, value.detach(), slope)


def _check_float32(case, value, slope):
    made_, teacher, z = build(case, torch.float32)
    z.requires_grad_()
    found = made_(teacher=teacher, student=z.log_softmax(-1))
    (gradient,) = torch.autograd.grad(found.sum(), z)
    closed, closed_gradient = value_and_gradient(made_, teacher=teacher, student=z.detach().log_softmax(-1))
    assert found.dtype == closed.dtype == torch.float32
    assert (found >= 0).all()
    assert gradient.isfinite().all()
    assert closed_gradient.isfinite().all()
    held = (value <= 200) & (slope.abs().amax(-1) <= 50)
    assert (found[value == INF] == INF).all()
    if held.any():
        assert error(found[held].detach(), value[held]) < 2e-4
        assert error(closed[held], value[held]) < 2e-4
        kinked = case["name"][0] == "total_variation" and case["lam"] in (0.0, 1.0)
        for found_slope in (gradient, closed_gradient):
            assert kinked or close(found_slope[held], slope[held], 1e-3, found.detach()[held])


@pytest.mark.parametrize("case", SAMPLE, ids=range(len(SAMPLE)))
def test_wherever_two_settings_meet(case):
    check(case)


@pytest.mark.full
@pytest.mark.parametrize("name", DIVERGENCES, ids=str)
@pytest.mark.parametrize("between", BETWEEN)
def test_over_the_whole_grid(name, between):
    for case in grid(AXES | {"name": [name], "between": [between], "detach": [False]}):
        check(case)


def test_the_sample_meets_every_two_settings():
    assert len(SAMPLE) < 400
    for first in AXES:
        for second in AXES:
            if first < second:
                met = {(str(row[first]), str(row[second])) for row in SAMPLE}
                assert len(met) == len(AXES[first]) * len(AXES[second])


EVERY = pytest.mark.parametrize("name", DIVERGENCES, ids=str)


@EVERY
@pytest.mark.parametrize("between", BETWEEN)
@SEEDED
@given(data=st.data(), alpha=alphas, lam=lams)
def test_zero_exactly_where_teacher_and_student_are_equal(name, between, data, alpha, lam):
    log_p, log_q = data.draw(pairs())
    made_ = objective(name, between, alpha, lam)
    assert (made_(teacher=log_p, student=log_p) == 0).all()
    differ = divergence("total_variation")(log_p, log_q) > 1e-6
    assert (made_(teacher=log_p, student=log_q)[differ] > 0).all()


@EVERY
@SEEDED
@given(data=st.data(), alpha=alphas, lam=lams)
def test_exchanging_teacher_and_student_and_lambda_exchanges_the_seats(name, data, alpha, lam):
    log_p, log_q = data.draw(pairs())
    for between, other in (("teacher||assistant", "student||assistant"), ("assistant||teacher", "assistant||student")):
        found = objective(name, between, alpha, lam)(teacher=log_p, student=log_q)
        wanted = objective(name, other, alpha, 1 - lam)(teacher=log_q, student=log_p)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-12)


@EVERY
@pytest.mark.parametrize("between", ASSISTANT)
def test_continuous_through_alpha_one_in_float32(name, between):
    log_p, log_q = (logits(seed, spread=1.0).float().log_softmax(-1) for seed in (0, 1))
    at = value_and_gradient(objective(name, between, 1.0, 0.3), teacher=log_p, student=log_q)
    for step in (1e-3, 1e-5, 1e-7):
        for alpha in (1 - step, 1 + step):
            near = value_and_gradient(objective(name, between, alpha, 0.3), teacher=log_p, student=log_q)
            for found, wanted in zip(near, at, strict=True):
                assert error(found, wanted) < 20 * step + 1e-5


@EVERY
@pytest.mark.parametrize("between", BETWEEN)
def test_gradcheck_through_the_softmax(name, between):
    if name[0] == "total_variation":
        z = torch.tensor([[1.0, 0.0, -1.0, 2.0]], dtype=torch.float64)
        other = torch.tensor([[0.0, 0.5, 1.0, -2.0]], dtype=torch.float64)
    else:
        z, other = logits(0, rows=2, vocabulary=4), logits(1, rows=2, vocabulary=4)
    for alpha in (-3.0, 1.0, 0.5):
        made_ = objective(name, between, alpha, 0.3)
        assert torch.autograd.gradcheck(
            lambda zt, zs: made_(teacher=zt.log_softmax(-1), student=zs.log_softmax(-1)),  # noqa: B023
            (z.requires_grad_(), other.requires_grad_()),
            atol=1e-6,
            rtol=1e-5,
        )


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
def test_kl_gradients_are_those_of_the_design(alpha, lam):
    """The formulas that kernels use, written out for KL: the closed form has nothing else in it."""
    log_p, log_q = (logits(seed).log_softmax(-1) for seed in (0, 1))
    log_r = log_mixture(log_p, log_q, alpha=alpha, lam=lam)
    p, q, r = log_p.exp(), log_q.exp(), log_r.exp()
    s = (1 - alpha) / 2
    omega = torch.sigmoid(math.log((1 - lam) / lam) - s * (log_p - log_q))
    kl_rp = (r * (log_r - log_p)).sum(-1, keepdim=True)
    kl_rq = (r * (log_r - log_q)).sum(-1, keepdim=True)
    wanted = {
        "teacher||assistant": omega * (r - p),
        "assistant||teacher": omega * r * (log_r - log_p - kl_rp),
        "student||assistant": q * (log_q - log_r) + omega * (r - q),
        "assistant||student": (q - r) + omega * r * (log_r - log_q - kl_rq),
    }
    for between, slope in wanted.items():
        projected = slope - q * slope.sum(-1, keepdim=True)
        found = value_and_gradient(Objective(between=between, alpha=alpha, lam=lam), teacher=log_p, student=log_q)[1]
        assert error(found, projected) < 1e-11
