"""A run's teacher beside its rows: what goes together, what it must know, weights that are searched."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import warn

from accelerate.utils import broadcast_object_list

from amidkd.config import (
    CachedTeacher,
    ContrastivePolicy,
    EnsembleTeacher,
    LiveTeacher,
    RunConfig,
    ServedTeacher,
    WarmupPolicy,
    live_teacher,
    members_of,
)
from amidkd.data import Encoder, Example, Row, evaluation_rows
from amidkd.errors import SettingError, SettingWarning
from amidkd.models import pad_id_of
from amidkd.policies import writes_while_training
from amidkd.teachers import Teacher
from amidkd.teachers.cached import CachedTeacher as OpenCache
from amidkd.teachers.ensemble import EnsembleTeacher as Ensemble
from amidkd.training.lessons import Lessons, Material

__all__ = ["check_teacher", "held_out_examples", "prepare_teacher", "templates_of"]

_log = logging.getLogger("amidkd")


def check_teacher(config: RunConfig, verb: str) -> None:
    """Refuse settings of the teacher that do not go with the others, before anything is loaded.

    Args:
        config: The run.
        verb: ``distill`` or ``sft``.

    Raises:
        SettingError: Naming the setting.
    """
    teacher = config.teacher
    if teacher is None or verb == "sft":
        return
    if isinstance(config.policy, WarmupPolicy) and live_teacher(teacher) is None:
        raise SettingError(
            f"policy.kind: warmup has the teacher write, and teacher.kind: {teacher.kind} has no model here "
            "that could; give one with teacher.kind: live"
        )
    if isinstance(teacher, LiveTeacher) and teacher.alignment == "text":
        _check_text(config)
    for member in members_of(teacher):
        if isinstance(member, CachedTeacher) and writes_while_training(config.policy):
            raise SettingError(
                f"teacher.kind: cached with policy.kind: {config.policy.kind}: the student writes text while it "
                "learns, and a cache holds only what the teacher said of text that was there before. Use teacher.kind: "
                "live or served, or policy.kind: dataset or sequence_level"
            )
        if isinstance(member, LiveTeacher) and member.alignment == "text" and isinstance(teacher, EnsembleTeacher):
            raise SettingError(
                f"teacher.alignment: text ({member.title}) has no meaning in an ensemble, whose teachers speak of the "
                "same tokens; use it alone, or distil from it in a stage of its own"
            )
        if isinstance(member, CachedTeacher) and member.format == "samples":
            _check_samples(config, alone=member is teacher)
        if isinstance(member, CachedTeacher | ServedTeacher) and member.format == "top_k":
            _warn_of_tail(config)
        form = member.format if isinstance(member, CachedTeacher | ServedTeacher) else "hidden"
        if form != "hidden" and config.objective.temperature != 1:
            raise SettingError(
                f"objective.temperature = {config.objective.temperature:g} with teacher.format: {form}: the tail of a "
                "truncated distribution cannot be tempered; use temperature 1, or teacher.format: hidden"
            )


def _check_text(config: RunConfig) -> None:
    """A teacher with another tokenizer speaks of spans of text, not of the student's tokens."""
    policy, by = config.policy, config.objective.weighting.by
    if isinstance(policy, WarmupPolicy):
        raise SettingError(
            "teacher.alignment: text with policy.kind: warmup: the teacher would have to go on with the student's "
            "tokens; use a teacher with the student's tokenizer"
        )
    if by in ("teacher_entropy", "disagreement"):
        raise SettingError(
            f"objective.weighting.by: {by} with teacher.alignment: text: the teacher does not speak of each token; use "
            "student_entropy or none"
        )
    if isinstance(policy, ContrastivePolicy) and policy.adaptive_skew:
        raise SettingError(
            "policy.adaptive_skew with teacher.alignment: text: the teacher does not speak of each token; "
            "set it to false"
        )


def _warn_of_tail(config: RunConfig) -> None:
    """Some objectives weigh what a truncated teacher does not list."""
    objective = config.objective
    for term in objective.terms if objective.terms is not None else [objective]:
        name, between = term.divergence.name, term.between
        reverse = (name, between) in (("kl", "student||teacher"), ("reverse_kl", "teacher||student"))
        if reverse or name in ("jeffreys", "alpha_beta"):
            warn(
                f"teacher.format: top_k with {name} between {between}: this objective weighs the tokens that are not "
                "listed, and with a flat teacher its gradient was 16 to 22 % off at 64 of 512 tokens "
                "(docs/choose/teacher.md); use teacher.format: hidden, or a larger teacher.top_k",
                SettingWarning,
                stacklevel=4,
            )
            return


