"""Checks of one call of ``distillation_loss``, each before any arithmetic, and the `Task` that comes of it."""

import math

import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.kernels.heads import compute_dtype, sources, vocabulary
from amidkd.kernels.task import IGNORED_LABEL, Task
from amidkd.maths.objective import AnyObjective, WeightedSum, per_token_settings
from amidkd.maths.reduce import Reduction
from amidkd.signals import Hidden, Logits, Signal, TopK

__all__ = ["check_constants", "check_denominator", "check_reduction", "prepare"]


def prepare(
    *,
    student: Logits | Hidden,
    teacher: Signal | list[Signal] | tuple[Signal, ...] | None,
    objective: AnyObjective | None,
    mask: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    labels: Tensor | None,
    cross_entropy_weight: float,
    vocab_size: int | None,
) -> Task:
    """Check a call and narrow it to the tokens that count; the arguments are those of ``distillation_loss``.

    Raises:
        SettingError: Whatever cannot be used, with its value.
    """
    if not isinstance(student, Logits | Hidden):
        raise SettingError(f"student must be Logits or Hidden; got {type(student).__name__}")
    several = isinstance(teacher, list | tuple)
    teachers: tuple[Signal, ...]
    if isinstance(teacher, list | tuple):
        teachers = tuple(teacher)
    else:
        teachers = () if teacher is None else (teacher,)
    first = sources(student)[0]
    assert first is not None
    tokens = first.shape[0]
    _check_teachers(teachers, tokens, several=several)
    _check_numbers(teachers, temperature=temperature, cross_entropy_weight=cross_entropy_weight)
    _check_parts(teachers, objective, labels, cross_entropy_weight)
    for name, tensor in {"mask": mask, "weights": weights, "labels": labels}.items():
        _check_per_token(name, tensor, tokens)
    if objective is not None:
        for name, tensor in per_token_settings(objective):
            _check_per_token(f"objective.{name}", tensor, tokens)
    width = _vocab_size(student, teachers, vocab_size)
    rows = _rows_that_count(mask, weights, tokens, first.device)
    hard = labels if cross_entropy_weight > 0 else None
    _check_labels(hard, rows, width)
    return Task(
        student=student,
        teachers=teachers,
        objective=objective,
        several=several,
        rows=rows,
        labels=hard,
        cross_entropy_weight=cross_entropy_weight,
        temperature=temperature,
        vocab_size=width,
        dtype=compute_dtype([student, *teachers]),
    )


def check_reduction(reduction: Reduction, denominator: float | Tensor | None) -> None:
    """Refuse an unknown reduction, and a denominator that divides nothing.

    Raises:
        SettingError: Which it is.
    """
    if reduction not in ("mean", "sum", "none"):
        raise SettingError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")
    if denominator is None:
        return
    if reduction != "mean":
        raise SettingError(f"denominator divides a mean; leave it out with reduction={reduction!r}, or use 'mean'")
    if isinstance(denominator, Tensor) and denominator.ndim != 0:
        raise SettingError(f"denominator must be a number or a scalar tensor; got shape {tuple(denominator.shape)}")


def check_denominator(denominator: float | Tensor | None, unmasked: Tensor) -> None:
    """Refuse to divide by 0 or less, unless no token is unmasked; on a device it is not looked at, to save a wait.

    Raises:
        SettingError: The denominator.
    """
    seen = not isinstance(denominator, Tensor) or denominator.device.type == unmasked.device.type == "cpu"
    if denominator is not None and seen and not float(denominator) > 0 and (float(denominator) < 0 or bool(unmasked)):
        raise SettingError(f"denominator must be above 0; got {float(denominator):g}")


def check_constants(task: Task, weights: Tensor | None) -> None:
    """Refuse what would need a gradient besides the student's: only autograd has one.

    Raises:
        SettingError: ``weights``, α or λ requires a gradient.
    """
    named: list[tuple[str, object]] = [("weights", weights)]
    if task.objective is not None:
        terms = task.objective.terms if isinstance(task.objective, WeightedSum) else ((1.0, task.objective),)
        for _, term in terms:
            named += [("objective.alpha", term.alpha), ("objective.lam", term.lam)]
    for name, tensor in named:
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            raise SettingError(
                f"{name} requires a gradient, and the chunked backend computes only the student's; "
                f"use {name}.detach(), or backend='naive'"
            )


def _rows(signal: Signal) -> int:
    first = sources(signal)[0]
    assert first is not None
    return first.shape[0]


