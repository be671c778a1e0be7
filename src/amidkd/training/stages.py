"""The stages of a run, each in a folder of its own, each complete by one rename: a restarted run skips what is done."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig
from amidkd.data import Encoded, Encoder, Example, Row, corpus_windows, load_rows, training_rows
from amidkd.errors import SettingError
from amidkd.models import eos_ids_of, pad_id_of
from amidkd.policies import answer_examples, read_answers, write_answers
from amidkd.teachers import LiveTeacher
from amidkd.training.arguments import steps_of, training_arguments, warmup_of
from amidkd.training.checkpoint import chosen_checkpoint, clear_leftovers
from amidkd.training.hooks import Counter
from amidkd.training.settings import Corpus, LossSettings
from amidkd.training.trainer import DistillationTrainer

__all__ = [
    "Answering",
    "Lessons",
    "StageResult",
    "answer_prompts",
    "check_tokens",
    "gather_lessons",
    "load_corpus",
    "read_rows",
    "train_stage",
]

_log = logging.getLogger("amidkd")


@dataclass(frozen=True)
class Lessons:
    """What a run learns from.

    Args:
        examples: Rows as tokens, in the order of the file.
        places: File and line by ``Row.index``.
        counts: How many rows are labelled, answered by the teacher, dropped for which reason, cut.
    """

    examples: list[Example]
    places: list[str]
    counts: dict[str, Any]


@dataclass(frozen=True)
class Answering:
    """What it takes to have the teacher answer.

    Args:
        teacher: The teacher.
        config: The run.
        tokenizer: The student's tokenizer.
        encoder: How prompts become tokens.
        path: Where the answers go.
    """

    teacher: LiveTeacher
    config: RunConfig
    tokenizer: Any
    encoder: Encoder
    path: Path


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


def read_rows(config: RunConfig, encoder: Encoder) -> tuple[Encoded, list[str]]:
    """Read the rows as tokens, saying what is left out.

    Args:
        config: The run.
        encoder: How rows become tokens.

    Returns:
        Examples and prompts, and the place of each row by ``Row.index``.

    Raises:
        SettingError: A row that cannot be used.
    """
    rows = training_rows(config)
    encoded = encoder.encode(rows)
    if encoded.truncated:
        _log.info("%d rows are cut at data.max_length = %d", encoded.truncated, config.data.max_length)
    for reason, number in encoded.dropped.items():
        _log.info("Dropped %d rows: %s", number, reason)
    return encoded, _places(rows)


def gather_lessons(
    encoded: Encoded, places: list[str], answering: Answering | None, *, first: bool, wait: Callable[[], None]
) -> Lessons:
    """All that the run learns from: rows with a completion, and the teacher's answers to the others.

    Args:
        encoded: The rows.
        places: The place of each row by ``Row.index``.
        answering: The teacher that answers, once; None: rows without a completion are dropped.
        first: Whether this process writes.
        wait: Waits for the other processes.

    Raises:
        SettingError: Nothing is left to learn from.
    """
    examples, counts = list(encoded.examples), {"labelled": len(encoded.examples), **encoded.dropped}
    if encoded.truncated:
        counts["cut at max_length"] = encoded.truncated
    if encoded.prompts and answering is not None:
        answered = _answered(encoded.prompts, answering, first=first, wait=wait)
        examples += answered
        counts["answered by the teacher"] = len(answered)
    elif encoded.prompts:
        _log.info("Dropped %d rows: no completion", len(encoded.prompts))
        counts["no completion"] = len(encoded.prompts)
    if not examples:
        raise SettingError(
            "data.train: no row is left to learn from ("
            + ", ".join(f"{number} {reason}" for reason, number in counts.items())
            + "); rows need a completion, or a teacher and data.unlabelled: teacher_answers"
        )
    return Lessons(sorted(examples, key=lambda example: example.row), places, counts)


def check_tokens(lessons: Lessons, vocab_size: int) -> None:
    """Refuse rows with ids that teacher and student do not share, before work starts.

    Args:
        lessons: The rows.
        vocab_size: Size of the shared vocabulary.

    Raises:
        SettingError: With the first such row.
    """
    for example in lessons.examples:
        largest = max(example.tokens)
        if largest >= vocab_size:
            raise SettingError(
                f"{lessons.places[example.row]}: token {largest} lies beyond the {vocab_size} ids that teacher and "
                "student share; remove it from the row or its template"
            )


def _places(rows: Sequence[Row]) -> list[str]:
    places = [""] * (1 + max((row.index for row in rows), default=-1))
    for row in rows:
        places[row.index] = row.where
    return places


def _answered(prompts: Sequence[Row], answering: Answering, *, first: bool, wait: Callable[[], None]) -> list[Example]:
    if first:
        answer_prompts(prompts, answering)
    # The others wait without a time-out of the process group: answers can take hours.
    while not answering.path.is_file():
        time.sleep(0.2)
    wait()
    return answer_examples(read_answers(answering.path), answering.encoder)


def answer_prompts(prompts: Sequence[Row], answering: Answering) -> int:
    """Have the teacher answer prompts; a complete file made with the same settings is left as it is.

    Args:
        prompts: Rows to answer.
        answering: Teacher, settings and file.

    Returns:
        How many answers the file holds.
    """
    teacher, data = answering.teacher, answering.config.data
    if answering.path.is_file():
        _log.info("The teacher's answers are in %s already", answering.path)
    else:
        _log.info("The teacher answers %d prompts, once, into %s", len(prompts), answering.path)
    with Counter(len(prompts) * data.generation.samples_per_prompt, name="answers") as counter:
        return write_answers(
            prompts,
            model=teacher.model,
            tokenizer=answering.tokenizer,
            encoder=answering.encoder,
            config=data.generation,
            eos_ids=_endings(answering),
            pad_id=pad_id_of(answering.tokenizer),
            vocab_size=teacher.vocab_size,
            fingerprint=teacher.fingerprint(),
            path=answering.path,
            progress=counter,
        )


def _endings(answering: Answering) -> tuple[int, ...]:
    return eos_ids_of(answering.tokenizer, answering.teacher.model)


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
    teacher: LiveTeacher | None = None,
    policy: Any = None,
    corpus: Corpus | None = None,
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
        corpus=corpus,
        settings=settings,
        places=lessons.places,
        name=name,
        show_progress=not (config.training.model_extra or {}).get("disable_tqdm", False),
    )
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
