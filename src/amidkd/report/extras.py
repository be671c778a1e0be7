"""Results that are no metric of the rows: the harness's tasks, a judge's verdicts, speed beside the teacher."""

from collections.abc import Mapping
from typing import Any

__all__ = ["extras_of", "speed_of"]


def extras_of(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of what else an evaluation holds.

    Args:
        evaluation: ``results.evaluation`` of a record.

    Returns:
        For each: ``title``, ``heads``, ``rows`` of text and ``notes``.
    """
    return []


def speed_of(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Speed and memory of the student beside the teacher's.

    Args:
        evaluation: ``results.evaluation`` of a record.

    Returns:
        ``heads``, ``rows`` of text and ``notes``; None where it was not measured.
    """
    return None
