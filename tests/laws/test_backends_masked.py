"""Tokens of −inf on one side or both, and numbers at the ends of float32: the right value, or +inf, and never NaN."""

import pytest
import torch
from backends import cases, error, randn
from catalogue import ALPHAS, BETWEEN

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.signals import Hidden, Logits, TopK

N, V = 8, 29
NAMES = ["kl", "jensen_shannon", "squared_hellinger", "jeffreys"]
MASKS = {"none": ((), ()), "teacher": ((1,), ()), "student": ((), (1,)), "both": ((1, 4), (1, 4)), "each": ((1,), (4,))}
EVERY = [{"between": between, "mask": mask} for between in BETWEEN for mask in MASKS]


def masked(case):
    """Student and teacher in float64; row n is masked where it says, in row 0 all but one token, row 1 not at all."""
    student, teacher = randn(N, V, seed=0, scale=2.0), randn(N, V, seed=1, scale=2.0)
    for logits, dead in zip((teacher, student), MASKS[case["mask"]], strict=True):
        for k in dead:
            logits[2:, 6 * k : 6 * k + 5] = -torch.inf
        if dead:
            logits[0, torch.arange(V) != 7] = -torch.inf
    return student, teacher


def compute(objective, student, teacher, backend, dtype, **rest):
    """Values [N] and the gradient of their sum."""
    z = student.to(dtype).requires_grad_()
    call = {"student": Logits(z), "teacher": teacher, "objective": objective, "backend": backend, "memory_mb": 0.005}
    values = distillation_loss(**call, **rest, reduction="none").loss
    (gradient,) = torch.autograd.grad(distillation_loss(**call, **rest, reduction="sum").loss, z)
    return values.detach(), gradient


@pytest.mark.parametrize(("backend", "case"), cases({"chunked": EVERY, "fused": EVERY}))
def test_masked_vocabulary(backend, case):
    student, teacher = masked(case)
    for name in NAMES:
        for alpha in (-5.0, -1.0, 0.0, 0.99999, 1.0, 3.0):
            objective = Objective(divergence=divergence(name), between=case["between"], alpha=alpha, lam=0.3)
            wanted, slope = compute(objective, student, Logits(teacher), "naive", torch.float64)
            found, gradient = compute(objective, student, Logits(teacher.float()), backend, torch.float32)
            finite = wanted.isfinite()
            assert torch.equal(found == torch.inf, ~finite)
            assert error(found[finite], wanted[finite]) <= 1e-4
            assert gradient.isfinite().all()
            assert error(gradient[finite], slope[finite]) <= 1e-4
            assert (gradient[~finite] == 0).all()
            assert (gradient[student == -torch.inf] == 0).all()


@pytest.mark.parametrize(("backend", "case"), cases({"chunked": EVERY, "fused": EVERY}))
def test_masked_vocabulary_of_a_truncated_teacher(backend, case):
    """The student's tail may be empty or hold all that it has; the teacher's likewise."""
    student, teacher = masked(case)
    log_p = teacher.log_softmax(-1)
    ids = teacher.topk(6, dim=-1).indices
    tail = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    found = {}
    for chosen, dtype in (("naive", torch.float64), (backend, torch.float32)):
        signal = TopK(ids, log_p.gather(-1, ids).float().to(dtype), tail.float().to(dtype))
        objective = Objective(between=case["between"], alpha=-3.0, lam=0.3)
        found[chosen] = compute(objective, student, signal, chosen, dtype)
    (values, gradient), (wanted, slope) = found[backend], found["naive"]
    finite = wanted.isfinite()
    assert torch.equal(values == torch.inf, ~finite)
    assert error(values[finite], wanted[finite]) <= 1e-4
    assert error(gradient[finite], slope[finite]) <= 1e-4
    assert gradient.isfinite().all()


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("mask", MASKS)
def test_masked_vocabulary_of_several_teachers(between, mask):
    student, teacher = masked({"mask": mask})
    other = randn(N, V, seed=7, scale=2.0)
    other[2:6, 20:] = -torch.inf
    for alpha in (-5.0, -1.0, 0.99999, 1.0, 3.0):
        for lam in (0.0, 0.3, 1.0):
            objective = Objective(between=between, alpha=alpha, lam=lam, teacher_weights=[0.2, 0.8])
            found = {}
            for backend, dtype in (("naive", torch.float64), ("chunked", torch.float32)):
                signals = [Logits(teacher.to(dtype)), Logits(other.to(dtype))]
                found[backend] = compute(objective, student, signals, backend, dtype)
            (values, gradient), (wanted, slope) = found["chunked"], found["naive"]
            finite = wanted.isfinite()
            assert torch.equal(values == torch.inf, ~finite)
            assert error(values[finite], wanted[finite]) <= 1e-4
            assert gradient.isfinite().all()
            assert error(gradient[finite], slope[finite]) <= 1e-4


