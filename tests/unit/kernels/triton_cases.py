"""The Triton row kernel against the mathematics in float64; run by `test_triton_rows` in triton's interpreter.

Triton's interpreter has to be chosen before triton is loaded, and then holds for the whole process.
"""

import dataclasses

import pytest
import torch
from blocks import BETWEEN, LIMIT, block_of, gradient_error, made, randn, skewed, value_error, wanted_of
from covering import covering

from amidkd.kernels.triton_kernels import INTERPRETED
from amidkd.kernels.triton_rows import triton_missing, triton_rows
from amidkd.maths import Objective

N = 2
EACH_ALPHA, EACH_LAM = [1.0, -3.0], [0.3, 1.0]
AXES = {
    "name": [
        "kl",
        "jeffreys",
        "total_variation",
        "jensen_shannon",
        "squared_hellinger",
        "chi_squared",
        "alpha_beta .2 .7",
        "alpha_beta .5 -.5",
        "alpha_beta 0 0",
    ],
    "between": BETWEEN,
    "alpha": [-5.0, -3.0, -1.0, 0.0, 0.5, 0.99999, 1.0, 1.00001, 1.5, 3.0, 5.0, EACH_ALPHA],
    "lam": [1e-6, 0.01, 0.1, 0.5, 0.99, 0.0, 1.0, EACH_LAM],
    "dtypes": [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)],
    "masked": ["", "teacher", "student", "both"],
    "labels": [False, True],
    "temperature": [1.0, 1.7],
    "vocabulary": [1, 5, 48, 61],
    "detach": [False, True],
    "second": [False, True],
    "rows": ["all", "some", "strided"],
    "over": [False, True],
    "metrics": [False, True],
    "scale": [False, True],
}
CASES = covering(AXES, seed=3)


def test_kernels_are_interpreted():
    assert INTERPRETED
    assert triton_missing() is None


def objective_of(case):
    alpha, lam = (
        torch.tensor(setting, dtype=torch.float64) if isinstance(setting, list) else setting
        for setting in (case["alpha"], case["lam"])
    )
    with_student = "student" in case["between"] and "assistant" in case["between"]
    one = Objective(
        divergence=made(case["name"]),
        between=case["between"],
        alpha=alpha,
        lam=lam,
        detach_assistant=case["detach"] and with_student,
    )
    return 0.6 * one + 0.4 * skewed("kl", "student||assistant", alpha=0.5) if case["second"] else one


def logits(case, dtype, *, seed, dead):
    """[3, V + 7] of which rows 2 and 0 count, in columns below V; all else is NaN, and so is what lies between rows."""
    V = case["vocabulary"]
    storage = torch.full((3, 2 * V + 20), torch.nan, dtype=dtype)
    storage[[2, 0], :V] = randn(N, V, seed=seed, dtype=dtype)
    if dead and V > 4:
        storage[2, [1, 4]] = -torch.inf
    return storage[:, : V + 7]


def placed(case, whole):
    """A side as the case wants it, and its index."""
    if case["rows"] == "some":
        return whole, torch.tensor([2, 0])
    chosen = whole[[2, 0]]
    return (chosen if case["rows"] == "strided" else chosen[:, : case["vocabulary"]].contiguous()), None


def check(case):
    V = case["vocabulary"]
    of_student, of_teacher = case["dtypes"]
    student, index = placed(case, logits(case, of_student, seed=0, dead=case["masked"] in ("student", "both")))
    teacher, of_rows = placed(case, logits(case, of_teacher, seed=1, dead=case["masked"] in ("teacher", "both")))
    extra = {"temperature": case["temperature"]}
    if case["labels"]:
        extra |= {"labels": torch.tensor([-100, V - 1]), "cross_entropy_weight": 0.7}
    if case["scale"]:
        extra["scale"] = torch.tensor([0.3, -2.0])
    objective = objective_of(case)
    rows = slice(None) if index is None else index
    wanted = wanted_of(objective, student[rows, :V].clone(), teacher[rows, :V], **extra)
    gradient = student.clone() if case["over"] else torch.full_like(student, torch.nan)
    before = gradient.clone()
    block = block_of(
        objective,
        gradient if case["over"] else student,
        teacher,
        count=N,
        vocab_size=V,
        student_rows=index,
        teacher_rows=of_rows,
        gradient=gradient,
        wants_metrics=case["metrics"],
        **extra,
    )
    triton_rows(block)
    for name in ("values", "divergences", "cross_entropies"):
        found, right = vars(block)[name], vars(wanted)[name]
        assert ((found == right) | (value_error(found, right) <= LIMIT)).all(), name
    assert (block.values >= 0).all()
    if case["metrics"]:
        written = ~wanted.metrics.isnan()
        assert torch.equal(~block.metrics.isnan(), written)
        assert torch.allclose(block.metrics[written].double(), wanted.metrics[written], rtol=LIMIT, atol=LIMIT / 10)
    found = dataclasses.replace(block, gradient=gradient[rows, :V].double())
    # The interpreter cuts bfloat16 off where a GPU rounds: a whole unit in the last place.
    unit = 0.0 if of_student == torch.float32 else torch.finfo(of_student).eps
    size = wanted.gradient.abs()
    finite = wanted.values != torch.inf
    off = gradient_error(found, wanted) > LIMIT + unit * size.amax(-1) / size.amax(-1).clamp(min=1e-2)
    assert not off[finite].any()
    assert (found.gradient[wanted.divergences == torch.inf] == 0).all() or case["labels"] or case["second"]
    assert found.gradient.isfinite().all()
    outside = torch.ones_like(gradient, dtype=torch.bool)
    outside[rows, :V] = False
    assert torch.equal(gradient[outside].isnan(), before[outside].isnan())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['name']}-{case['between']}")
