"""Schedules: α or λ as functions of a run's progress t ∈ [0, 1]; and TAID's rule, which also watches the loss."""

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, final

from amidkd.errors import SettingError

__all__ = ["Adaptive", "Constant", "Cosine", "Linear", "Piecewise", "Schedule"]


class Schedule(Protocol):
    """A number that may change over a run. What it remembers goes into the checkpoint."""

    def value(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""

    def observe(self, loss: float, progress: float) -> None:
        """Tell it the loss of the step that was just made at this progress."""

    def state(self) -> dict[str, Any]:
        """What it remembers, as JSON can hold it."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""


class _Function(ABC):
    """A schedule that depends on progress alone."""

    @abstractmethod
    def value(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""

    def observe(self, loss: float, progress: float) -> None:
        """Returns at once: the loss does not matter here."""
        return

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Refuses the state of another schedule.

        Raises:
            SettingError: It is not empty.
        """
        if state:
            raise SettingError(
                f"the saved schedule remembers {', '.join(state)}, and {self!r} remembers nothing: "
                "resume with the schedule that the run was started with"
            )


@final
@dataclass(frozen=True)
class Constant(_Function):
    """One value throughout.

    Args:
        constant: The value.
    """

    constant: float

    def __post_init__(self) -> None:
        _check_finite(value=self.constant)

    def value(self, progress: float) -> float:
        """The value."""
        _checked(progress)
        return self.constant


@final
@dataclass(frozen=True)
class Linear(_Function):
    """start + (end − start)·t.

    Args:
        start: At t = 0.
        end: At t = 1.

    Example:
        >>> Linear(start=1.0, end=-3.0).value(0.5)
        -1.0
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        _check_finite(start=self.start, end=self.end)

    def value(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""
        return _between(self.start, self.end, _checked(progress))


@final
@dataclass(frozen=True)
class Cosine(_Function):
    """start + (end − start)·(1 − cos πt)/2.

    Args:
        start: At t = 0.
        end: At t = 1.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        _check_finite(start=self.start, end=self.end)

    def value(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""
        return _between(self.start, self.end, (1.0 - math.cos(math.pi * _checked(progress))) / 2.0)


@final
@dataclass(frozen=True)
class Piecewise(_Function):
    """Straight lines between points; constant before the first and after the last.

    Args:
        points: Pairs (progress, value), progress increasing within [0, 1].

    Raises:
        SettingError: No point, or progress that does not increase within [0, 1].

    Example:
        >>> Piecewise([(0.0, 1.0), (0.5, -1.0), (1.0, -3.0)]).value(0.25)
        0.0
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        progress = [x for x, _ in self.points]
        if not progress or any(not 0 <= x <= 1 for x in progress) or any(x >= y for x, y in pairwise(progress)):
            raise SettingError(f"points must have progress that increases within [0, 1]; got {progress}")
        _check_finite(**{f"points[{k}]": value for k, (_, value) in enumerate(self.points)})

    def value(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""
        progress = _checked(progress)
        after = bisect.bisect_right([x for x, _ in self.points], progress)
        if after == 0:
            return self.points[0][1]
        if after == len(self.points):
            return self.points[-1][1]
        (x, low), (y, high) = self.points[after - 1], self.points[after]
        return _between(low, high, (progress - x) / (y - x))


@final
class Adaptive:
    """TAID's rule: the value rises with progress, and faster while the loss falls.

    value ← min(end, max(start + (end − start)·t, value + rate·σ(m)·(1 − value)))
    m ← smoothing·m + (1 − smoothing)·(previous loss − loss)/previous loss

    The first loss is only remembered, since nothing has fallen yet.

    Args:
        start: At t = 0, in [0, 1].
        end: Never exceeded, in [start, 1].
        rate: α_T, the largest step of the value, above 0.
        smoothing: Decay of the average m, in [0, 1).

    Raises:
        SettingError: A setting outside its domain.

    Source: TAID (Shing et al., ICLR 2025, arXiv 2501.16937), eq. 8 and algorithm 1.
    """

    def __init__(self, *, start: float = 0.4, end: float = 1.0, rate: float = 5e-4, smoothing: float = 0.99) -> None:
        _check_finite(start=start, end=end, rate=rate, smoothing=smoothing)
        if not 0 <= start <= end <= 1:
            raise SettingError(f"start and end must satisfy 0 ≤ start ≤ end ≤ 1; got start={start}, end={end}")
        if not rate > 0:
            raise SettingError(f"rate must be above 0; got {rate}")
        if not 0 <= smoothing < 1:
            raise SettingError(f"smoothing must be in [0, 1); got {smoothing}")
        self.start, self.end, self.rate, self.smoothing = float(start), float(end), float(rate), float(smoothing)
        self._value = self.start
        self._momentum = 0.0
        self._loss: float | None = None

    def value(self, progress: float) -> float:
        """The number at a progress in [0, 1]: never below the straight line from start to end."""
        return min(self.end, max(_between(self.start, self.end, _checked(progress)), self._value))

    def observe(self, loss: float, progress: float) -> None:
        """Tell it the loss of the step that was just made at this progress.

        Raises:
            ValueError: The loss is NaN or infinite.
        """
        if not math.isfinite(loss):
            raise ValueError(f"a schedule that follows the loss needs a finite one; got {loss}")
        current = self.value(progress)
        if self._loss is not None:
            drop = (self._loss - loss) / self._loss if self._loss != 0 else 0.0
            self._momentum = self.smoothing * self._momentum + (1.0 - self.smoothing) * drop
            current = min(self.end, current + self.rate * _sigmoid(self._momentum) * (1.0 - current))
        self._value = current
        self._loss = float(loss)

    def state(self) -> dict[str, Any]:
        """The value, the average and the last loss."""
        return {"value": self._value, "momentum": self._momentum, "loss": self._loss}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave.

        Raises:
            SettingError: It is the state of another schedule.
        """
        if set(state) != {"value", "momentum", "loss"}:
            raise SettingError(
                f"the saved schedule remembers {', '.join(state) or 'nothing'}, and an adaptive one remembers value, "
                "momentum and loss: resume with the schedule that the run was started with"
            )
        self._value, self._momentum, self._loss = state["value"], state["momentum"], state["loss"]

    def __repr__(self) -> str:
        return f"Adaptive(start={self.start}, end={self.end}, rate={self.rate}, smoothing={self.smoothing})"


def _checked(progress: float) -> float:
    if not 0.0 <= progress <= 1.0:
        raise SettingError(f"progress must be within [0, 1]; got {progress}")
    return progress


def _check_finite(**settings: float) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SettingError(f"{name} must be a finite number; got {value!r}")


def _between(start: float, end: float, part: float) -> float:
    """From start at 0 to end at 1, both exactly."""
    return (1.0 - part) * start + part * end


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
