"""Text written before training, by the teacher or the student: who writes it, where it goes, and reading it back."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.config import CachedTeacher, PretrainedStudent, RunConfig, SequenceLevelPolicy, live_teacher
from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.data import Encoder, Example, Row
from amidkd.errors import SettingError
from amidkd.generation import Generator, make_generator
from amidkd.models import eos_ids_of, load_tokenizer, pad_id_of
from amidkd.models.facts import text_config
from amidkd.policies.texts import (
    TextSettings,
    answer_examples,
    identity,
    is_complete,
    read_answers,
    sampled_with,
    write_answers,
)
from amidkd.teachers import LiveTeacher, make_live, prove_same_vocabulary
from amidkd.teachers.live import fingerprint_of
from amidkd.training.hooks import Counter

__all__ = ["Answering", "given_folder", "student_writes", "text_examples", "write_text"]

_log = logging.getLogger("amidkd")


@dataclass(frozen=True)
class Answering:
    """What it takes to have text written.

    Args:
        config: The run.
        teacher: Gives the teacher's model, loading it where it is not in memory; None: the run has no teacher.
        tokenizer: The student's tokenizer.
        encoder: How prompts become tokens.
        device: Where a student that writes goes.
        folder: Where the text goes.
        rank: Number of this process.
        world: Number of processes.
    """

    config: RunConfig
    teacher: Callable[[], LiveTeacher] | None
    tokenizer: Any
    encoder: Encoder
    device: Any
    folder: Path
    rank: int
    world: int


def student_writes(config: RunConfig) -> bool:
    """Whether the text of the run is the student's, written before training (ImitKD).

    Args:
        config: The run.
    """
    return isinstance(config.policy, SequenceLevelPolicy) and config.policy.writer == "student"


def given_folder(config: RunConfig) -> Path | None:
    """The folder of text that the run file names, or None.

    Args:
        config: The run.
    """
    policy = config.policy
    return Path(policy.folder) if isinstance(policy, SequenceLevelPolicy) and policy.folder is not None else None


def write_text(rows: Sequence[Row], answering: Answering) -> int:
    """Have rows answered; text that is there already is left as it is. Every process calls it.

    Args:
        rows: Rows to answer.
        answering: Who writes, how and where.

    Returns:
        How many answers the folder holds.

    Raises:
        SettingError: Nobody to write; a prompt that cannot be used; a folder that was made with other settings.
        GenerationError: The engine is gone; what was saved stays.
    """
    writer = _writer(answering)
    if writer is None:
        raise SettingError(
            "policy.writer: teacher needs a `teacher` section to have text written, or policy.folder with text that is "
            "there"
        )
    first, settings = answering.rank == 0, _settings(writer, answering)
    if first and not is_complete(answering.folder):
        _log.info("The %s's text to %d prompts goes to %s, once", settings.origin, len(rows), answering.folder)
    share = -(-len(rows) * settings.config.samples_per_prompt // answering.world)
    with Counter(share, name=f"{settings.origin}'s text") if first else nullcontext() as counter:
        return write_answers(
            rows,
            settings=settings,
            generator=lambda: _generator(writer, settings, answering),
            folder=answering.folder,
            rank=answering.rank,
            world=answering.world,
            progress=counter,
        )


def text_examples(
    rows: Sequence[Row], prompts: Mapping[int, Sequence[int]], answering: Answering
) -> list[Example] | None:
    """The text that a run learns from beside its labels: written first where it is not there.

    A folder that the run file names must hold the text of this run's writer to this run's prompts; how that was
    sampled is its own business.

    Args:
        rows: Rows to answer.
        prompts: Ids of the prompts of all rows, where the folder is named.
        answering: Who writes, how and where.

    Returns:
        The examples, in the order of the rows; None where there is nothing to answer, or nobody to do it.

    Raises:
        SettingError: A folder that cannot be used, naming the fields that differ; see also :func:`write_text`.
    """
    config, folder = answering.config, given_folder(answering.config)
    if folder is not None:
        kept = [(row, prompts[row.index]) for row in rows]
        return answer_examples(read_answers(folder, expected=_identity(kept, answering)), answering.encoder)
    if not rows or (answering.teacher is None and not isinstance(config.policy, SequenceLevelPolicy)):
        return None
    if isinstance(config.teacher, CachedTeacher) and is_complete(answering.folder):
        # The text that the cache speaks of: the model need not be loaded, nor be on this machine, to read it.
        found = zip(rows, answering.encoder.prompts_tokens(rows), strict=True)
        kept = [(row, tokens) for row, tokens in found if tokens is not None]
        expected = {**_identity(kept, answering), **sampled_with(config.data.generation)}
        return answer_examples(read_answers(answering.folder, expected=expected), answering.encoder)
    write_text(rows, answering)
    return answer_examples(read_answers(answering.folder), answering.encoder)


def _identity(kept: Sequence[tuple[Row, Sequence[int]]], answering: Answering) -> dict[str, Any]:
    """Whose text to which prompts a folder must hold."""
    return identity(
        kept,
        origin="student" if student_writes(answering.config) else "teacher",
        writer=_writer_id(answering),
        tokenizer=answering.tokenizer,
        encoder=answering.encoder,
    )


def _writer_id(answering: Answering) -> str | None:
    """What identifies the writer; None where it is not here. A teacher that is not in memory is known by its files."""
    config = answering.config
    if student_writes(config) or config.teacher is None or isinstance(config.teacher, LiveTeacherConfig):
        writer = _writer(answering)
        return None if writer is None else writer.fingerprint()
    named = live_teacher(config.teacher)
    if named is None:
        return None
    tokenizer = load_tokenizer(named.model, trust_remote_code=named.trust_remote_code)
    shared = prove_same_vocabulary(teacher=tokenizer, student=answering.tokenizer)
    return fingerprint_of(named, vocab_size=shared)


def _writer(answering: Answering) -> LiveTeacher | None:
    """Who writes: the teacher, or the student as it is before training, in the same dress."""
    config, student = answering.config, answering.config.student
    if not student_writes(config):
        return None if answering.teacher is None else answering.teacher()
    if not isinstance(student, PretrainedStudent):
        what = "random weights write" if student.kind == "from_scratch" else "layers cut out of a teacher write"
        raise SettingError(
            f"policy.writer: student, with student.kind: {student.kind}: {what} nothing to learn from; train it first "
            "(amidkd sft) and name the folder of that student in student.model, or set policy.writer: teacher"
        )
    shape = LiveTeacherConfig(model=student.model, dtype=student.dtype, trust_remote_code=student.trust_remote_code)
    return make_live(shape, student_tokenizer=answering.tokenizer, device=answering.device)


def _settings(writer: LiveTeacher, answering: Answering) -> TextSettings:
    config, origin = answering.config, student_writes(answering.config)
    source: Any = config.student if origin else live_teacher(config.teacher)
    return TextSettings(
        writer=writer.fingerprint(),
        origin="student" if origin else "teacher",
        name=source.model,
        tokenizer=answering.tokenizer,
        encoder=answering.encoder,
        config=config.data.generation,
        eos_ids=eos_ids_of(answering.tokenizer, writer.model),
        vocab_size=writer.vocab_size,
        context=getattr(text_config(writer.model), "max_position_embeddings", None),
    )


def _generator(writer: LiveTeacher, settings: TextSettings, answering: Answering) -> Generator:
    return make_generator(
        settings.config,
        model=writer.model,
        tokenizer=answering.tokenizer,
        eos_ids=settings.eos_ids,
        pad_id=pad_id_of(answering.tokenizer),
        vocab_size=settings.vocab_size,
        run_folder=answering.folder.parent,
        first=answering.rank == 0,
        rank=answering.rank,
        world=answering.world,
    )