def test_wherever_two_settings_meet_it_is_the_mathematics(case):
    check(case)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jensen_shannon", "squared_hellinger"])
@pytest.mark.parametrize("between", ["teacher||assistant", "student||assistant"])
def test_near_convergence_no_digit_is_lost(name, between):
    """Student = teacher + 1e-4 noise: D is near 1e-9, where a plain float32 sum has lost it."""
    settings = {"alpha": torch.tensor([-3.0, 0.5, 1.00001]).double(), "lam": torch.tensor([0.1, 0.5, 0.9]).double()}
    teacher = randn(3, 200, seed=1)
    student = teacher + randn(3, 200, scale=1e-4)
    block = block_of(skewed(name, between, **settings), student, teacher, wants_metrics=False)
    triton_rows(block)
    wanted = wanted_of(skewed(name, between, **settings), student, teacher)
    assert ((block.values - wanted.values).abs() <= 1e-2 * wanted.values).all()
    size = wanted.gradient.abs().amax(-1)
    assert ((block.gradient - wanted.gradient).abs().amax(-1) <= 1e-2 * size).all()


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jensen_shannon", "alpha_beta .2 .7"])
def test_far_logits(name):
    """Large logits, of which the first ones do not tell how large the others are."""
    student, teacher = randn(3, 90, scale=300.0), randn(3, 90, seed=1, scale=300.0)
    teacher[1, 70] = 4e3
    student[2, :40] = -torch.inf
    teacher[2, 20:] = -torch.inf
    settings = {"alpha": torch.tensor([3.0, -3.0, 0.5]).double(), "lam": torch.tensor([0.3, 0.5, 0.1]).double()}
    for between in ("teacher||assistant", "student||assistant"):
        objective = skewed(name, between, **settings)
        block = block_of(objective, student, teacher, wants_metrics=False)
        triton_rows(block)
        wanted = wanted_of(objective, student, teacher)
        assert ((block.values == wanted.values) | (value_error(block.values, wanted.values) <= LIMIT)).all()
        assert block.gradient.isfinite().all()


def test_the_lowest_numbers_stand_for_minus_infinity():
    student, teacher = randn(3, 29), randn(3, 29, seed=1)
    student[0, 20:], teacher[1, 20:] = torch.finfo(torch.float32).min, -1e9
    student[2, 20:], teacher[2, 20:] = -1e4, torch.finfo(torch.float32).min
    for name in ("kl", "jensen_shannon"):
        for between in ("teacher||assistant", "student||assistant"):
            block = block_of(skewed(name, between), student, teacher)
            triton_rows(block)
            wanted = wanted_of(skewed(name, between), student, teacher)
            assert (value_error(block.values, wanted.values) <= LIMIT).all()
            assert (gradient_error(block, wanted) <= LIMIT).all()
            assert not block.metrics.isnan().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_logit_that_is_no_number_is_seen_in_the_value(bad):
    for name, alpha in (("kl", -3.0), ("kl", 1.0), ("reverse_kl", 3.0), ("jensen_shannon", 0.5)):
        student, teacher = randn(3, 64), randn(3, 64, seed=1)
        student[0, 62] = teacher[1, 5] = bad
        block = block_of(skewed(name, alpha=alpha), student, teacher, wants_metrics=False)
        triton_rows(block)
        assert block.values.isnan().tolist() == [True, True, False]
        assert block.gradient[2].isfinite().all()


def test_disjoint_and_empty_sides():
    student, teacher = randn(6, 13), randn(6, 13, seed=1)
    student[:3, 5:], teacher[:3, :5] = -torch.inf, -torch.inf
    student[3], teacher[4] = -torch.inf, -torch.inf
    settings = {"alpha": torch.tensor([-3.0, 0.99999, 3.0, -1.0, -1.0, -1.0]).double(), "lam": 0.3}
    for name in ("kl", "jensen_shannon"):
        for between in ("teacher||assistant", "student||assistant"):
            objective = skewed(name, between, **settings)
            block = block_of(objective, student, teacher, wants_metrics=False)
            triton_rows(block)
            wanted = wanted_of(
                skewed(name, between, **(settings | {"alpha": settings["alpha"][:3]})), student[:3], teacher[:3]
            )
            found = block.values[:3]
            assert ((found == wanted.values) | (value_error(found, wanted.values) <= LIMIT)).all()
            assert not block.values.isnan().any()
            assert block.gradient.isfinite().all()
            assert (block.gradient[3:5] == 0).all()


def test_no_rows_and_no_terms():
    triton_rows(block_of(skewed("kl"), randn(0, 5), randn(0, 5, seed=1)))
    extra = {"labels": torch.tensor([4, -1, 2]), "cross_entropy_weight": 0.7}
    block = block_of(None, randn(3, 5), None, **extra)
    triton_rows(block)
    wanted = wanted_of(None, block.student, None, **extra)
    assert (value_error(block.values, wanted.values) <= LIMIT).all()
    assert (block.divergences == 0).all()
    assert (gradient_error(block, wanted) <= LIMIT).all()


def test_the_same_logits_cost_nothing():
    student = randn(3, 33)
    settings = {"alpha": torch.tensor([-3.0, 0.99999, 3.0]).double(), "lam": 0.3}
    for name in ("kl", "total_variation", "squared_hellinger"):
        block = block_of(skewed(name, "assistant||student", **settings), student, student.clone(), wants_metrics=False)
        triton_rows(block)
        assert (block.values == 0).all()
        assert block.gradient.abs().max() <= 1e-6