def _check_teachers(teachers: tuple[Signal, ...], tokens: int, *, several: bool) -> None:
    if several and not teachers:
        raise SettingError("teacher is an empty list; give at least one signal")
    for teacher in teachers:
        if not isinstance(teacher, Logits | Hidden | TopK):
            raise SettingError(f"teacher must be Logits, Hidden, TopK or a list of them; got {type(teacher).__name__}")
        if _rows(teacher) != tokens:
            raise SettingError(f"teacher and student must have the same tokens; got {_rows(teacher)} and {tokens} rows")
    truncated = [teacher for teacher in teachers if isinstance(teacher, TopK)]
    for teacher in truncated:
        if teacher.ids.is_floating_point() or (teacher.ids.device.type == "cpu" and bool((teacher.ids < 0).any())):
            raise SettingError("TopK.ids must be token ids: integers, at least 0")
    if truncated and len(truncated) < len(teachers):
        raise SettingError(
            "a list of teachers cannot mix TopK with Logits or Hidden: they speak of different outcomes. "
            "Truncate all of them to the same ids, or none"
        )
    if any(
        teacher.ids is not truncated[0].ids and not torch.equal(teacher.ids, truncated[0].ids)
        for teacher in truncated[1:]
    ):
        raise SettingError("teachers given as TopK must all have the same ids, so that they speak of the same outcomes")


def _check_numbers(teachers: tuple[Signal, ...], *, temperature: float, cross_entropy_weight: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise SettingError(f"temperature must be a finite number above 0; got {temperature}")
    if temperature != 1 and any(isinstance(teacher, TopK) for teacher in teachers):
        raise SettingError(
            "temperature must be 1 with a truncated teacher (TopK), since its tail cannot be tempered; "
            f"got {temperature}"
        )
    if not (math.isfinite(cross_entropy_weight) and cross_entropy_weight >= 0):
        raise SettingError(f"cross_entropy_weight must be a finite number, at least 0; got {cross_entropy_weight}")


def _check_parts(
    teachers: tuple[Signal, ...], objective: AnyObjective | None, labels: Tensor | None, cross_entropy_weight: float
) -> None:
    if bool(teachers) != (objective is not None):
        given, missing = ("teacher", "objective") if teachers else ("objective", "teacher")
        raise SettingError(f"{given} needs {missing}: give both, or neither for cross-entropy alone")
    if cross_entropy_weight > 0 and labels is None:
        raise SettingError(f"cross_entropy_weight={cross_entropy_weight} needs labels [N]")
    if not teachers and cross_entropy_weight == 0:
        raise SettingError(
            "nothing to compute: give teacher and objective, or labels with cross_entropy_weight above 0"
        )


def _check_per_token(name: str, tensor: Tensor | None, tokens: int) -> None:
    if tensor is None:
        return
    if tuple(tensor.shape) != (tokens,):
        raise SettingError(f"{name} must have shape [N] = [{tokens}]; got {tuple(tensor.shape)}")
    fractional = name == "mask" and tensor.is_floating_point() and tensor.device.type == "cpu"
    if fractional and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise SettingError("mask must hold only 0 and 1; a factor on a token's loss is given as weights")
    if name == "labels" and tensor.is_floating_point():
        raise SettingError(f"labels must be token ids, integers; got {tensor.dtype}")


def _vocab_size(student: Logits | Hidden, teachers: tuple[Signal, ...], vocab_size: int | None) -> int:
    widths = [vocabulary(signal) for signal in (student, *teachers) if not isinstance(signal, TopK)]
    if vocab_size is None:
        return min(widths)
    if not 1 <= vocab_size <= min(widths):
        raise SettingError(
            f"vocab_size must be in 1 … {min(widths)}, the smallest width of student and teachers; got {vocab_size}"
        )
    return vocab_size


def _rows_that_count(mask: Tensor | None, weights: Tensor | None, tokens: int, device: torch.device) -> Tensor | None:
    if mask is None and weights is None:
        return None
    keep = torch.ones((), dtype=torch.bool) if mask is None else mask.bool()
    if weights is not None:
        keep = keep.to(weights.device) & (weights != 0)
    rows = keep.nonzero().squeeze(-1)
    return None if rows.shape[0] == tokens else rows.to(device)


def _check_labels(labels: Tensor | None, rows: Tensor | None, vocab_size: int) -> None:
    if labels is None or labels.device.type != "cpu":
        return
    found = labels if rows is None else labels[rows]
    wrong = found[(found != IGNORED_LABEL) & ((found < 0) | (found >= vocab_size))]
    if wrong.numel():
        raise SettingError(
            f"labels must be in 0 … {vocab_size - 1}, or {IGNORED_LABEL} for none; got {int(wrong[0])}. "
            "Ids beyond the shared vocabulary (vocab_size) cannot be predicted"
        )
