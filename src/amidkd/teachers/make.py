"""The one place that decides what kind of teacher a run has."""

from pathlib import Path
from typing import Any

from amidkd.config import CachedTeacher, EnsembleTeacher, LiveTeacher, ServedTeacher, TeacherConfig
from amidkd.errors import SettingError
from amidkd.teachers.base import Teacher
from amidkd.teachers.live import make_live

__all__ = ["make_teacher"]


def make_teacher(config: TeacherConfig, *, student_tokenizer: Any, folder: Path, device: Any = None) -> Teacher:
    """Make a run's teacher and prove that it shares the student's vocabulary.

    Args:
        config: The run file's ``teacher``.
        student_tokenizer: What the sequences are made with.
        folder: The run folder, where a cache is unless its section names another place.
        device: The student's device.

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

        return open_cache(config, folder=folder, **shared)
    if isinstance(config, ServedTeacher):
        from amidkd.teachers.served import connect

        return connect(config, **shared)
    if isinstance(config, EnsembleTeacher):
        from amidkd.teachers.ensemble import make_ensemble

        members = [make_teacher(member, folder=folder, **shared) for member in config.teachers]
        return make_ensemble(config, members)
    raise SettingError(f"teacher.kind: stage (stage: {config.stage}) has a meaning in `stages` alone")
