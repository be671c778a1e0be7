"""The one place that decides what kind of teacher a run has."""

from pathlib import Path
from typing import Any

from amidkd.config import (
    CachedTeacher,
    EnsembleTeacher,
    LiveTeacher,
    ServedTeacher,
    StageTeacher,
    TeacherConfig,
    members_of,
    tokenizer_source,
)
from amidkd.errors import SettingError
from amidkd.teachers.base import Teacher
from amidkd.teachers.live import make_live

__all__ = ["make_teacher", "teacher_tokenizer"]


def make_teacher(
    config: TeacherConfig, *, student_tokenizer: Any, folder: Path | None = None, device: Any = None, seed: int = 0
) -> Teacher:
    """Make a run's teacher and prove that it shares the student's vocabulary.

    Args:
        config: The run file's ``teacher``.
        student_tokenizer: What the sequences are made with.
        folder: The run folder, where a cache is unless its section names another place; None: the working directory.
        device: The student's device.
        seed: Of which teachers of an ensemble a step leaves out.

    Raises:
        SettingError: Something is missing (model, server, cache, extra), or the tokenizers differ.
        TeacherError: A server that does not answer.
    """
    shared: dict[str, Any] = {"student_tokenizer": student_tokenizer, "device": device}
    if isinstance(config, LiveTeacher):
        if config.alignment == "text":
            from amidkd.teachers.alignment import make_text_teacher

            return make_text_teacher(config, **shared)
        return make_live(config, **shared)
    if isinstance(config, CachedTeacher):
        from amidkd.teachers.cached import open_cache

        return open_cache(config, folder=Path.cwd() if folder is None else folder, **shared)
    if isinstance(config, ServedTeacher):
        from amidkd.teachers.served import connect

        return connect(config, **shared)
    if isinstance(config, EnsembleTeacher):
        from amidkd.teachers.ensemble import make_ensemble

        members = [make_teacher(member, folder=folder, **shared) for member in config.teachers]
        return make_ensemble(config, members, seed=seed)
    raise _outside_stages(config)


def teacher_tokenizer(config: TeacherConfig | None, folder: Path) -> str | None:
    """Where a student without a tokenizer of its own gets the teacher's: a folder or hub name; None: nowhere.

    Args:
        config: The run file's ``teacher``, or None.
        folder: The run folder, where a cache is unless its section names another place.

    Raises:
        TeacherError: A server that does not answer.
    """
    named = tokenizer_source(config)
    if named is not None or config is None:
        return named
    for member in members_of(config):
        if isinstance(member, StageTeacher):
            raise _outside_stages(member)
        if isinstance(member, CachedTeacher):
            from amidkd.teachers.cached import tokenizer_folder

            return str(tokenizer_folder(member, folder))
        if isinstance(member, ServedTeacher):
            from amidkd.teachers.served import fetch_tokenizer

            return str(fetch_tokenizer(member))
    return None


def _outside_stages(config: StageTeacher) -> SettingError:
    return SettingError(
        f"teacher.kind: stage (stage: {config.stage}) means the student of an earlier stage, and this run has no "
        "`stages`; name a model with teacher.model"
    )
