"""What a run learns from: rows as tokens, the prompts that are written to, and text that was written beforehand."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.config import (
    ContrastivePolicy,
    DatasetPolicy,
    OnPolicy,
    RunConfig,
    SequenceLevelPolicy,
    WarmStartConfig,
    WarmupPolicy,
)
from amidkd.data import Encoded, Encoder, Example, Row, training_rows
from amidkd.errors import SettingError
from amidkd.models import eos_ids_of, pad_id_of
from amidkd.models.facts import text_config
from amidkd.policies import answer_examples, read_answers, write_answers
from amidkd.teachers import LiveTeacher
from amidkd.training.hooks import Counter

__all__ = [
    "Answering",
    "Lessons",
    "Material",
    "answer_prompts",
    "check_room",
    "check_tokens",
    "gather_lessons",
    "read_rows",
    "rows_to_answer",
    "warm_start_of",
]

_log = logging.getLogger("amidkd")


@dataclass(frozen=True)
class Material:
    """The rows of a run, before anyone has answered them.

    Args:
        rows: The rows in the order of the file.
        encoded: The rows as tokens.
        prompts: Ids of each kept row's prompt by ``Row.index``; empty where the policy writes nothing.
        places: File and line by ``Row.index``.
    """

    rows: list[Row]
    encoded: Encoded
    prompts: dict[int, tuple[int, ...]]
    places: list[str]


@dataclass(frozen=True)
class Lessons:
    """What a run learns from.

    Args:
        examples: What the main stage goes through, in the order of the file: rows with text, or the prompts alone
            (nothing supervised) where the student writes all of the text.
        warm: What a warm start trains on: rows with text.
        prompts: Ids of each kept row's prompt by ``Row.index``; empty where the policy writes nothing.
        places: File and line by ``Row.index``.
        counts: How many rows are labelled, answered by the teacher, dropped for which reason, cut.
    """

    examples: list[Example]
    warm: list[Example]
    prompts: dict[int, tuple[int, ...]]
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


def warm_start_of(config: RunConfig) -> WarmStartConfig | None:
    """The warm start of a distillation, or None: on by default for a student from random weights.

    Args:
        config: The run.
    """
    setting = config.student.warm_start
    if isinstance(setting, WarmStartConfig):
        return setting
    wanted = config.student.kind == "from_scratch" if setting is None else setting
    return WarmStartConfig() if wanted else None


def read_rows(config: RunConfig, encoder: Encoder) -> Material:
    """Read the rows as tokens, saying what is left out.

    Args:
        config: The run.
        encoder: How rows become tokens.

    Raises:
        SettingError: A row that cannot be used; plain text under a policy that needs prompts.
    """
    rows = training_rows(config)
    if not isinstance(config.policy, DatasetPolicy):
        _check_prompts(rows, config.policy.kind)
    encoded = encoder.encode(rows)
    if encoded.truncated:
        _log.info("%d rows are cut at data.max_length = %d", encoded.truncated, config.data.max_length)
    for reason, number in encoded.dropped.items():
        _log.info("Dropped %d rows: %s", number, reason)
    prompts = {} if isinstance(config.policy, DatasetPolicy) else _prompts(rows, encoder)
    return Material(rows, encoded, prompts, _places(rows))


def rows_to_answer(config: RunConfig, material: Material, verb: str) -> list[Row]:
    """The rows that someone must answer before training.

    Args:
        config: The run.
        material: Its rows.
        verb: ``distill`` or ``sft``.
    """
    policy = config.policy
    if isinstance(policy, SequenceLevelPolicy):
        return [] if policy.folder is not None else _with_prompt(material.rows, material)
    if isinstance(policy, ContrastivePolicy) and policy.teacher_text == "answers":
        return _with_prompt(material.rows, material)
    if config.data.unlabelled != "teacher_answers":
        return []
    if _prompts_alone(config) and not _warm(config, verb):
        return []
    prompts = material.encoded.prompts
    return prompts if isinstance(policy, DatasetPolicy) else _with_prompt(prompts, material)


def gather_lessons(
    config: RunConfig,
    material: Material,
    answering: Answering | None,
    *,
    verb: str,
    first: bool,
    wait: Callable[[], None],
) -> Lessons:
    """All that the run learns from, with the answers to the rows that :func:`rows_to_answer` names.

    Args:
        config: The run.
        material: Its rows.
        answering: Who answers, once; None: rows without a completion are dropped.
        verb: ``distill`` or ``sft``.
        first: Whether this process writes.
        wait: Waits for the other processes.

    Raises:
        SettingError: Nothing is left to learn from.
    """
    asked = rows_to_answer(config, material, verb)
    text, counts = _labelled(config, material)
    if asked and answering is not None:
        answered = _answered(asked, answering, first=first, wait=wait)
        text += answered
        counts["answered by the teacher"] = len(answered)
    elif material.encoded.prompts and not _prompts_alone(config):
        _log.info("Dropped %d rows: no completion", len(material.encoded.prompts))
        counts["no completion"] = len(material.encoded.prompts)
    text.sort(key=lambda example: example.row)
    examples = _bare(material) if _prompts_alone(config) else text
    warm = text if _warm(config, verb) or not _prompts_alone(config) else []
    if not examples or (not warm and _warm(config, verb)):
        raise SettingError(_nothing_left(counts, warm=bool(examples)))
    if examples is not text:
        counts["prompts"] = len(examples)
    return Lessons(examples, warm, material.prompts, material.places, counts)


def check_room(config: RunConfig, material: Material, models: Mapping[str, Any]) -> None:
    """Refuse prompts that leave no room for the text that the policy writes, before work starts.

    Args:
        config: The run.
        material: Its rows.
        models: Student and teacher by name.

    Raises:
        SettingError: With the first such row.
    """
    sampling = getattr(config.policy, "generation", None)
    if sampling is None:
        return
    most = config.data.max_length
    for name, model in models.items():
        context = getattr(text_config(model), "max_position_embeddings", None)
        for row, prompt in material.prompts.items():
            room = min(sampling.max_new_tokens, most - len(prompt))
            if context is not None and len(prompt) + room > context:
                raise SettingError(
                    f"{material.places[row]}: the prompt has {len(prompt)} tokens, and an answer of up to {room} "
                    f"(policy.generation.max_new_tokens = {sampling.max_new_tokens}, data.max_length = {most}) would "
                    f"pass the {name}'s context of {context}; lower one of the two, or data.max_prompt_length"
                )


def check_tokens(lessons: Lessons, vocab_size: int) -> None:
    """Refuse rows with ids that teacher and student do not share, before work starts.

    Args:
        lessons: The rows.
        vocab_size: Size of the shared vocabulary.

    Raises:
        SettingError: With the first such row.
    """
    shown = lessons.examples if lessons.warm is lessons.examples else [*lessons.examples, *lessons.warm]
    for example in shown:
        largest = max(example.tokens)
        if largest >= vocab_size:
            raise SettingError(
                f"{lessons.places[example.row]}: token {largest} lies beyond the {vocab_size} ids that teacher and "
                "student share; remove it from the row or its template"
            )


def _warm(config: RunConfig, verb: str) -> bool:
    return verb == "distill" and warm_start_of(config) is not None


def _prompts_alone(config: RunConfig) -> bool:
    """Whether the student writes all of the text that the main stage learns from."""
    return isinstance(config.policy, OnPolicy | WarmupPolicy)


def _check_prompts(rows: Sequence[Row], kind: str) -> None:
    plain = next((row for row in rows if row.text is not None), None)
    if plain is not None:
        raise SettingError(
            f"{plain.where}: a data set without prompts: the row is plain `text`, and policy.kind: {kind} needs "
            "a prompt to write to; use rows with `prompt` or `messages`, or policy.kind: dataset"
        )


def _prompts(rows: Sequence[Row], encoder: Encoder) -> dict[int, tuple[int, ...]]:
    found = zip(rows, encoder.prompts_tokens(rows), strict=True)
    return {row.index: tuple(tokens) for row, tokens in found if tokens is not None}


def _with_prompt(rows: Sequence[Row], material: Material) -> list[Row]:
    return [row for row in rows if row.index in material.prompts]


def _bare(material: Material) -> list[Example]:
    return [Example(tokens, (False,) * len(tokens), row) for row, tokens in material.prompts.items()]


def _labelled(config: RunConfig, material: Material) -> tuple[list[Example], dict[str, Any]]:
    """The rows whose own text is learnt from, and how many were left out for what reason."""
    encoded, policy = material.encoded, config.policy
    answered = isinstance(policy, ContrastivePolicy) and policy.teacher_text == "answers"
    if answered or isinstance(policy, SequenceLevelPolicy):
        missing = len(material.rows) - len(material.prompts)
        return [], ({"prompt over the limit": missing} if missing else {})
    examples, counts = list(encoded.examples), {"labelled": len(encoded.examples), **encoded.dropped}
    if not isinstance(policy, DatasetPolicy):
        # A conversation's last prompt may be too long where its first was not.
        examples = [example for example in examples if example.row in material.prompts]
        if len(examples) < len(encoded.examples):
            counts |= {"labelled": len(examples), "last prompt over the limit": len(encoded.examples) - len(examples)}
    if encoded.truncated:
        counts["cut at max_length"] = encoded.truncated
    return examples, counts


def _nothing_left(counts: Mapping[str, Any], *, warm: bool) -> str:
    found = ", ".join(f"{number} {reason}" for reason, number in counts.items())
    if warm:
        return (
            f"student.warm_start: no row has text to start from ({found}); give rows a completion, let the teacher "
            "answer them (data.unlabelled: teacher_answers), or start from a trained student"
        )
    return (
        f"data.train: no row is left to learn from ({found}); rows need a completion, or a teacher and "
        "data.unlabelled: teacher_answers"
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
