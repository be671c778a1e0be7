"""The two losses of a forward pass: on a teacher's signal, and cross-entropy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amidkd.data import Sequences
from amidkd.kernels import LossOutput, distillation_loss
from amidkd.maths import Objective
from amidkd.maths.objective import AnyObjective, WeightedSum, take_rows
from amidkd.signals import Hidden, Logits, TopK
from amidkd.teachers import Aligned, Group, Grouped, Said
from amidkd.training.metrics import mean_metrics
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
    teacher: Said,
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
    if isinstance(teacher, Aligned):
        # Loaded where it is needed: few runs have a teacher with another tokenizer.
        from amidkd.training.aligned import aligned_loss

        return aligned_loss(
            settings, student=student, said=teacher, sequences=sequences, step=step, count=count, measure=measure
        )
    signals: dict[str, Any] = {"student": student, "teacher": teacher}
    weights_N = _weights(settings, sequences, step=step, **signals)
    labels_N = _labels(sequences) if settings.cross_entropy_weight > 0 else None
    made = []
    for part in _spoken(_parts(settings, sequences, step=step, **signals), teacher):
        place = part.place_n
        out = distillation_loss(
            student=_rows(student, place),
            teacher=part.teacher,
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
    settings: LossSettings, sequences: Sequences, *, step: int, student: Hidden | Logits, teacher: Said | None
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
    settings: LossSettings, sequences: Sequences, *, step: int, student: Hidden | Logits, teacher: Said
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


@dataclass(frozen=True)
class _Spoken:
    """Tokens of a pass that share an objective and teachers."""

    objective: AnyObjective
    teacher: Any
    place_n: Tensor | None


def _spoken(parts: Sequence[_Part], teacher: Said) -> list[_Spoken]:
    """The parts with what is said of their tokens, split where other teachers speak."""
    if not isinstance(teacher, Grouped):
        return [_Spoken(part.objective, _rows(teacher, part.place_n), part.place_n) for part in parts]
    found = [one for part in parts for group in teacher.groups if (one := _overlap(part, group)) is not None]
    return found or [_Spoken(_weighted(parts[0].objective, teacher.groups[0]), *_nothing(teacher.groups[0]))]


def _overlap(part: _Part, group: Group) -> _Spoken | None:
    """The tokens of a part that a group speaks of; None: there is none."""
    signals = list(group.signals)
    place, objective = part.place_n, part.objective
    if group.place_n is not None:
        place, inside, own = _common(part.place_n, group.place_n)
        signals = _rows(signals, inside)
        objective = take_rows(objective, own) if own is not None else objective
    elif place is not None:
        signals = _rows(signals, place)
    if place is not None and len(place) == 0:
        return None
    return _Spoken(_weighted(objective, group), signals if len(signals) > 1 else signals[0], place)


def _common(part_n: Tensor | None, group_n: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Places in both, and where each is in the group and in the part; None: all of it, in order."""
    if part_n is None:
        return group_n, None, group_n
    inside = torch.isin(group_n, part_n).nonzero()[:, 0]
    place = group_n[inside]
    return place, inside, torch.searchsorted(part_n, place)


def _nothing(group: Group) -> tuple[Any, Tensor]:
    none = torch.zeros(0, dtype=torch.long, device=_device_of(group.signals[0]))
    signals = _rows(list(group.signals), none)
    return signals if len(signals) > 1 else signals[0], none


def _device_of(signal: Any) -> torch.device:
    for name in ("states", "logits", "ids"):
        if hasattr(signal, name):
            return getattr(signal, name).device
    raise TypeError(f"no signal: {type(signal).__name__}")


def _weighted(objective: AnyObjective, group: Group) -> AnyObjective:
    """The objective with a group's weights of the teachers."""
    if len(group.signals) == 1:
        return objective
    if isinstance(objective, WeightedSum):
        terms = tuple((weight, replace(term, teacher_weights=group.weights)) for weight, term in objective.terms)
        return WeightedSum(terms)
    return replace(objective, teacher_weights=group.weights)


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
    total = made[0].loss
    for out in made[1:]:
        total = total + out.loss
    return LossOutput(loss=total, backend=made[0].backend, metrics=mean_metrics([out.metrics for out in made]))
