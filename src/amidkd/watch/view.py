"""What is shown of a run or a sweep, whoever shows it: the page, the terminal, or lines in a pipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["Bar", "Follower", "Reading", "State", "Trials", "View"]

State = Literal["waiting", "running", "silent", "stopped", "done"]
"""``silent``: nothing is written, and whether the process lives cannot be seen from here."""


@dataclass(frozen=True)
class Bar:
    """How far a part of the work is.

    Args:
        name: Of the part.
        done: How much is done.
        total: Of how much; None where it is not known yet.
        text: The same in words, with the time that is left.
    """

    name: str
    done: int
    total: int | None
    text: str

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Reading:
    """One number of the log.

    Args:
        key: Its key in ``metrics.jsonl``.
        label: What it is.
        unit: Its unit.
        value: As people read it.
        history: What it was, oldest first.
    """

    key: str
    label: str
    unit: str
    value: str
    history: tuple[float, ...]


@dataclass(frozen=True)
class Trials:
    """Trials of a sweep, newest first.

    Args:
        heads: Columns.
        rows: Cells as text, as many as ``heads``.
        values: Objective by label: (trial, value) of the trials that have one, in order.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class View:
    """A run or a sweep as it stands.

    Args:
        title: Name of the folder.
        state: How it is.
        sentence: The same in words.
        about: What it does, one sentence; may be empty.
        bars: Its parts, in order.
        readings: The newest numbers of the part that is under way.
        facts: Name and value of what else is worth knowing.
        warnings: What was warned of.
        command: What to type next, or "".
        lines: Log lines of all parts, as :func:`amidkd.report.lines_of_run` gives them.
        samples: Lines of ``samples.jsonl``.
        trials: Of a sweep.
    """

    title: str
    state: State
    sentence: str
    about: str = ""
    bars: tuple[Bar, ...] = ()
    readings: tuple[Reading, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    command: str = ""
    lines: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    trials: Trials | None = None


class Follower(Protocol):
    """Looks at a folder again and again, reading only what is new."""

    def look(self) -> View:
        """The folder as it stands."""
        ...
