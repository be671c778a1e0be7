"""Value and gradient in one walk over the tokens, a few at a time; plain torch, any device.

Each chunk's logits are made, compared and turned into the gradient by the closed form (``maths.gradient``), then
forgotten. Beside the inputs and their gradient there is never more than ``memory_mb``. The backward pass only
scales what the forward pass found.
"""

from typing import Any

import torch
from torch import Tensor

from amidkd.kernels.heads import Rows, StudentGradient, head_logits, take
from amidkd.kernels.metrics import Metrics, measure
from amidkd.kernels.outcomes import pad_outcome, student_log_probs
from amidkd.kernels.task import Task, cross_entropy
from amidkd.maths.gradient import value_and_gradient
from amidkd.signals import TopK

__all__ = ["attach", "chunk_tokens", "chunked"]

BUFFERS = 28
"""How many [n, V] tensors of the computing dtype live at once in a chunk: the worst of the catalogue, measured."""

BUFFERS_TEACHER = 3
"""How many more for each teacher after the first."""

BUFFERS_NARROW = 8
"""How many where nothing but the student's logits is V wide: truncated teachers, or cross-entropy alone."""


def chunk_tokens(*, memory_mb: float, vocab_size: int, dtype: torch.dtype, teachers: int = 1) -> int:
    """How many tokens fit in a chunk; at least one.

    Args:
        memory_mb: Room for a chunk's temporaries, MiB.
        vocab_size: V.
        dtype: Of the arithmetic.
        teachers: How many teachers speak of all V.
    """
    buffers = BUFFERS + BUFFERS_TEACHER * (teachers - 1) if teachers else BUFFERS_NARROW
    return max(1, int(memory_mb * 2**20 // (buffers * vocab_size * dtype.itemsize)))


@torch.no_grad()
def chunked(
    task: Task, metrics: Metrics | None, *, memory_mb: float, weights: Tensor | None, gradient: bool
) -> tuple[Tensor, StudentGradient | None]:
    """The loss of each token that counts, and the gradient of their weighted sum.

    Args:
        task: The call.
        metrics: Where to add what is measured on the way, or None.
        memory_mb: Room for a chunk's temporaries, MiB.
        weights: Factor [N] of each token in the sum, or None for 1.
        gradient: Whether one is wanted.

    Returns:
        Values [n] and the collected gradient of Σ weight·value, None where none is wanted.
    """
    values = torch.empty(task.count, dtype=task.dtype, device=task.device)
    collected = StudentGradient(task.student, vocab_size=task.vocab_size, dtype=task.dtype) if gradient else None
    wide = sum(not isinstance(teacher, TopK) for teacher in task.teachers)
    step = chunk_tokens(memory_mb=memory_mb, vocab_size=task.vocab_size, dtype=task.dtype, teachers=wide)
    for start in range(0, task.count, step):
        stop = min(start + step, task.count)
        rows = task.some(start, stop)
        logits = head_logits(task.student, rows, vocab_size=task.vocab_size, dtype=task.dtype)
        values[start:stop], slope = _soft(task, rows, logits, metrics, gradient=gradient)
        if task.labels is not None:
            hard, slope = _hard(task, rows, logits, slope, metrics, gradient=gradient)
            values[start:stop] += hard
        if collected is not None and slope is not None:
            if weights is not None:
                slope.mul_(take(weights, rows).to(slope.dtype).unsqueeze(-1))
            collected.add(rows, logits, slope)
    return values, collected


def _soft(
    task: Task, rows: Rows, logits: Tensor, metrics: Metrics | None, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The divergence of a chunk [n], and its gradient with respect to the logits [n, V], fresh."""
    if not task.teachers:
        return logits.new_zeros(logits.shape[:1]), None
    objective, ids, log_p = task.objective_of(rows), task.ids(rows), task.log_p(rows)
    log_q = student_log_probs(logits, ids, temperature=task.temperature)
    if metrics is not None:
        metrics.add(measure(objective, teacher=log_p, student=log_q))
    if gradient:
        values, slope = value_and_gradient(objective, teacher=log_p, student=log_q)
    else:
        values, slope = objective(teacher=log_p, student=log_q), None
    if metrics is not None:
        metrics.add({"divergence": values})
    if slope is None:
        return values, None
    del log_p, log_q
    if ids is not None:
        return values, _refine(logits, ids, slope)
    return values, slope if task.temperature == 1.0 else slope.div_(task.temperature)


def _refine(logits: Tensor, ids: Tensor, slope: Tensor) -> Tensor:
    """From the gradient over K tokens and a tail [n, K + 1] to the gradient over V: the tail's is shared by softmax."""
    rest = pad_outcome(logits).scatter_(-1, ids, -torch.inf)
    tail = rest.logsumexp(-1, keepdim=True)
    shared = rest.sub_(tail.masked_fill_(tail == -torch.inf, 0.0)).exp_().mul_(slope[:, -1:])
    return shared.scatter_add_(-1, ids, slope[:, :-1])[:, : logits.shape[1]]


def _hard(
    task: Task, rows: Rows, logits: Tensor, slope: Tensor | None, metrics: Metrics | None, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The weighted cross-entropy of a chunk [n], and the gradient with its own added."""
    found = task.labels_of(rows)
    assert found is not None
    labels, given = found
    nll = cross_entropy(logits, labels, given)
    if metrics is not None:
        metrics.add({"cross_entropy": nll}, given=given)
    values = task.cross_entropy_weight * nll
    if not gradient:
        return values, None
    factor = (task.cross_entropy_weight * given.to(task.dtype)).unsqueeze(-1)
    hard = logits.softmax(-1).mul_(factor)
    hard.scatter_add_(-1, labels.unsqueeze(-1), -factor)
    return values, hard if slope is None else slope.add_(hard)


class _Attach(torch.autograd.Function):
    """A sum whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], *tensors: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the chunked backend has no second derivative (create_graph=True); use backend='naive'")
        if ctx.gradients is None:
            raise RuntimeError(
                "the chunked backend computes the gradient once, with the value: a second backward through the same "
                "loss has none left. Call distillation_loss again, or use backend='naive'"
            )
        gradients, ctx.gradients = ctx.gradients, None
        found: list[Tensor | None] = []
        while gradients:
            gradient, dtype = gradients.pop(0), ctx.dtypes[len(found)]
            found.append(None if gradient is None else gradient.mul_(grad_output).to(dtype))
        return (None, None, *found)


def attach(total: Tensor, collected: StudentGradient, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """Give a sum the gradient that was found with it.

    Args:
        total: Σ weight·value, scalar.
        collected: Its gradient, as ``chunked`` found it.
        tensors: The student's tensors, in the order of ``StudentGradient.finish``.
    """
    return _Attach.apply(total, collected.finish(), *tensors)
