"""A run under way: settings, folder, processes, tokenizer and teacher, as each verb needs them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig, live_teacher
from amidkd.data import Encoder
from amidkd.errors import SettingError
from amidkd.models import load_tokenizer, student_tokenizer
from amidkd.record import RunFolder
from amidkd.teachers import LiveTeacher, Teacher, make_live, make_teacher, teacher_tokenizer
from amidkd.training.answering import Answering
from amidkd.training.arguments import check_training_settings, training_arguments
from amidkd.training.observing import Observer

__all__ = ["Run", "answering_of", "begin", "load_teacher"]


@dataclass
class Run:
    """A run under way: what every part of it needs. ``whole`` is the run file, of which it may be a stage;
    ``observer`` follows its training; ``shared`` holds what it has in common with other runs of a sweep.
    """

    config: RunConfig
    verb: str
    folder: RunFolder
    rank: int
    wait: Callable[[], None]
    device: Any
    processes: int
    whole: RunConfig
    tokenizer: Any = None
    teacher: Teacher | None = None
    observer: Observer | None = None
    shared: Path | None = None
    _loaded: LiveTeacher | None = None

    @property
    def in_memory(self) -> LiveTeacher | None:
        """The teacher's model where it is in memory already."""
        return self.teacher if isinstance(self.teacher, LiveTeacher) else self._loaded

    def writer(self) -> LiveTeacher:
        """The teacher's model, loaded where it is not in memory.

        Raises:
            SettingError: The teacher has no model that could be loaded here.
        """
        if self.in_memory is None:
            self._loaded = _loaded_writer(self)
        assert self.in_memory is not None
        return self.in_memory

    def let_go_of_writer(self) -> None:
        """Free a model that was loaded to write: the teacher of the training is another."""
        self._loaded = None

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def close(self) -> None:
        """Let go of what the teacher holds: threads, files, connections."""
        if self.teacher is not None:
            self.teacher.close()

    def note(self, **entries: Any) -> None:
        """Write to the record, from the first process."""
        if self.first:
            self.folder.update_record(**entries)


def begin(config: RunConfig, verb: str, whole: RunConfig | None = None) -> Run:
    """Check the settings, start the process group, load the tokenizer."""
    check_training_settings(config)
    folder = RunFolder(Path(config.output.folder))
    if folder.path.exists() and not folder.path.is_dir():
        raise SettingError(f"output.folder: {folder.path} is a file; name a folder")
    arguments = training_arguments(config, folder.path)
    run = Run(
        config=config,
        verb=verb,
        folder=folder,
        rank=arguments.process_index,
        wait=arguments.distributed_state.wait_for_everyone,
        device=arguments.device,
        processes=arguments.world_size,
        whole=config if whole is None else whole,
    )
    source = student_tokenizer(config.student, teacher_tokenizer(config.teacher, folder.path))
    run.tokenizer = load_tokenizer(source, trust_remote_code=config.student.trust_remote_code)
    return run


def load_teacher(run: Run) -> None:
    """Get the run's teacher ready, where it has one.

    Raises:
        SettingError: It cannot be used, or shares no vocabulary with the student.
    """
    if run.config.teacher is not None:
        run.teacher = make_teacher(
            run.config.teacher,
            student_tokenizer=run.tokenizer,
            folder=run.folder.path,
            device=run.device,
            seed=run.config.training.seed,
        )


def _loaded_writer(run: Run) -> LiveTeacher:
    teacher = run.config.teacher
    model = live_teacher(teacher)
    if teacher is None or model is None:
        where = "there is none" if teacher is None else f"teacher.kind: {teacher.kind} has none here"
        raise SettingError(
            f"the teacher's model has to write text, and {where}; write the text where the model is (amidkd generate) "
            "and name its folder in policy.folder, or set data.unlabelled: drop"
        )
    if model.alignment == "text":
        raise SettingError(
            "teacher.alignment: text: a teacher with another tokenizer does not write the student's tokens; give rows "
            "a completion, drop those without (data.unlabelled: drop), or have the text written by a run of its own "
            "(amidkd generate with a student of the teacher's tokenizer) and use it as data.train"
        )
    return make_live(model, student_tokenizer=run.tokenizer, device=run.device)


def answering_of(run: Run, encoder: Encoder) -> Answering:
    """What it takes to have text written in a run.

    Args:
        run: The run.
        encoder: How prompts become tokens.
    """
    return Answering(
        config=run.config,
        teacher=None if run.config.teacher is None else run.writer,
        tokenizer=run.tokenizer,
        encoder=encoder,
        device=run.device,
        folder=run.folder.generated,
        rank=run.rank,
        world=run.processes,
    )
