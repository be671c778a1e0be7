"""The stages of a run, each in a folder of its own, each complete by one rename: a restarted run skips what is done."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig
from amidkd.data import Example, corpus_windows, load_rows
from amidkd.errors import SettingError
from amidkd.teachers import Teacher
from amidkd.training.arguments import steps_of, training_arguments, warmup_of
from amidkd.training.checkpoint import chosen_checkpoint, clear_leftovers
from amidkd.training.lessons import Lessons
from amidkd.training.observing import Observer, ObserverHook
from amidkd.training.settings import Corpus, LossSettings
from amidkd.training.trainer import DistillationTrainer

__all__ = ["StageResult", "load_corpus", "stage_arguments", "train_stage"]

_log = logging.getLogger("amidkd")


@dataclass(frozen=True)
class StageResult:
    """What a stage took, as the record holds it."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_mb: float
    backend: str
    loss: float | None

    def as_record(self) -> dict[str, Any]:
        """The entry of ``record.json``."""
        return dict(vars(self))


def load_corpus(config: RunConfig, tokenizer: Any, *, vocab_size: int | None) -> Corpus | None:
    """The plain text of ``data.corpus`` in windows, or None where there is none.

    Args:
        config: The run.
        tokenizer: The student's tokenizer.
        vocab_size: Ids from here on cannot be learnt.

    Raises:
        SettingError: A file that cannot be used.
    """
    settings = config.data.corpus
    if settings is None:
        return None
    rows = load_rows(settings.source, split=settings.split)
    windows = corpus_windows(rows, tokenizer, max_length=settings.max_length)
    largest = max(max(window.tokens) for window in windows)
    if vocab_size is not None and largest >= vocab_size:
        raise SettingError(
            f"data.corpus: it holds token {largest}, beyond the {vocab_size} ids that teacher and student share"
        )
    _log.info("Plain text: %d windows of %d tokens", len(windows), settings.max_length)
    return Corpus(windows, weight=settings.weight, per_step=settings.batch_size)


def train_stage(
    config: RunConfig,
    folder: Path,
    *,
    name: str,
    student: Any,
    tokenizer: Any,
    lessons: Lessons,
    loss: LossSettings,
    settings: dict[str, Any],
    differing: dict[str, Any] | None = None,
    teacher: Teacher | None = None,
    policy: Any = None,
    corpus: Corpus | None = None,
    observer: Observer | None = None,
    watched: Sequence[Example] = (),
) -> StageResult:
    """Train a student in a folder, going on from the checkpoint that the run file asks for.

    Args:
        config: The run.
        folder: The stage's folder.
        name: What the progress bar calls it.
        student: The model; it is trained in place.
        tokenizer: Its tokenizer.
        lessons: The rows.
        loss: What to minimise.
        settings: What a checkpoint must have been made with.
        differing: Training settings that differ from the run file's in this stage.
        teacher: What to learn from, or None.
        policy: Whose sequences are learnt from.
        corpus: Plain text beside the rows.
        observer: Follows the training.
        watched: Rows of the validation loss that the observer asks for.
    """
    arguments = stage_arguments(config, folder, len(lessons.examples), differing)
    # Trainer switches the cache off in the student's configuration, which is saved with it.
    cached = getattr(student.config, "use_cache", None)
    trainer = DistillationTrainer(
        student=student,
        tokenizer=tokenizer,
        arguments=arguments,
        examples=lessons.examples,
        loss=loss,
        teacher=teacher,
        policy=policy,
        validation=lessons.validation,
        corpus=corpus,
        settings=settings,
        places=lessons.places,
        name=name,
        show_progress=not (config.training.model_extra or {}).get("disable_tqdm", False),
    )
    if observer is not None:
        trainer.add_callback(ObserverHook(trainer, observer, watched))
    if trainer.is_world_process_zero():
        clear_leftovers(folder)
    resume = config.training.resume_from_checkpoint
    # A checkpoint named by its path is the main stage's.
    trainer.fit(chosen_checkpoint(folder, bool(resume) if folder != Path(config.output.folder) else resume))
    student.config.use_cache = cached
    return _result(trainer)


def stage_arguments(config: RunConfig, folder: Path, examples: int, differing: dict[str, Any] | None) -> Any:
    """The trainer's arguments with the steps of warm-up counted out."""
    arguments = training_arguments(config, folder, **(differing or {}))
    # Versions of transformers differ in what a fraction here means.
    arguments.warmup_steps = warmup_of(config.training.warmup_steps, steps_of(arguments, examples))
    return arguments


def _result(trainer: DistillationTrainer) -> StageResult:
    progress = trainer.progress
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return StageResult(
        steps=trainer.state.global_step,
        tokens=progress.tokens,
        seconds=progress.seconds,
        tokens_per_second=progress.tokens / progress.seconds if progress.seconds > 0 else 0.0,
        peak_memory_mb=progress.peak_memory_mb,
        backend=trainer.last_backend,
        loss=lines[-1]["loss"] if lines else None,
    )
