"""Value and gradient of some tokens for any objective, by `amidkd.maths.gradient`: for a divergence of the user's own.

Also for several teachers whose terms differ in α or in the teachers' weights, so that no one distribution stands for
all of them.
"""

import torch
from torch import Tensor

from amidkd.kernels.heads import Rows
from amidkd.kernels.metrics import Metrics, measure
from amidkd.kernels.outcomes import pad_outcome, student_log_probs
from amidkd.kernels.task import Task, cross_entropy
from amidkd.maths.gradient import value_and_gradient

__all__ = ["BUFFERS", "BUFFERS_NARROW", "BUFFERS_TEACHER", "general"]

BUFFERS = 28
"""How many [n, V] tensors of the computing dtype live at once: the worst of the catalogue, measured."""

BUFFERS_TEACHER = 3
"""How many more for each teacher after the first."""

BUFFERS_NARROW = 8
"""How many where nothing but the student's logits is V wide: truncated teachers."""


def general(
    task: Task, rows: Rows, logits: Tensor, metrics: Metrics | None, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of each of n tokens, and its gradient with respect to their logits.

    Args:
        task: The call.
        rows: Which tokens.
        logits: Their logits [n, V], in the dtype of the arithmetic.
        metrics: Where to add what is measured on the way, or None.
        gradient: Whether one is wanted.

    Returns:
        Values [n], and the gradient [n, V], fresh, or None.
    """
    values, slope = _soft(task, rows, logits, metrics, gradient=gradient)
    found = task.labels_of(rows)
    if found is None:
        return values, slope
    labels, given = found
    nll = cross_entropy(logits, labels, given)
    if metrics is not None:
        metrics.add({"cross_entropy": nll}, given=given)
    if slope is not None:
        factor = (task.cross_entropy_weight * (given & nll.isfinite()).to(task.dtype)).unsqueeze(-1)
        slope.addcmul_(torch.where(factor == 0, 0.0, logits.softmax(-1)), factor)
        slope.scatter_add_(-1, labels.unsqueeze(-1), -factor)
    return values + task.cross_entropy_weight * nll, slope


def _soft(
    task: Task, rows: Rows, logits: Tensor, metrics: Metrics | None, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    objective, ids, log_p = task.objective_of(rows), task.ids(rows), task.log_p(rows)
    log_q = student_log_probs(logits, ids, temperature=task.temperature)
    if metrics is not None:
        metrics.add(measure(objective, teacher=log_p, student=log_q))
    slope = None
    if gradient:
        values, slope = value_and_gradient(objective, teacher=log_p, student=log_q)
    else:
        values = objective(teacher=log_p, student=log_q)
    if metrics is not None:
        metrics.add({"divergence": values})
    if slope is None:
        return values, None
    if ids is not None:
        return values, _refine(logits, ids, slope)
    return values, slope if task.temperature == 1.0 else slope.div_(task.temperature)


def _refine(logits: Tensor, ids: Tensor, slope: Tensor) -> Tensor:
    """From the gradient over K tokens and a tail [n, K + 1] to the gradient over V: the tail's is shared by softmax."""
    rest = pad_outcome(logits).scatter_(-1, ids, -torch.inf)
    tail = rest.logsumexp(-1, keepdim=True)
    shared = rest.sub_(tail.masked_fill_(tail == -torch.inf, 0.0)).exp_().mul_(slope[:, -1:])
    return shared.scatter_add_(-1, ids, slope[:, :-1])[:, : logits.shape[1]]
