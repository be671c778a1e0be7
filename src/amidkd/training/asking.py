"""The teacher as the trainer asks it: ahead where it is elsewhere, pass by pass where it is in this process."""

from collections.abc import Callable, Sequence

from amidkd.data import Sequences
from amidkd.errors import SettingError, TeacherError
from amidkd.teachers import Said, Teacher

__all__ = ["Asking"]


class Asking:
    """A teacher's signals of the optimizer step under way.

    A teacher that is elsewhere answers for a whole step before its first forward pass, so that a step is made whole or
    not begun, on all ranks alike; while the student then works, the next step's answers are on their way.

    Args:
        teacher: The teacher.
        add_up: Sums a list of numbers over all ranks.
        upcoming: The batches of the step after so many, as far as they are known beforehand.
    """

    def __init__(
        self,
        teacher: Teacher,
        add_up: Callable[[list[float]], list[float]],
        upcoming: Callable[[int], Sequence[Sequences]],
    ) -> None:
        self._teacher, self._add_up, self._upcoming = teacher, add_up, upcoming
        self._held: list[tuple[Sequences, Said]] = []

    def begin(self, step: int, passes: Sequence[Sequences]) -> None:
        """Ask for a step's signals; every rank must call it.

        Args:
            step: Optimizer steps made.
            passes: The batch of each forward pass.

        Raises:
            TeacherError: Some rank has no answer. Raised on all.
            SettingError: The teacher knows nothing about a row of this rank.
        """
        self._teacher.begin_step(step)
        self._held = []
        if self._teacher.in_process:
            return
        failure: TeacherError | SettingError | None = None
        try:
            self._teacher.expect([*passes, *self._upcoming(step + 1)])
            self._held = [(sequences, self._teacher.signal(sequences)) for sequences in passes]
        except (TeacherError, SettingError) as error:
            failure = error
        if self._add_up([float(failure is not None)])[0] > 0:
            raise failure or TeacherError("another process had no answer from the teacher")

    def signal(self, sequences: Sequences) -> Said:
        """What the teacher says about a batch of the step; each is asked for once."""
        for place, (known, said) in enumerate(self._held):
            if known is sequences:
                del self._held[place]
                return said
        return self._teacher.signal(sequences)
