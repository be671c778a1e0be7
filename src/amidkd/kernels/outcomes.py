"""Teacher and student as log-probabilities over the same outcomes: the shared vocabulary, or K tokens and a tail."""

import torch
from torch import Tensor

from amidkd.kernels.heads import Rows, head_logits, take
from amidkd.maths.coarse import coarse_grain, log_complement, with_tail
from amidkd.signals import Signal, TopK

__all__ = ["pad_outcome", "shared_ids", "student_log_probs", "teacher_log_probs"]


def shared_ids(teacher: Signal, rows: Rows, *, vocab_size: int, device: torch.device) -> Tensor | None:
    """The ids that a truncated teacher speaks of [n, K], or None.

    Ids beyond the shared vocabulary all become ``vocab_size``: the outcome that ``pad_outcome`` adds and that
    neither side can produce.
    """
    if not isinstance(teacher, TopK):
        return None
    return take(teacher.ids, rows).to(device=device, dtype=torch.int64).clamp(max=vocab_size)


def pad_outcome(logits: Tensor) -> Tensor:
    """Add one outcome that cannot occur: [n, V] → [n, V + 1]."""
    return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)


def teacher_log_probs(
    teacher: Signal, rows: Rows, *, vocab_size: int, temperature: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A teacher's log-probabilities of some tokens, without gradient.

    Args:
        teacher: Any signal.
        rows: Which tokens.
        vocab_size: V.
        temperature: Divides the logits; 1 for `TopK`.
        dtype: Of the result.
        device: Of the result.

    Returns:
        [n, V]; of a `TopK` [n, K + 1], its tail last, without mass where K covers the vocabulary.
    """
    with torch.no_grad():
        if not isinstance(teacher, TopK):
            logits = head_logits(teacher, rows, vocab_size=vocab_size, dtype=dtype).to(device)
            return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
        log_probs = take(teacher.log_probs, rows).to(device=device, dtype=dtype)
        if teacher.log_tail is None:
            tail = log_complement(log_probs)
        else:
            tail = take(teacher.log_tail, rows).to(device=device, dtype=dtype)
        beyond = (take(teacher.ids, rows) >= vocab_size).to(device)
        whole = (~beyond).sum(-1) >= vocab_size
        return with_tail(log_probs.masked_fill(beyond, -torch.inf), tail.masked_fill(whole, -torch.inf))


def student_log_probs(logits: Tensor, ids: Tensor | None, *, temperature: float) -> Tensor:
    """The student's log-probabilities over the teacher's outcomes; differentiable.

    Args:
        logits: [n, V].
        ids: What ``shared_ids`` gave.
        temperature: Divides the logits.

    Returns:
        [n, V], or [n, K + 1].
    """
    if ids is not None:
        return coarse_grain(pad_outcome(logits), ids).log_softmax(-1)
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
