"""What `Block` promises, of every row kernel: called directly, in float32, against the mathematics in float64."""

import dataclasses

import pytest
import torch
from blocks import (
    BETWEEN,
    GRID,
    LIMIT,
    NAMES,
    OBJECTIVES,
    block_of,
    gradient_error,
    kernels,
    randn,
    skewed,
    value_error,
    wanted_of,
)


def check(block, wanted, *, limit=LIMIT):
    """Every output of a block of all rows is the wanted one."""
    for name in ("values", "divergences", "cross_entropies"):
        assert (value_error(vars(block)[name], vars(wanted)[name]) <= limit).all(), name
    if block.metrics is not None:
        written = ~wanted.metrics.isnan()
        assert torch.equal(~block.metrics.isnan(), written)
        assert torch.allclose(block.metrics[written].double(), wanted.metrics[written], rtol=LIMIT, atol=LIMIT / 10)
    if block.gradient is not None:
        assert (gradient_error(block, wanted) <= limit).all()


def surrounded(rows, columns, *, seed, dtype=torch.float32):
    """[9, 21] numbers of which only some count: the others are NaN, and so is what lies between two rows."""
    storage = torch.full((9, 40), torch.nan, dtype=dtype)
    storage[rows, 3 : 3 + columns] = randn(len(rows), columns, seed=seed, dtype=dtype)
    return storage[:, 3:24]


@kernels
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("hard", [False, True])
def test_all_that_is_asked_for_is_written_and_nothing_else(kernel, name, hard):
    rows, teacher_rows = torch.tensor([7, 2, 8, 0, 4]), torch.tensor([1, 6, 3, 8, 5])
    student, teacher = surrounded(rows, 17, seed=0), surrounded(teacher_rows, 17, seed=1)
    labels = torch.tensor([3, -100, 0, 16, -100]) if hard else None
    extra = {"labels": labels, "cross_entropy_weight": 0.4} if hard else {}
    extra |= {"temperature": 1.7, "scale": torch.tensor([0.5, -2.0, 0.0, 1.0, 3.0])}
    before = student.clone(), teacher.clone()
    gradient = torch.full((9, 40), torch.nan)[:, 3:24]
    block = block_of(
        OBJECTIVES[name],
        student,
        teacher,
        count=5,
        vocab_size=17,
        student_rows=rows,
        teacher_rows=teacher_rows,
        gradient=gradient,
        **extra,
    )
    kernel(block)
    wanted = wanted_of(OBJECTIVES[name], student[rows, :17], teacher[teacher_rows, :17], **extra)
    check(dataclasses.replace(block, gradient=gradient[rows, :17]), wanted)
    written = torch.zeros(9, 21, dtype=torch.bool)
    written[rows, :17] = True
    assert torch.equal(~gradient.isnan(), written)
    assert torch.equal(student.isnan(), before[0].isnan())
    assert torch.equal(teacher.isnan(), before[1].isnan())
    assert torch.equal(student[written], before[0][written])


@kernels
def test_what_is_not_asked_for_changes_nothing(kernel):
    student, teacher = randn(5, 17), randn(5, 17, seed=1)
    whole = block_of(OBJECTIVES["gkd"], student, teacher)
    kernel(whole)
    for missing in ("divergences", "cross_entropies", "metrics", "gradient"):
        block = block_of(OBJECTIVES["gkd"], student, teacher, **{missing: None})
        kernel(block)
        for name in {"values", "divergences", "cross_entropies", "metrics", "gradient"} - {missing}:
            assert torch.allclose(vars(block)[name], vars(whole)[name], rtol=1e-6, atol=1e-7), (missing, name)


@kernels
def test_no_rows_and_no_terms(kernel):
    none = block_of(OBJECTIVES["kl"], randn(0, 5), randn(0, 5, seed=1))
    kernel(none)
    some = torch.full((3, 5), torch.nan)
    empty = torch.zeros(0, dtype=torch.int64)
    kernel(block_of(OBJECTIVES["kl"], some, some, count=0, student_rows=empty, teacher_rows=empty))
    extra = {"labels": torch.tensor([4, -1, 2]), "cross_entropy_weight": 0.7}
    alone = block_of(None, randn(3, 5), None, **extra)
    kernel(alone)
    check(alone, wanted_of(None, alone.student, None, **extra))


@kernels
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("indexed", [False, True])
def test_the_gradient_may_be_written_over_the_student(kernel, name, indexed):
    student, teacher = randn(6, 33), randn(6, 33, seed=1)
    extra = {"labels": torch.tensor([0, 32, -100, 7, 1, 2]), "cross_entropy_weight": 0.3}
    if indexed:
        extra |= {"student_rows": torch.tensor([5, 0, 1, 4, 3, 2]), "teacher_rows": torch.arange(6).flip(0)}
    apart = block_of(OBJECTIVES[name], student, teacher, **extra)
    kernel(apart)
    over = student.clone()
    kernel(block_of(OBJECTIVES[name], over, teacher, gradient=over, **extra))
    assert torch.equal(over, apart.gradient)


