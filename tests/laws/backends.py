"""One call of ``distillation_loss`` from a few settings, on any backend in any dtype; and how far two results differ.

The numbers that a call starts from are held by every dtype that it may be made in, so that backends differ by their own
arithmetic alone. Logits are random, or bfloat16 numbers; states and heads of `Hidden` in bfloat16 are small whole
numbers and quarters, whose products bfloat16 holds too.
"""

import pytest
import torch

from amidkd.kernels import available, distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.maths.coarse import truncate
from amidkd.signals import Hidden, Logits, TopK

__all__ = ["LIMIT", "MISSING", "Result", "cases", "error", "objective_of", "randn", "run", "signals", "tolerances"]

MISSING = {backend: reason for backend, reason in available().items() if backend != "naive"}
"""Backends that are compared with ``naive``, and why this machine has not got one, or None."""

H, K = 5, 7
LIMIT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-4}
"""Of max|error| / max(max|reference|, 1e-3), before a result is rounded to bfloat16."""


def cases(of_backend):
    """Parameters (backend, case) of a test, skipped with the reason where a backend is not there.

    Args:
        of_backend: Cases by backend.
    """
    return [
        pytest.param(backend, case, id=f"{backend}-{k}", marks=[] if reason is None else pytest.mark.skip(reason))
        for backend, reason in MISSING.items()
        for k, case in enumerate(of_backend[backend])
    ]


def randn(*shape, seed, scale=1.0, dtype=torch.float64):
    """Random numbers that float32 holds; with ``dtype`` bfloat16, that bfloat16 holds."""
    found = (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).double()
    return found.to(dtype).double()


def _whole(*shape, seed, most):
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).double()


def signals(case):
    """The tensors of the student, and of each teacher with the form it has, in float64."""
    (N, V), spread, half = case["shape"], case["spread"], case["dtype"] == torch.bfloat16
    dtype = torch.bfloat16 if half else torch.float32

    def head(width, seed, columns):
        if half:
            return [_whole(N, width, seed=seed, most=2), _whole(columns, width, seed=seed + 1, most=6) / 4]
        weight = randn(columns, width, seed=seed + 1, scale=spread / width**0.5)
        return [randn(N, width, seed=seed), weight]

    student = [randn(N, V, seed=0, scale=spread, dtype=dtype)] if case["student"] == "logits" else head(H, 10, V)
    wide = randn(N, V + 4, seed=2, scale=spread, dtype=dtype)
    other = randn(N, V, seed=5, scale=spread, dtype=dtype)
    ids, *masses = truncate(wide[:, :V].log_softmax(-1), min(K, V))
    kept = [ids, *(part.to(dtype).double() for part in masses)]
    again = [ids, *(part.to(dtype).double() for part in _gathered(other, ids))]
    teachers = {
        "logits": [(Logits, [wide])],
        "hidden": [(Hidden, head(2 * H, 20, V + 4))],
        "topk": [(TopK, kept)],
        "two": [(Logits, [wide]), (Hidden, head(2 * H, 20, V))],
        "two topk": [(TopK, kept), (TopK, again)],
    }
    return student, teachers[case["teacher"]]


def _gathered(logits, ids):
    """Log-probabilities of the ids and the log-mass of the rest."""
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(-1, ids)
    return chosen, log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)


def objective_of(case):
    """The objective; α and λ that are lists are repeated until every token has one."""
    name, parameters = case["divergence"]

    def each(setting):
        if not isinstance(setting, list):
            return setting
        count = case["shape"][0]
        return torch.tensor(setting, dtype=torch.float64).repeat(count)[:count]

    with_student = "student" in case["between"] and "assistant" in case["between"]
    one = Objective(
        divergence=divergence(name, **parameters),
        between=case["between"],
        alpha=each(case["alpha"]),
        lam=each(case["lam"]),
        detach_assistant=case["detach"] and with_student,
        teacher_weights=[0.3, 0.7] if case["teacher"].startswith("two") else None,
    )
    if not case["sum"]:
        return one
    return 0.6 * one + 0.4 * Objective(
        between="student||assistant", alpha=-1.0, lam=0.2, teacher_weights=one.teacher_weights
    )


class Result:
    """What a call gave.

    Args:
        loss: Scalar, or [N].
        gradients: With respect to the student's tensors; empty with ``reduction="none"``.
        metrics: By name.
        backend: What ran.
    """

    def __init__(self, loss, gradients, metrics, backend):
        self.loss, self.gradients, self.metrics, self.backend = loss, gradients, metrics, backend


def run(case, backend, dtype, *, student=None, reduction=None):
    """One call.

    Args:
        case: Settings by name, all of those in the laws' ``CALLS`` and ``SETTINGS``.
        backend: Which.
        dtype: Of the signals.
        student: Tensors to take the student's place.
        reduction: In place of the case's.
    """
    own, teachers = signals(case)
    student = own if student is None else student
    student = [part.to(dtype).requires_grad_() for part in student]
    made = [form(*(part.to(dtype) if part.is_floating_point() else part for part in parts)) for form, parts in teachers]
    N, V = case["shape"]
    truncated = isinstance(made[0], TopK)
    reduction = case["reduction"] if reduction is None else reduction
    some = torch.arange(N)
    out = distillation_loss(
        student=(Logits if len(student) == 1 else Hidden)(*student),
        teacher=made if case["teacher"].startswith("two") else made[0],
        objective=objective_of(case),
        mask=None if case["mask"] is None else (some % 3 != 2).long(),
        weights=torch.tensor([1.0, 0.3, 2.0, 0.0, 1.5, 0.5])[some % 6] if case["mask"] == "mask and weights" else None,
        temperature=1.0 if truncated else case["temperature"],
        labels=torch.where(some % 4 == 2, -100, (5 * some) % V) if case["labels"] else None,
        cross_entropy_weight=0.3 if case["labels"] else 0.0,
        reduction=reduction,
        denominator=case["denominator"] if reduction == "mean" else None,
        backend=backend,
        memory_mb=case["memory_mb"],
        metrics=case["metrics"],
    )
    gradients = [] if reduction == "none" else torch.autograd.grad(out.loss, student)
    return Result(out.loss.detach(), list(gradients), out.metrics, out.backend)


def error(found, wanted, least=1e-3):
    """max|error| / max(max|reference|, ``least``) over everything; 0 of nothing."""
    if not wanted.numel():
        return 0.0
    return (found.double() - wanted).abs().max().item() / max(wanted.abs().max().item(), least)


def tolerances(case, wanted):
    """The largest error of each gradient, as ``error`` measures it: of that of the logits, g, and what follows of it.

    In bfloat16 it is rounded when it is written, when the one-hot of a label is taken from it, and when the backward
    pass scales it: half a unit in the last place each time. Of `Hidden` it is carried on by the products with W and h,
    rounded too, where errors as large as g's may add up while g itself cancels.
    """
    dtype = case["dtype"]
    unit = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0.0
    if len(wanted) == 1:
        return [LIMIT[dtype] + 3 * unit]
    states, weight = signals(case)[0]
    g = run(case, "naive", torch.float64, student=[states @ weight.T]).gradients[0].abs()
    carried = g @ weight.abs(), g.T @ states.abs()
    return [(LIMIT[dtype] + 4 * unit) * max(1.0, _size(c) / _size(w)) for c, w in zip(carried, wanted, strict=True)]


def _size(values):
    return values.abs().max().clamp(min=1e-3).item() if values.numel() else 1.0
