"""Some rows of a batch, and which of its supervised tokens are theirs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from amidkd.errors import SettingError

if TYPE_CHECKING:
    from amidkd.data import Row, Sequences

__all__ = ["member_of", "some_rows", "teachers_of_rows"]


def some_rows(sequences: "Sequences", chosen_B: Tensor) -> tuple["Sequences", Tensor]:
    """A batch of some rows of another, and the places of their supervised tokens among those of the whole.

    Args:
        sequences: The whole batch.
        chosen_B: Booleans [B], at least one true.

    Returns:
        The rows, padded as before; the places [n], int64, growing.
    """
    part = type(sequences).from_batch({name: tensor[chosen_B] for name, tensor in sequences.as_batch().items()})
    return part, chosen_B[sequences.sequence_N()].nonzero()[:, 0]


def teachers_of_rows(rows: Iterable["Row"], titles: list[str]) -> dict[int, int]:
    """Which teacher each row names.

    Args:
        rows: Rows with ``teacher_id``.
        titles: What each teacher is called: its name, or its model or address.

    Returns:
        Number of the teacher by ``Row.index``.

    Raises:
        SettingError: A row names no teacher, or none of these; the message has its place.
    """
    return {row.index: member_of(row.teacher_id, row.where, titles) for row in rows}


def member_of(teacher_id: str | int | None, where: str, titles: list[str]) -> int:
    """The number of the teacher that a row means: by what it is called, or by number from 0.

    Raises:
        SettingError: It names none of them, or several.
    """
    if isinstance(teacher_id, str) and titles.count(teacher_id) == 1:
        return titles.index(teacher_id)
    number = int(teacher_id) if isinstance(teacher_id, str) and teacher_id.isdecimal() else teacher_id
    if isinstance(number, int) and 0 <= number < len(titles):
        return number
    listed = ", ".join(f"{place}: {title}" for place, title in enumerate(titles))
    if teacher_id is None:
        raise SettingError(
            f"{where}: no `teacher_id`, which teacher.weights = by_row needs; add the column. Teachers: {listed}"
        )
    raise SettingError(
        f"{where}: `teacher_id` is {teacher_id!r}, which is not one teacher; give one of these names, or its number: "
        f"{listed}"
    )