@kernels
@pytest.mark.parametrize(
    ("of_student", "of_teacher"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
)
def test_student_and_teacher_have_dtypes_and_widths_of_their_own(kernel, of_student, of_teacher):
    student, teacher = randn(7, 67, dtype=of_student), randn(7, 90, seed=1, dtype=of_teacher)
    for objective in OBJECTIVES.values():
        block = block_of(objective, student, teacher, vocab_size=61, temperature=1.3)
        kernel(block)
        wanted = wanted_of(objective, student[:, :61], teacher[:, :61], temperature=1.3)
        check(dataclasses.replace(block, gradient=None), wanted)
        assert block.gradient.dtype == of_student
        # the rounding of the result, half a unit in its last place, and what is asked of float32
        found, rounding = block.gradient[:, :61].double(), torch.finfo(of_student).eps / 2
        bound = wanted.gradient.abs() * rounding + LIMIT * wanted.gradient.abs().amax(-1, keepdim=True).clamp(min=1e-3)
        assert ((found - wanted.gradient).abs() <= bound).all()


@kernels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("between", BETWEEN)
def test_each_alpha_and_lambda_of_a_token(kernel, name, between):
    count = len(GRID["alpha"])
    for vocabulary in (1, 2, 67):
        student, teacher = randn(count, vocabulary), randn(count, vocabulary, seed=1)
        objective = skewed(name, between, **GRID)
        block = block_of(objective, student, teacher)
        kernel(block)
        check(block, wanted_of(objective, student, teacher))
        assert (block.values >= 0).all()


@kernels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("between", BETWEEN)
def test_an_alpha_and_lambda_of_all_are_those_of_each_token(kernel, name, between):
    count = len(GRID["alpha"])
    student, teacher = randn(count, 19), randn(count, 19, seed=1)
    each = block_of(skewed(name, between, **GRID), student, teacher)
    kernel(each)
    for k in range(0, count, 1 if "assistant" in between else count):
        objective = skewed(name, between, alpha=GRID["alpha"][k].item(), lam=GRID["lam"][k].item())
        one = block_of(objective, student[k : k + 1], teacher[k : k + 1])
        kernel(one)
        at = slice(k, k + 1)
        wanted = dataclasses.replace(each, values=each.values[at], gradient=each.gradient[at])
        assert value_error(one.values, wanted.values) <= LIMIT
        assert gradient_error(one, wanted) <= LIMIT


@kernels
def test_an_infinite_term_leaves_the_gradient_of_the_others(kernel):
    student, teacher = randn(4, 12), randn(4, 12, seed=1)
    student[:, 3] = -torch.inf
    infinite, finite = skewed("kl", "teacher||student"), skewed("jensen_shannon", "teacher||student")
    both, alone = block_of(infinite + finite, student, teacher), block_of(finite, student, teacher)
    kernel(both)
    kernel(alone)
    assert (both.values == torch.inf).all()
    assert alone.values.isfinite().all()
    assert torch.allclose(both.gradient, alone.gradient, rtol=1e-6, atol=1e-7)


@kernels
def test_a_wide_vocabulary_and_a_value_for_every_width(kernel):
    for vocabulary in (*range(1, 40), 1031, 4099):
        student, teacher = randn(3, vocabulary), randn(3, vocabulary, seed=1)
        block = block_of(OBJECTIVES["gkd"], student, teacher)
        kernel(block)
        check(block, wanted_of(OBJECTIVES["gkd"], student, teacher))


@kernels
def test_any_number_of_threads_gives_the_same(kernel):
    student, teacher = randn(101, 700), randn(101, 700, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for rows in (1, 2, 101):
                block = block_of(OBJECTIVES["gkd"], student[:rows], teacher[:rows])
                kernel(block)
                found.append(block)
    finally:
        torch.set_num_threads(threads)
    for block in found:
        for name in ("values", "metrics", "gradient"):
            wanted = vars(found[2])[name]
            wanted = wanted[..., : block.count] if name == "metrics" else wanted[: block.count]
            assert torch.allclose(vars(block)[name], wanted, rtol=1e-5, atol=1e-7), name


def test_float64_logits_are_computed_in_float64():
    from amidkd.kernels.torch_rows import torch_rows

    for objective in (*OBJECTIVES.values(), skewed("chi_squared", **GRID)):
        count = len(GRID["alpha"])
        student, teacher = randn(count, 31).double() / 3, randn(count, 31, seed=1).double() / 3
        block = block_of(objective, student, teacher)
        torch_rows(block)
        check(block, wanted_of(objective, student, teacher), limit=1e-9)
