"""The models of an evaluation: a run's student, and the teacher that it is held against."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import torch

from amidkd.config import PretrainedStudent, RunConfig, live_teacher
from amidkd.errors import SettingError, SettingWarning
from amidkd.models import load_model, load_tokenizer
from amidkd.record import RunFolder
from amidkd.teachers import LiveTeacher, make_live

__all__ = ["Pair", "load_pair", "source_of"]

_log = logging.getLogger("amidkd")


@dataclass(frozen=True)
class Pair:
    """A student and its teacher.

    Args:
        student: The student's model.
        tokenizer: Its tokenizer.
        source: Where the student came from.
        teacher: The teacher, or None where there is none that can be loaded here.
        teacher_source: Where it came from.
        device: Where both are.
    """

    student: Any
    tokenizer: Any
    source: str
    teacher: LiveTeacher | None
    teacher_source: str | None
    device: torch.device

    @property
    def models(self) -> dict[str, tuple[str, Any]]:
        """Folder or hub name and model of ``student`` and, where there is one, ``teacher``."""
        found = {"student": (self.source, self.student)}
        if self.teacher is not None:
            found["teacher"] = (str(self.teacher_source), self.teacher.model)
        return found


def source_of(config: RunConfig, folder: RunFolder, student: str | Path | None = None) -> str | Path:
    """Where the student is: the folder given, the run's ``student/``, or before training what ``student.model`` names.

    Args:
        config: The run's settings.
        folder: The run folder.
        student: A model folder to take instead.

    Raises:
        SettingError: The run has no student yet.
    """
    if student is not None:
        return student
    if folder.student.is_dir():
        return folder.student
    if isinstance(config.student, PretrainedStudent):
        _log.info("%s has no student yet: evaluating student.model as it is before training", folder.path.name)
        return config.student.model
    raise SettingError(
        f"{folder.path} has no student yet; train it first: amidkd distill {os.path.relpath(folder.path)}"
    )


def load_pair(config: RunConfig, source: str | Path) -> Pair:
    """Load a student and its teacher.

    Args:
        config: The run's settings.
        source: Where the student is.

    Raises:
        SettingError: A teacher with another tokenizer, a folder without a model.
    """
    tokenizer = load_tokenizer(source, trust_remote_code=config.student.trust_remote_code)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    teacher, teacher_source = _teacher(config, tokenizer, device)
    return Pair(_student(config, source, device), tokenizer, str(source), teacher, teacher_source, device)


def _teacher(config: RunConfig, tokenizer: Any, device: torch.device) -> tuple[LiveTeacher | None, str | None]:
    """The model that the student is held against, and where it is; of several teachers, the first here."""
    named = live_teacher(config.teacher)
    if config.teacher is None:
        return None, None
    if named is None or named.alignment == "text":
        why = f"teacher.kind: {config.teacher.kind} has no model that can be loaded here"
        if named is not None:
            why = "teacher.alignment: text: the teacher has other tokens"
        warn(
            f"{why}, so the student is measured alone; to measure it against another model: "
            "teacher={kind: live, model: ...}",
            SettingWarning,
            stacklevel=4,
        )
        return None, None
    if config.teacher.kind == "ensemble":
        _log.info("Of the teachers, the student is held against %s", named.title)
    return make_live(named, student_tokenizer=tokenizer, device=device), named.model


def _student(config: RunConfig, source: str | Path, device: torch.device) -> Any:
    """The student's model; where its folder holds adapters alone, on top of the model that they were trained on."""
    base, adapter = source, None
    path = Path(source)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        if not isinstance(config.student, PretrainedStudent):
            raise SettingError(
                f"{source} holds adapters without the model below them, which was made for this run; "
                "train with student.lora.merge: true"
            )
        base, adapter = config.student.model, source
    return load_model(
        base,
        dtype=config.student.dtype,
        device=device,
        adapter=adapter,
        trust_remote_code=config.student.trust_remote_code,
    )
