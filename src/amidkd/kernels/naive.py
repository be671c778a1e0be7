"""The oracle: full logits, and autograd for the gradient. What every other backend is compared with."""

from torch import Tensor

from amidkd.kernels.heads import head_logits
from amidkd.kernels.metrics import Metrics, measure
from amidkd.kernels.outcomes import student_log_probs
from amidkd.kernels.task import Task, cross_entropy

__all__ = ["naive"]


def naive(task: Task, metrics: Metrics | None) -> Tensor:
    """The loss of each token that counts [n], differentiable in the student's tensors.

    Args:
        task: The call.
        metrics: Where to add what is measured on the way, or None.
    """
    rows = task.some(0, task.count)
    logits = head_logits(task.student, rows, vocab_size=task.vocab_size, dtype=task.dtype)
    values = logits.new_zeros(task.count)
    if task.teachers:
        log_p, objective = task.log_p(rows), task.objective_of(rows)
        log_q = student_log_probs(logits, task.ids(rows), temperature=task.temperature)
        values = objective(teacher=log_p, student=log_q)
        if metrics is not None:
            metrics.add(measure(objective, teacher=log_p, student=log_q.detach()) | {"divergence": values.detach()})
    labels = task.labels_of(rows)
    if labels is not None:
        hard = cross_entropy(logits, *labels)
        values = values + task.cross_entropy_weight * hard
        if metrics is not None:
            metrics.add({"cross_entropy": hard.detach()}, given=labels[1])
    return values
