"""One call of ``distillation_loss``, checked, and narrowed to the tokens that count."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.kernels.heads import Rows, take
from amidkd.kernels.outcomes import shared_ids, teacher_log_probs
from amidkd.maths.objective import AnyObjective, take_rows
from amidkd.signals import Hidden, Logits, Signal

__all__ = ["IGNORED_LABEL", "Task", "cross_entropy"]

IGNORED_LABEL = -100
"""A label that stands for none, as in transformers and torch."""


@dataclass(frozen=True)
class Task:
    """What a backend needs to know.

    Args:
        student: Its signal, N tokens.
        teachers: Their signals; empty for cross-entropy alone.
        objective: None exactly where ``teachers`` is empty.
        several: Whether the caller gave a list of teachers.
        rows: Indices [n] of the tokens that count: unmasked, with a weight other than 0; None: all N.
        labels: [N], or None where no cross-entropy is wanted.
        cross_entropy_weight: Its factor.
        temperature: Divides the logits of teacher and student in the divergence.
        vocab_size: V.
        dtype: Of all arithmetic over V.
    """

    student: Logits | Hidden
    teachers: tuple[Signal, ...]
    objective: AnyObjective | None
    several: bool
    rows: Tensor | None
    labels: Tensor | None
    cross_entropy_weight: float
    temperature: float
    vocab_size: int
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where the student is, and where all arithmetic is done."""
        return (self.student.logits if isinstance(self.student, Logits) else self.student.states).device

    @property
    def tokens(self) -> int:
        """N."""
        return (self.student.logits if isinstance(self.student, Logits) else self.student.states).shape[0]

    @property
    def count(self) -> int:
        """How many of the N tokens count: n."""
        return self.tokens if self.rows is None else self.rows.shape[0]

    def some(self, start: int, stop: int) -> Rows:
        """The rows of the tokens that count, from the ``start``-th up to the ``stop``-th."""
        return slice(start, stop) if self.rows is None else self.rows[start:stop]

    def ids(self, rows: Rows) -> Tensor | None:
        """The ids that truncated teachers speak of, or None."""
        if not self.teachers:
            return None
        return shared_ids(self.teachers[0], rows, vocab_size=self.vocab_size, device=self.device)

    def log_p(self, rows: Rows) -> Tensor | list[Tensor]:
        """The teacher's log-probabilities, or the list of the teachers'."""
        found = [
            teacher_log_probs(
                teacher,
                rows,
                vocab_size=self.vocab_size,
                temperature=self.temperature,
                dtype=self.dtype,
                device=self.device,
            )
            for teacher in self.teachers
        ]
        return found if self.several else found[0]

    def objective_of(self, rows: Rows) -> AnyObjective:
        """The objective, with α and λ of these tokens."""
        assert self.objective is not None
        return take_rows(self.objective, rows)

    def labels_of(self, rows: Rows) -> tuple[Tensor, Tensor] | None:
        """Labels [n], 0 where there is none, and where there is one [n]; None where no cross-entropy is wanted."""
        if self.labels is None:
            return None
        labels = take(self.labels, rows).to(device=self.device, dtype=torch.int64)
        given = labels != IGNORED_LABEL
        return labels.masked_fill(~given, 0), given


def cross_entropy(logits: Tensor, labels: Tensor, given: Tensor) -> Tensor:
    """log Σ exp z − z_label [n], at temperature 1; 0 where no label is given.

    Args:
        logits: [n, V].
        labels: [n].
        given: [n].
    """
    nll = logits.logsumexp(-1) - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.where(given, nll, 0.0)
