"""The two losses of a forward pass: on a teacher's signal, and cross-entropy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amidkd.data import Sequences
from amidkd.kernels import LossOutput, distillation_loss
from amidkd.maths import Objective
from amidkd.maths.objective import AnyObjective
from amidkd.signals import Hidden, Logits, Signal, TopK
from amidkd.training.settings import LossSettings
from amidkd.training.weighting import STUDENT

__all__ = ["hard_loss", "soft_loss"]


@dataclass(frozen=True)
class _Part:
    """Tokens of a pass that share an objective."""

    objective: AnyObjective
    place_n: Tensor | None = None


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
    signals: dict[str, Any] = {"student": student, "teacher": teacher}
    weights_N = _weights(settings, sequences, step=step, **signals)
    labels_N = _labels(sequences) if settings.cross_entropy_weight > 0 else None
    made = []
    for part in _parts(settings, sequences, step=step, **signals):
        place = part.place_n
        out = distillation_loss(
            student=_rows(student, place),
            teacher=_rows(teacher, place),
            objective=part.objective,
            weights=weights_N if weights_N is None or place is None else weights_N[place],
            labels=labels_N if labels_N is None or place is None else labels_N[place],
            cross_entropy_weight=settings.cross_entropy_weight,
            temperature=settings.temperature,
            denominator=max(1, count),
            vocab_size=settings.vocab_size,
            backend=settings.kernels.backend,
            memory_mb=settings.kernels.memory_mb,
            metrics=measure,
        )
        made.append(out)
    return made[0] if len(made) == 1 else _joined(made)


def hard_loss(
    settings: LossSettings,
    *,
    student: Hidden | Logits,
    sequences: Sequences,
    count: int,
    step: int = 0,
    measure: bool = False,
    weighted: bool = False,
) -> LossOutput:
    """Cross-entropy alone, through the same pass over the vocabulary; arguments as for :func:`soft_loss`.

    ``weighted`` says whether ``settings.weights`` apply.
    """
    return distillation_loss(
        student=student,
        labels=sequences.labels_N(),
        cross_entropy_weight=1.0,
        weights=_weights(settings, sequences, step=step, student=student, teacher=None) if weighted else None,
        denominator=max(1, count),
        vocab_size=settings.vocab_size,
        backend=settings.kernels.backend,
        memory_mb=settings.kernels.memory_mb,
        metrics=measure,
    )


def _kernels(settings: LossSettings) -> dict[str, Any]:
    return {
        "vocab_size": settings.vocab_size,
        "backend": settings.kernels.backend,
        "memory_mb": settings.kernels.memory_mb,
    }


def _weights(
    settings: LossSettings, sequences: Sequences, *, step: int, student: Hidden | Logits, teacher: Signal | None
) -> Tensor | None:
    if settings.weights is None:
        return None
    return settings.weights.of(
        sequences, progress=settings.progress(step), student=student, teacher=teacher, **_kernels(settings)
    )


def _labels(sequences: Sequences) -> Tensor:
    """Labels [N] of the cross-entropy. The student is not told to say what it said."""
    return sequences.labels_N().masked_fill(sequences.origin_N() == STUDENT, -100)


def _parts(
    settings: LossSettings, sequences: Sequences, *, step: int, student: Hidden | Logits, teacher: Signal
) -> list[_Part]:
    """The tokens by objective; at least one part, also where there is no token."""
    assert settings.objective is not None
    objective = settings.objective.at(step)
    if settings.student_objective is None and settings.skew is None:
        return [_Part(objective)]
    own = objective if settings.student_objective is None else settings.student_objective.at(step)
    both = ((objective, False), (own, True))
    skew_N = None
    if settings.skew is not None:
        skew_N = settings.skew.of(
            sequences,
            base=(_skew_of(objective), _skew_of(own)),
            student=student,
            teacher=teacher,
            **_kernels(settings),
        )
    origin_N = sequences.origin_N()
    found = [(each, ((origin_N == STUDENT) == mine).nonzero()[:, 0]) for each, mine in both]
    there = [(each, place) for each, place in found if len(place)] or found[:1]
    return [_Part(each if skew_N is None else _skewed(each, skew_N[place]), place) for each, place in there]


def _skew_of(objective: AnyObjective) -> float:
    """κ of D(p‖κp + (1−κ)q) or D(q‖(1−κ)p + κq)."""
    assert isinstance(objective, Objective)
    lam = float(objective.lam)
    return lam if objective.between == "teacher||assistant" else 1 - lam


def _skewed(objective: AnyObjective, skew_n: Tensor) -> Objective:
    assert isinstance(objective, Objective)
    return replace(objective, lam=skew_n if objective.between == "teacher||assistant" else 1 - skew_n)


def _rows(signal: Any, place_n: Tensor | None) -> Any:
    """A signal at some of its tokens."""
    if place_n is None:
        return signal
    if isinstance(signal, Hidden):
        return replace(signal, states=signal.states[place_n])
    if isinstance(signal, Logits):
        return Logits(signal.logits[place_n])
    if isinstance(signal, TopK):
        tail = None if signal.log_tail is None else signal.log_tail[place_n]
        return TopK(signal.ids[place_n], signal.log_probs[place_n], tail)
    return [_rows(one, place_n) for one in signal]


def _joined(made: Sequence[LossOutput]) -> LossOutput:
    """Parts of a pass as one: losses added, metrics averaged over their tokens."""
    metrics: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for out in made for name in out.metrics):
        having = [out.metrics for out in made if name in out.metrics]
        tokens = torch.stack([found["tokens"] for found in having])
        values = torch.stack([found[name] for found in having])
        metrics[name] = tokens.sum() if name == "tokens" else (values * tokens).sum() / tokens.sum().clamp(min=1)
    total = made[0].loss
    for out in made[1:]:
        total = total + out.loss
    return LossOutput(loss=total, backend=made[0].backend, metrics=metrics)
