"""Chunked and naive are two routes to one number: over the whole catalogue, value and gradient agree.

The reference is ``naive`` (autograd through full logits) in float64. The metric is
max|error| / max(max|reference|, 1e-3): 1e-9 in float64; 1e-4 in float32 where |value| ≤ 200 and |gradient| ≤ 50.
"""

import itertools

import pytest
import torch
from covering import covering, grid

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.maths.coarse import truncate
from amidkd.signals import Hidden, Logits, TopK

N, V, H, K = 6, 29, 5, 7
PER_TOKEN_ALPHA = torch.tensor([-5.0, -1.0, 0.99999, 1.0, 1.00001, 3.0], dtype=torch.float64)
PER_TOKEN_LAM = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0, 0.3], dtype=torch.float64)

SETTINGS = {
    "divergence": [
        ("kl", {}),
        ("reverse_kl", {}),
        ("jeffreys", {}),
        ("jensen_shannon", {}),
        ("total_variation", {}),
        ("squared_hellinger", {}),
        ("chi_squared", {}),
        ("amari", {"order": 0.4}),
        ("amari", {"order": -1.0}),
        ("alpha_beta", {"a": 0.2, "b": 0.7}),
        ("alpha_beta", {"a": 0.5, "b": -0.5}),
    ],
    "between": [
        "teacher||student",
        "student||teacher",
        "teacher||assistant",
        "assistant||teacher",
        "student||assistant",
        "assistant||student",
    ],
    "alpha": [-5.0, -3.0, -1.0, -0.5, 0.0, 0.99999, 1.0, 1.00001, 3.0, 5.0, PER_TOKEN_ALPHA],
    "lam": [0.0, 0.1, 0.5, 1.0, PER_TOKEN_LAM],
}
CALLS = {
    "student": ["logits", "hidden"],
    "teacher": ["logits", "hidden", "topk", "two"],
    "dtype": [torch.float64, torch.float32],
    "temperature": [1.0, 1.8],
    "mask": [None, "mask", "mask and weights"],
    "labels": [False, True],
    "detach": [False, True],
    "reduction": ["mean", "sum"],
    "denominator": [None, 11],
}


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signals(case):
    """Student tensors and teacher tensors in float64, with signals built from a given dtype."""
    student = [2 * randn(N, V, seed=0)] if case["student"] == "logits" else [randn(N, H, seed=0), randn(V, H, seed=1)]
    wide = 2 * randn(N, V + 4, seed=2)
    if case["teacher"] == "hidden":
        return student, [[randn(N, 2 * H, seed=3), randn(V + 4, 2 * H, seed=4) / 2**0.5]]
    if case["teacher"] == "topk":
        return student, [list(truncate(wide[:, :V].log_softmax(-1), K))]
    return student, [[wide], [2 * randn(N, V, seed=5)]] if case["teacher"] == "two" else [[wide]]


def run(case, backend, dtype):
    form = {"logits": Logits, "hidden": Hidden, "topk": TopK, "two": Logits}
    student, teachers = signals(case)
    # both dtypes start from numbers that float32 holds
    student = [part.float().to(dtype).requires_grad_() for part in student]
    teachers = [[p.float().to(dtype) if p.is_floating_point() else p for p in parts] for parts in teachers]
    made = [form[case["teacher"]](*parts) for parts in teachers]
    temperature = 1.0 if case["teacher"] == "topk" else case["temperature"]
    name, parameters = case["divergence"]
    detach = case["detach"] and "student" in case["between"] and "assistant" in case["between"]
    objective = Objective(
        divergence=divergence(name, **parameters),
        between=case["between"],
        alpha=case["alpha"],
        lam=case["lam"],
        detach_assistant=detach,
        teacher_weights=[0.3, 0.7] if case["teacher"] == "two" else None,
    )
    labels = torch.tensor([1, 5, -100, 0, 28, 3])
    out = distillation_loss(
        student=form[case["student"]](*student),
        teacher=made if case["teacher"] == "two" else made[0],
        objective=objective,
        mask=None if case["mask"] is None else torch.tensor([1, 1, 0, 1, 1, 1]),
        weights=torch.tensor([1.0, 0.3, 2.0, 0.0, 1.5, -0.5]) if case["mask"] == "mask and weights" else None,
        temperature=temperature,
        labels=labels if case["labels"] else None,
        cross_entropy_weight=0.3 if case["labels"] else 0.0,
        reduction=case["reduction"],
        denominator=case["denominator"] if case["reduction"] == "mean" else None,
        backend=backend,
        memory_mb=0.01,
    )
    gradients = torch.autograd.grad(out.loss, student)
    return [out.loss.detach(), *gradients]


