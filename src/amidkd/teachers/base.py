"""The seam of teachers: what one is asked, and what several say at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from amidkd.errors import TeacherError
from amidkd.signals import Signal
from amidkd.teachers.aligned import Aligned

if TYPE_CHECKING:
    from amidkd.data import Sequences

__all__ = ["Group", "Grouped", "Said", "Teacher", "TeacherError"]


@dataclass(frozen=True)
class Group:
    """Tokens of a batch that the same teachers speak of, with the same weights.

    Args:
        place_n: Which of the supervised tokens [n], int64; None: all of them.
        signals: What each teacher says of them, n rows each.
        weights: What each teacher counts for, above 0, with the sum 1.
    """

    place_n: Tensor | None
    signals: tuple[Signal, ...]
    weights: tuple[float, ...]

    def weighted(self) -> list[tuple[float, Signal]]:
        """Each teacher's weight and what it says."""
        return list(zip(self.weights, self.signals, strict=True))


@dataclass(frozen=True)
class Grouped:
    """What several teachers say about a batch: each supervised token is in one group."""

    groups: tuple[Group, ...]


Said = Signal | Grouped | Aligned


@runtime_checkable
class Teacher(Protocol):
    """Says what the next token should be, at each supervised position of a batch."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary shared with the student."""

    @property
    def in_process(self) -> bool:
        """Whether it computes in this process, so that it neither fails to answer nor gains from being asked ahead."""

    def signal(self, sequences: "Sequences") -> Said:
        """One row for each supervised token, in the row-major order of ``predicts_BT``.

        Raises:
            SettingError: A batch that this teacher knows nothing about.
            TeacherError: It cannot answer now.
        """

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Told which batches come next, in order, so that a teacher elsewhere can begin; a hint, which may be wrong."""

    def begin_step(self, step: int) -> None:
        """Told before each optimizer step how many were made; what is drawn at random hangs on it alone."""

    def fingerprint(self) -> str:
        """A hash of everything that decides the signal."""

    def close(self) -> None:
        """Let go of threads, files and connections."""
