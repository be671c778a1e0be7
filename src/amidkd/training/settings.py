"""What a training step is told, and the two losses that it can have."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from amidkd.config import KernelsConfig
from amidkd.data import Example, Sequences
from amidkd.kernels import LossOutput, distillation_loss
from amidkd.signals import Hidden, Logits, Signal
from amidkd.training.objective import ScheduledObjective

__all__ = ["Corpus", "LossSettings", "Tokens", "hard_loss", "soft_loss"]


@dataclass(frozen=True)
class LossSettings:
    """What a step minimises beside the teacher's signal.

    Args:
        objective: The objective of each step; None: cross-entropy alone.
        cross_entropy_weight: Weight of cross-entropy on the labels.
        temperature: Divides the logits of both sides.
        vocab_size: Vocabulary shared by teacher, student and tokenizer.
        kernels: Backend and memory of the loss.
        warn_where_stuck: Whether to warn where ω says that the first step can teach nothing.
    """

    objective: ScheduledObjective | None = None
    cross_entropy_weight: float = 0.0
    temperature: float = 1.0
    vocab_size: int | None = None
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    warn_where_stuck: bool = False


@dataclass(frozen=True)
class Corpus:
    """Plain text for a next-token loss with a normaliser of its own.

    Args:
        windows: Windows of text.
        weight: Weight of the mean cross-entropy of the step's windows.
        per_step: Windows of an optimizer step over all ranks; None: as many as rows.
    """

    windows: Sequence[Example]
    weight: float = 1.0
    per_step: int | None = None


@dataclass(frozen=True)
class Tokens:
    """Supervised tokens of an optimizer step, over all its forward passes and ranks."""

    data: int
    corpus: int


def soft_loss(
    settings: LossSettings,
    *,
    student: Hidden | Logits,
    teacher: Signal,
    sequences: Sequences,
    step: int,
    count: int,
    measure: bool,
) -> LossOutput:
    """The distillation loss of a forward pass, as its part of the optimizer step's mean.

    Args:
        settings: What to minimise; it has an objective.
        student: What the student says at the supervised positions.
        teacher: What the teacher says there.
        sequences: The rows.
        step: Optimizer steps already made.
        count: Supervised tokens of the whole step.
        measure: Whether metrics are wanted.
    """
    assert settings.objective is not None
    weight = settings.cross_entropy_weight
    return distillation_loss(
        student=student,
        teacher=teacher,
        objective=settings.objective.at(step),
        labels=sequences.labels_N() if weight > 0 else None,
        cross_entropy_weight=weight,
        temperature=settings.temperature,
        denominator=max(1, count),
        vocab_size=settings.vocab_size,
        backend=settings.kernels.backend,
        memory_mb=settings.kernels.memory_mb,
        metrics=measure,
    )


def hard_loss(
    settings: LossSettings, *, student: Hidden | Logits, sequences: Sequences, count: int, measure: bool = False
) -> LossOutput:
    """Cross-entropy alone, through the same pass over the vocabulary; arguments as for :func:`soft_loss`."""
    return distillation_loss(
        student=student,
        labels=sequences.labels_N(),
        cross_entropy_weight=1.0,
        denominator=max(1, count),
        vocab_size=settings.vocab_size,
        backend=settings.kernels.backend,
        memory_mb=settings.kernels.memory_mb,
        metrics=measure,
    )