def _check_samples(config: RunConfig, *, alone: bool) -> None:
    """Draws estimate the teacher's probabilities; only a loss that is linear in them is estimated without bias."""
    objective = config.objective
    use = "use teacher.format: top_k or hidden"
    if not alone:
        raise SettingError(f"teacher.format: samples in an ensemble: mixtures of estimates are biased; {use}")
    for term in objective.terms if objective.terms is not None else [objective]:
        forward = (("kl", "teacher||student"), ("reverse_kl", "student||teacher"))
        if (term.divergence.name, term.between) not in forward:
            raise SettingError(
                "teacher.format: samples is for forward KL (kl between teacher||student), which is linear in the "
                f"teacher's probabilities; the objective has {term.divergence.name} between {term.between}; {use}"
            )
    if objective.weighting.by in ("teacher_entropy", "disagreement"):
        raise SettingError(
            f"objective.weighting.by: {objective.weighting.by} with teacher.format: samples: the draws do not "
            f"tell; {use}"
        )


def prepare_teacher(
    teacher: Teacher | None,
    config: RunConfig,
    *,
    encoder: Encoder,
    material: Material,
    lessons: Lessons,
    device: Any,
) -> dict[str, Any]:
    """Tell a teacher whose rows are whose, make sure that it knows them, and search weights where that is asked for.

    Args:
        teacher: The run's teacher.
        config: The run.
        encoder: How rows became tokens.
        material: The rows.
        lessons: What the run learns from.
        device: Where signals are looked at.

    Returns:
        What the record keeps of it.

    Raises:
        SettingError: A row that a cache does not hold or that names no teacher; no held-out row to search weights on.
    """
    templates = templates_of(encoder, material.rows)
    if isinstance(teacher, OpenCache):
        teacher.check(lessons.examples, templates=templates, places=lessons.places)
    if not isinstance(teacher, Ensemble) or not isinstance(config.teacher, EnsembleTeacher):
        return {}
    whose: dict[int, int] = {}
    if config.teacher.weights == "by_row":
        used = {example.row for example in lessons.examples}
        whose = teacher.set_rows([row for row in material.rows if row.index in used])
    for number, member in enumerate(teacher.members):
        if isinstance(member, OpenCache):
            own = [each for each in lessons.examples if whose.get(each.row, number) == number]
            member.check(own, templates=templates, places=lessons.places)
    if config.teacher.weights != "search":
        return {}
    return {"teacher_weights": _searched(teacher, config, config.teacher, encoder, device)}


def _searched(
    teacher: Ensemble, config: RunConfig, section: EnsembleTeacher, encoder: Encoder, device: Any
) -> dict[str, float]:
    examples = held_out_examples(
        config, encoder, teacher.vocab_size, section.search.rows, "teacher.weights: search looks at held-out text"
    )
    if any(isinstance(member, OpenCache) for member in teacher.members):
        raise SettingError(
            "teacher.weights: search asks the teachers about held-out rows, which a cache of the training rows does "
            "not hold; give the weights as numbers, or search them with live or served teachers"
        )
    term = config.objective.terms[0] if config.objective.terms is not None else config.objective
    alpha = float(term.alpha) if isinstance(term.alpha, int | float) else -1.0
    found = teacher.choose_weights(
        examples,
        pad_id=pad_id_of(encoder.tokenizer),
        batch_size=config.training.per_device_train_batch_size,
        alpha=alpha,
        device=device,
    )
    # Devices may round differently, and all processes must mix alike.
    shared = broadcast_object_list([found])[0]
    teacher.set_weights(shared)
    titles = [Path(member.title).name for member in section.teachers]
    names = [title if titles.count(title) == 1 else f"{number}: {title}" for number, title in enumerate(titles)]
    weights = dict(zip(names, shared, strict=True))
    shown = ", ".join(f"{name} {weight:.3f}" for name, weight in weights.items())
    _log.info("Weights of the teachers, searched on %d held-out rows: %s", len(examples), shown)
    return weights


def held_out_examples(
    config: RunConfig, encoder: Encoder, vocab_size: int, count: int | None, why: str
) -> Sequence[Example]:
    """Held-out rows with a completion, as tokens.

    Args:
        config: The run.
        encoder: How rows become tokens.
        vocab_size: Ids from here on cannot be learnt.
        count: How many rows at most; None: all.
        why: What asks for them, for messages.

    Raises:
        SettingError: There is none, or one has an id that cannot be learnt.
    """
    if config.data.validation is None and config.data.validation_rows is None:
        raise SettingError(
            f"{why}; name rows in data.validation, or hold rows of the training file out with data.validation_rows"
        )
    # Not the rows that the student is measured on in the end, where those are others.
    own = config.evaluation.model_copy(update={"data": None, "max_rows": None})
    rows = [row for row in evaluation_rows(config.model_copy(update={"evaluation": own})) if row.labelled][:count]
    examples = encoder.encode(rows).examples
    if not examples:
        raise SettingError(f"{why}, and no validation row has a completion; add some to data.validation")
    for example in examples:
        if max(example.tokens) >= vocab_size:
            raise SettingError(
                f"data.validation: token {max(example.tokens)} lies beyond the {vocab_size} ids that teacher and "
                "student share"
            )
    return [replace(example, row=place) for place, example in enumerate(examples)]


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
