"""What a run learns from: rows as tokens, the prompts that are written to, and text that was written beforehand."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from amidkd.models.facts import text_config
from amidkd.training.answering import student_writes

__all__ = [
    "Lessons",
    "Material",
    "answered_by",
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
        validation: Rows of the validation loss that ``policy.kind: adaptive`` watches.
    """

    examples: list[Example]
    warm: list[Example]
    prompts: dict[int, tuple[int, ...]]
    places: list[str]
    counts: dict[str, Any]
    validation: Sequence[Example] = ()


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
    """The rows whose text is written before training.

    Args:
        config: The run.
        material: Its rows.
        verb: ``distill``, ``sft``, or ``generate``, which answers all rows where all have a completion.
    """
    policy, prompts = config.policy, material.encoded.prompts
    if isinstance(policy, DatasetPolicy):
        if verb == "generate":
            return prompts or [row for row in material.rows if row.text is None]
        return prompts if config.data.unlabelled == "teacher_answers" else []
    if _labels_ignored(config) or (verb == "generate" and not prompts):
        return _with_prompt(material.rows, material)
    needed = config.data.unlabelled == "teacher_answers" and (not _prompts_alone(config) or _warm(config, verb))
    return _with_prompt(prompts, material) if needed or verb == "generate" else []


def gather_lessons(config: RunConfig, material: Material, text: Sequence[Example] | None, *, verb: str) -> Lessons:
    """All that the run learns from.

    Args:
        config: The run.
        material: Its rows.
        text: What was written to the rows that :func:`rows_to_answer` names; None: those are dropped.
        verb: ``distill`` or ``sft``.

    Raises:
        SettingError: Nothing is left to learn from.
    """
    rows, counts = _labelled(config, material)
    if text is not None:
        rows += text
        counts[answered_by(config)] = len(text)
    elif material.encoded.prompts and not _prompts_alone(config):
        _log.info("Dropped %d rows: no completion", len(material.encoded.prompts))
        counts["no completion"] = len(material.encoded.prompts)
    rows.sort(key=lambda example: example.row)
    examples = _bare(material) if _prompts_alone(config) else rows
    warm = rows if _warm(config, verb) or not _prompts_alone(config) else []
    if not examples or (not warm and _warm(config, verb)):
        raise SettingError(_nothing_left(counts, warm=bool(examples)))
    if examples is not rows:
        # Without a warm start nobody looks at what the rows hold beside their prompts.
        idle = () if warm else ("labelled", "cut at max_length")
        counts = {name: number for name, number in counts.items() if name not in idle} | {"prompts": len(examples)}
    return Lessons(examples, warm, material.prompts, material.places, counts)


def answered_by(config: RunConfig) -> str:
    """What the record calls the number of texts that were written before training.

    Args:
        config: The run.
    """
    return f"answered by the {'student' if student_writes(config) else 'teacher'}"


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


def _labels_ignored(config: RunConfig) -> bool:
    """Whether text is written to all prompts, whatever label a row has."""
    policy = config.policy
    if isinstance(policy, ContrastivePolicy):
        return policy.teacher_text == "answers"
    return isinstance(policy, SequenceLevelPolicy)


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
    if _labels_ignored(config):
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