ENDS = [{"between": between} for between in BETWEEN]


@pytest.mark.parametrize(("backend", "case"), cases({"chunked": ENDS, "fused": ENDS}))
def test_logits_of_any_spread_give_finite_losses(backend, case):
    for name in NAMES:
        for spread in (30.0, 1e4):
            student, teacher = randn(N, 300, seed=0, scale=spread), randn(N, 300, seed=1, scale=spread)
            for alpha in ALPHAS:
                objective = Objective(divergence=divergence(name), between=case["between"], alpha=alpha, lam=0.3)
                values, gradient = compute(objective, student, Logits(teacher.float()), backend, torch.float32)
                assert values.isfinite().all()
                assert (values >= 0).all()
                assert gradient.isfinite().all()


@pytest.mark.parametrize(("backend", "case"), cases({"chunked": ENDS, "fused": ENDS}))
def test_close_to_the_teacher_no_digit_is_lost(backend, case):
    teacher = randn(N, 300, seed=1, scale=2.0)
    student = (teacher + randn(N, 300, seed=0, scale=1e-4)).float().double()
    for name in NAMES:
        for alpha in ALPHAS:
            objective = Objective(divergence=divergence(name), between=case["between"], alpha=alpha, lam=0.3)
            wanted, slope = compute(objective, student, Logits(teacher), "naive", torch.float64)
            values, gradient = compute(objective, student, Logits(teacher.float()), backend, torch.float32)
            assert (values >= 0).all()
            assert ((values - wanted).abs() <= 1e-2 * wanted).all()
            assert (gradient - slope).abs().max() <= 1e-2 * slope.abs().max()


@pytest.mark.parametrize(("backend", "case"), cases({"chunked": ENDS, "fused": ENDS}))
def test_a_token_whose_logits_are_all_masked_is_infinite_alone(backend, case):
    student, teacher = randn(4, 9, seed=0), randn(4, 9, seed=1)
    student[1], teacher[2] = -torch.inf, -torch.inf
    rest = torch.tensor([0, 3])
    for alpha in (-3.0, 1.0):
        objective = Objective(between=case["between"], alpha=alpha, lam=0.3)
        values, gradient = compute(objective, student, Logits(teacher.float()), backend, torch.float32)
        wanted, slope = compute(objective, student[rest], Logits(teacher[rest].float()), backend, torch.float32)
        assert not values.isnan().any()
        assert (values >= 0).all()
        assert (gradient[1] == 0).all()
        torch.testing.assert_close(values[rest], wanted)
        torch.testing.assert_close(gradient[rest], slope)


HEADS = [{"between": "teacher||assistant"}]


@pytest.mark.parametrize(("backend", "case"), cases({"chunked": HEADS, "fused": HEADS}))
def test_a_head_with_masked_tokens(backend, case):
    """A bias of −inf masks a token for every state, as constrained decoding does; its row of the head gets nothing."""
    h, weight, bias = randn(N, 5, seed=0), randn(V, 5, seed=1), randn(V, seed=2)
    bias[[3, 11]] = -torch.inf
    teacher = randn(N, V, seed=3, scale=2.0)
    teacher[:, [3, 20]] = -torch.inf
    found = []
    for chosen, dtype in (("naive", torch.float64), (backend, torch.float32)):
        parts = [part.to(dtype).requires_grad_() for part in (h, weight, bias)]
        out = distillation_loss(
            student=Hidden(*parts),
            teacher=Logits(teacher.to(dtype)),
            objective=Objective(between=case["between"], alpha=-1.0, lam=0.3),
            backend=chosen,
            memory_mb=0.005,
        )
        found.append([out.loss.detach(), *torch.autograd.grad(out.loss, parts)])
    for wanted, part in zip(*found, strict=True):
        assert part.isfinite().all()
        assert error(part, wanted) <= 1e-4
    assert (found[1][2][[3, 11]] == 0).all()
