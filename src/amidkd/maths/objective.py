"""The objective: one divergence between two of teacher, assistant and student, or a weighted sum of such.

Known methods are points of this space: forward and reverse KL, skew KL (DistiLLM), GKD, TAID, ABKD, AMiD.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final, get_args

import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.maths.divergence import Divergence, Pair, UserDivergence, kl
from amidkd.maths.mixture import Mixture, mix
from amidkd.maths.shapes import LogProbs, Setting, aligned, checked_alpha, checked_fraction, checked_weights

__all__ = ["AnyObjective", "Between", "Objective", "Seats", "WeightedSum", "per_token_settings", "take_rows"]

Between = Literal[
    "teacher||student",
    "student||teacher",
    "teacher||assistant",
    "assistant||teacher",
    "student||assistant",
    "assistant||student",
]
"""The ordered pair (a, b) of D(a‖b)."""


class _Weighable:
    """Arithmetic of objectives: ``0.3 * first + 0.7 * second``."""

    def __rmul__(self, weight: float) -> "WeightedSum":
        return WeightedSum(tuple((weight * inner, term) for inner, term in _terms(self)))

    def __add__(self, other: "AnyObjective") -> "WeightedSum":
        if not isinstance(other, _Weighable):
            return NotImplemented
        return WeightedSum((*_terms(self), *_terms(other)))


@dataclass(frozen=True)
class Seats:
    """The two distributions that an objective compares.

    Args:
        a: The first.
        b: The second.
        mixture: The assistant with ω [*N, V], where it was asked for and takes part; None: no assistant.
    """

    a: LogProbs
    b: LogProbs
    mixture: Mixture | None


@final
@dataclass(frozen=True)
class Objective(_Weighable):
    """D(a‖b) per token, with a and b two of teacher p, assistant r and student q.

    r ∝ (λ p^s + (1−λ) q^s)^{1/s}, s = (1−α)/2

    With several teachers p_k of weights w_k the teacher is their normalised α-mixture, and the assistant the flat
    mixture of all: λ·w_k for teacher k and 1−λ for the student (nesting the two would give another distribution
    unless α = ±1).

    Args:
        divergence: Of the catalogue (`divergence`), or a function of log a, log b [*N, V] → [*N].
        between: Which two, in order: ``"teacher||assistant"`` is D(p‖r).
        alpha: α of the assistant (and of several teachers), finite; a number or a tensor [*N].
        lam: λ in [0, 1], the teacher's weight in the assistant; a number or a tensor [*N].
        detach_assistant: Take the assistant as a constant (TAID). No effect without an assistant.
        teacher_weights: w_k of several teachers, sum 1; None: uniform.

    Raises:
        SettingError: A setting outside its domain, or a detached assistant that leaves no gradient.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> Objective(between="teacher||student")(teacher=p, student=q)
        tensor([0.3681])
        >>> gkd = 0.3 * Objective(alpha=-1, lam=0.3) + 0.7 * Objective(between="student||assistant", alpha=-1, lam=0.3)
        >>> gkd(teacher=p, student=q)
        tensor([0.0813])

    Source: AMiD (arXiv 2510.15982).
    """

    divergence: Divergence | UserDivergence = field(default_factory=kl)
    between: Between = "teacher||assistant"
    alpha: Setting = -0.5
    lam: Setting = 0.1
    detach_assistant: bool = False
    teacher_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not callable(self.divergence):
            raise SettingError(
                f"divergence must be made by divergence(name, ...) or be a function; got {self.divergence!r}"
            )
        if self.between not in get_args(Between):
            raise SettingError(f"between must be one of {', '.join(get_args(Between))}; got {self.between!r}")
        checked_alpha(self.alpha)
        checked_fraction("lam", self.lam)
        if self.detach_assistant and "student" not in self.between:
            raise SettingError(
                f"detach_assistant=True with between={self.between!r} leaves no gradient for the student; "
                "set detach_assistant=False, or put the student in between"
            )
        if self.teacher_weights is not None:
            checked_weights("teacher_weights", self.teacher_weights, len(self.teacher_weights))

    def __call__(self, *, teacher: Tensor | Sequence[Tensor], student: Tensor) -> Tensor:
        """The value per token.

        Args:
            teacher: log p [*N, V], float32 or float64, normalised; −inf where masked. Or a list of such.
            student: log q [*N, V]; gradients flow to it (and to α and λ where they are tensors that want one).

        Returns:
            [*N], ≥ 0; +inf where truly infinite, with gradient 0 there.

        Raises:
            SettingError: Half precision, shapes that differ, or weights that do not fit the teachers.
        """
        seats = self.seats(teacher=teacher, student=student)
        if isinstance(self.divergence, Divergence):
            return _connected(self.divergence.value(Pair.of(seats.a, seats.b)), student)
        value = self.divergence(seats.a.plain(), seats.b.plain())
        if value.shape != student.shape[:-1]:
            raise SettingError(
                f"a divergence of your own must return one value per token, {tuple(student.shape[:-1])}; "
                f"got {tuple(value.shape)}: sum over the last axis alone"
            )
        return _connected(value, student)

    def seats(self, *, teacher: Tensor | Sequence[Tensor], student: Tensor, responsibility: bool = False) -> Seats:
        """The distributions a and b, and with ``responsibility`` also ω where an assistant takes part.

        Args:
            teacher: As in a call.
            student: As in a call.
            responsibility: Whether ω is wanted.
        """
        log_ps, log_q = _sources(teacher, student)
        weights = self._teacher_weights(teacher, len(log_ps))
        first, second = self.between.split("||")
        made: dict[str, LogProbs] = {"student": LogProbs.of(log_q)}
        mixture = None
        if "teacher" in (first, second):
            made["teacher"] = mix(log_ps, weights, self.alpha).distribution
        if "assistant" in (first, second):
            parts = [self.lam * weight for weight in weights]
            mixture = mix([*log_ps, log_q], [*parts, 1.0 - self.lam], self.alpha, responsibility=responsibility)
            made["assistant"] = mixture.distribution.detach() if self.detach_assistant else mixture.distribution
        return Seats(made[first], made[second], mixture)

    def _teacher_weights(self, teacher: Tensor | Sequence[Tensor], count: int) -> list[float]:
        if self.teacher_weights is not None and isinstance(teacher, Tensor):
            raise SettingError("teacher_weights needs a list of teachers; got one tensor. Leave teacher_weights out")
        weights = checked_weights("teacher_weights", self.teacher_weights, count)
        return [float(weight) for weight in weights]


@final
@dataclass(frozen=True)
class WeightedSum(_Weighable):
    """Σ_i c_i · objective_i, made by ``0.3 * first + 0.7 * second``.

    A term of weight 0 is left out, also where it is infinite.

    Args:
        terms: Pairs (weight ≥ 0, objective).

    Raises:
        SettingError: No term, or a weight that is negative or not finite.
    """

    terms: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise SettingError("a sum of objectives needs at least one term")
        for weight, _ in self.terms:
            if not (math.isfinite(weight) and weight >= 0):
                raise SettingError(f"the weight of an objective must be a finite number, at least 0; got {weight}")

    def __call__(self, *, teacher: Tensor | Sequence[Tensor], student: Tensor) -> Tensor:
        """The value per token [*N]; arguments as for `Objective`."""
        total = student.new_zeros(student.shape[:-1])
        for weight, term in self.terms:
            if weight != 0:
                total = total + weight * term(teacher=teacher, student=student)
        return _connected(total, student)


AnyObjective = Objective | WeightedSum
"""What every loss accepts."""


def _terms(objective: object) -> tuple[tuple[float, Objective], ...]:
    if isinstance(objective, WeightedSum):
        return objective.terms
    assert isinstance(objective, Objective)
    return ((1.0, objective),)


def _sources(teacher: Tensor | Sequence[Tensor], student: Tensor) -> tuple[list[Tensor], Tensor]:
    """Checked and of one dtype."""
    if isinstance(teacher, Tensor):
        log_p, log_q = aligned(teacher=teacher, student=student)
        return [log_p], log_q
    if not teacher:
        raise SettingError("teacher is an empty list; give at least one tensor of log-probabilities")
    *log_ps, log_q = aligned(**{f"teacher[{k}]": log_p for k, log_p in enumerate(teacher)}, student=student)
    return log_ps, log_q


def _connected(value: Tensor, student: Tensor) -> Tensor:
    """The value with a gradient of 0 where it does not depend on the student (λ = 1), so that backward still works."""
    if value.requires_grad or not (student.requires_grad and torch.is_grad_enabled()):
        return value
    return value + student.masked_fill(torch.ones_like(student, dtype=torch.bool), 0.0).sum(-1).to(value.dtype)


def per_token_settings(objective: AnyObjective) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the settings that have one value per token.

    Args:
        objective: Any.
    """
    for number, (_, term) in enumerate(_terms(objective)):
        prefix = f"terms[{number}]." if isinstance(objective, WeightedSum) else ""
        for name, value in (("alpha", term.alpha), ("lam", term.lam)):
            if isinstance(value, Tensor) and value.ndim > 0:
                yield prefix + name, value


def take_rows(objective: AnyObjective, rows: slice | Tensor) -> AnyObjective:
    """The objective of some tokens: its settings with one value per token, narrowed to them.

    Args:
        objective: Any.
        rows: A slice, or indices, of the first axis.
    """
    if isinstance(objective, WeightedSum):
        return WeightedSum(tuple((weight, _take(term, rows)) for weight, term in objective.terms))
    return _take(objective, rows)


def _take(objective: Objective, rows: slice | Tensor) -> Objective:
    def narrowed(value: Setting) -> Setting:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return value[rows if isinstance(rows, slice) else rows.to(value.device)]

    if not any(True for _ in per_token_settings(objective)):
        return objective
    return replace(objective, alpha=narrowed(objective.alpha), lam=narrowed(objective.lam))