def error(found, wanted):
    return ((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)).item()


def check(case):
    wanted = run(case, "naive", torch.float64)
    assert all(part.isfinite().all() for part in wanted)
    if case["dtype"] == torch.float32 and (wanted[0].abs() > 200 or max(g.abs().max() for g in wanted[1:]) > 50):
        return
    limit = 1e-9 if case["dtype"] == torch.float64 else 1e-4
    for found, reference in zip(run(case, "chunked", case["dtype"]), wanted, strict=True):
        assert found.dtype == case["dtype"]
        assert error(found, reference) < limit


SAMPLE = covering(SETTINGS | CALLS, seed=1)


@pytest.mark.parametrize("case", SAMPLE, ids=range(len(SAMPLE)))
def test_chunked_is_naive_wherever_two_settings_meet(case):
    check(case)


@pytest.mark.full
@pytest.mark.parametrize("name", SETTINGS["divergence"], ids=str)
@pytest.mark.parametrize("between", SETTINGS["between"])
def test_chunked_is_naive_over_the_whole_grid(name, between):
    calls = itertools.cycle(covering(CALLS, seed=2))
    for settings in grid(SETTINGS | {"divergence": [name], "between": [between]}):
        check(settings | next(calls))


SIDES = {"none": (), "teacher": (1,), "student": (0,), "both": (0, 1)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", SIDES)
@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("between", SETTINGS["between"])
def test_masked_vocabulary_gives_the_same_on_both(between, alpha, masked, dtype):
    """Tokens of −inf in teacher, student or both: the same value, finite or +inf, and never NaN."""
    found = {}
    for backend, precision in (("naive", torch.float64), ("chunked", dtype)):
        z = [2 * randn(N, V, seed=seed).float().to(precision) for seed in (0, 1)]
        for side in SIDES[masked]:
            z[side][:, 3:9] = -torch.inf
        z[0].requires_grad_()
        for name in ("kl", "jensen_shannon", "squared_hellinger"):
            objective = Objective(divergence=divergence(name), between=between, alpha=alpha, lam=0.3)
            call = {"student": Logits(z[0]), "teacher": Logits(z[1]), "objective": objective}
            out = distillation_loss(**call, backend=backend, memory_mb=0.01)
            (gradient,) = torch.autograd.grad(out.loss, z[0])
            assert not out.loss.isnan()
            found[name, backend] = out.loss.detach(), gradient
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    for name in ("kl", "jensen_shannon", "squared_hellinger"):
        (loss, gradient), (wanted, slope) = found[name, "chunked"], found[name, "naive"]
        if wanted == torch.inf:
            assert loss == torch.inf
        else:
            assert error(loss, wanted) < limit
            assert error(gradient, slope) < limit


def test_the_sample_is_small_and_meets_every_pair():
    axes = SETTINGS | CALLS
    assert len(SAMPLE) < 250
    for first in axes:
        for second in axes:
            met = {(id(row[first]), id(row[second])) for row in SAMPLE}
            every = {(id(a), id(b)) for a in axes[first] for b in axes[second] if first != second or a is b}
            assert every <= met
