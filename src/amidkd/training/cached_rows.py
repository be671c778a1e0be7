"""Rows that a cached teacher knows, and how they became text."""

import hashlib
from collections.abc import Sequence

from amidkd.data import Encoder, Row
from amidkd.teachers import Teacher
from amidkd.teachers.cached import CachedTeacher
from amidkd.training.lessons import Lessons, Material

__all__ = ["check_cached", "templates_of"]


def check_cached(teacher: Teacher | None, lessons: Lessons, encoder: Encoder, material: Material) -> None:
    """Refuse rows that a cached teacher does not know, before work starts; other teachers know all rows.

    Args:
        teacher: The run's teacher.
        lessons: What the run learns from.
        encoder: How rows became tokens.
        material: The rows.

    Raises:
        SettingError: With the templates that differ, or the first such row.
    """
    for member in getattr(teacher, "members", (teacher,)):
        if isinstance(member, CachedTeacher):
            member.check(lessons.examples, templates=templates_of(encoder, material.rows), places=lessons.places)


def templates_of(encoder: Encoder, rows: Sequence[Row]) -> dict[str, str | None]:
    """How rows become text, by name; None for what none of them uses.

    Args:
        encoder: How rows become tokens.
        rows: The rows.
    """
    bare, talks = any(row.prompt is not None for row in rows), any(row.messages is not None for row in rows)
    chat = hashlib.sha256(str(encoder.tokenizer.chat_template).encode()).hexdigest()
    return {
        "prompt_template": encoder.config.prompt_template if bare else None,
        "completion_template": encoder.config.completion_template if bare else None,
        "chat_template": chat if talks else None,
    }
