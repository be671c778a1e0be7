"""What an evaluation leaves behind: its entry in the record, ``samples.jsonl`` and ``scores.npz``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amidkd.config import RunConfig
from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.held_out import question
from amidkd.evaluation.row_sets import MAIN, TEXT
from amidkd.evaluation.scores import write_scores
from amidkd.evaluation.suite import ModelResult, estimates_of
from amidkd.record import RunFolder, now, write_json_lines

__all__ = ["DISTANCES", "Measured", "sample_lines", "to_record", "write_evaluation"]


@dataclass(frozen=True)
class Measured:
    """Both models on one set of rows.

    Args:
        file: Where the rows came from.
        student: The student's result.
        teacher: The teacher's on the same rows, or None.
    """

    file: str
    student: ModelResult
    teacher: ModelResult | None


def write_evaluation(
    config: RunConfig,
    folder: RunFolder,
    student: ModelResult,
    teacher: ModelResult | None,
    *,
    file: str,
    models: Mapping[str, tuple[str, Any]],
    beside: Mapping[str, Measured] | None = None,
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``results.evaluation`` of the record, ``samples.jsonl`` and ``scores.npz``.

    Args:
        config: The run's settings.
        folder: The run folder.
        student: The student's result.
        teacher: The teacher's on the same rows, or None.
        file: Where the rows came from.
        models: Folder or hub name and model of ``student`` and ``teacher``.
        beside: Results on other rows: plain text under ``text``, and tasks of the suite under their names.
        extras: Further entries, such as ``speed``.

    Returns:
        The entry written to the record.
    """
    bootstrap = Bootstrap(config.evaluation.bootstrap, config.evaluation.confidence)
    sets = {MAIN: Measured(file, student, teacher), **(beside or {})}
    entry = {
        "settings": {**config.evaluation.model_dump(mode="json"), "max_new_tokens": _longest(config)},
        "evaluated": now(),
        **_of_rows(sets[MAIN], bootstrap),
        **(extras or {}),
    }
    for side, (source, model) in models.items():
        if side in entry:
            entry[side]["model"] = source
            entry[side]["parameters"] = _parameters(model)
    if TEXT in sets:
        text = to_record(sets[TEXT].student, sets[TEXT].teacher, bootstrap)
        for side in ("student", "teacher", "difference"):
            if side in text:
                entry[side]["metrics"] |= text[side]["metrics"]
        entry["data"]["text"] = {"file": sets[TEXT].file, "rows": len(sets[TEXT].student.held_out.rows)}
    tasks = [name for name in sets if name not in (MAIN, TEXT)]
    if tasks:
        entry["suite"] = {name: _of_rows(sets[name], bootstrap) for name in tasks}
    kept = config.evaluation.samples_kept
    lines = [
        line if name == MAIN else {"task": name, **line}
        for name in (MAIN, *tasks)
        for line in sample_lines(sets[name].student, sets[name].teacher, kept=kept)
    ]
    write_json_lines(folder.samples_file, lines)
    write_scores(folder.scores_file, {name: (found.student, found.teacher) for name, found in sets.items()})
    folder.update_record(results={"evaluation": entry})
    return entry


def _of_rows(found: Measured, bootstrap: Bootstrap) -> dict[str, Any]:
    rows = len(found.student.held_out.rows)
    data = {"file": found.file, "rows": rows, **_counts(found.student)}
    return {"data": data, **to_record(found.student, found.teacher, bootstrap)}


def to_record(student: ModelResult, teacher: ModelResult | None, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """Results as a record holds them.

    Args:
        student: The student's.
        teacher: The teacher's on the same rows, or None.
        bootstrap: How intervals are made; default: as :class:`~amidkd.evaluation.Bootstrap` is.
    """
    bootstrap = bootstrap or Bootstrap()
    entry: dict[str, Any] = {"student": _side(student, bootstrap), "missing": list(student.missing)}
    if teacher is not None:
        # A teacher is no distance from itself; those rows would only say that 0 is 0.
        entry["teacher"] = _side(teacher, bootstrap, without=DISTANCES)
        shared = [name for name in student.scores if name in teacher.scores and name not in DISTANCES]
        gaps = {name: bootstrap.gap(student.scores[name], teacher.scores[name]) for name in shared}
        entry["difference"] = {"metrics": {name: gap.to_json() for name, gap in gaps.items()}}
    return entry


DISTANCES = (
    "kl_teacher_student",
    "kl_student_teacher",
    "top1_agreement",
    "acceptance",
    "kl_student_teacher_on_samples",
    "acceptance_on_samples",
)
"""Distances from the teacher, which mean nothing for the teacher itself."""


def _side(result: ModelResult, bootstrap: Bootstrap, without: Sequence[str] = ()) -> dict[str, Any]:
    found = estimates_of({name: scores for name, scores in result.scores.items() if name not in without}, bootstrap)
    metrics = {name: estimate.to_json() for name, estimate in found.items()}
    return {"metrics": metrics, "seconds": round(result.seconds, 3)}


def sample_lines(student: ModelResult, teacher: ModelResult | None, *, kept: int) -> list[Mapping[str, Any]]:
    """Lines of ``samples.jsonl``: prompts with what both answer, in the order of the rows.

    Args:
        student: The student's result.
        teacher: The teacher's on the same rows, or None.
        kept: How many.
    """
    if student.greedy is None:
        return []
    held_out = student.held_out
    divergence = student.scores.get("kl_teacher_student")
    lines: list[Mapping[str, Any]] = []
    for place, index in enumerate(held_out.asked[:kept]):
        answers = {}
        if teacher is not None and teacher.greedy is not None:
            answers["teacher, greedy"] = teacher.greedy.texts[place]
        answers["student, greedy"] = student.greedy.texts[place]
        answers["student, sampled"] = student.sampled[0].texts[place]
        row = held_out.rows[index]
        line: dict[str, Any] = {
            "row": row.where,
            "prompt": question(row),
            "references": list(held_out.references[index]),
            "answers": answers,
        }
        if divergence is not None and divergence.counts[index] > 0 and np.isfinite(divergence.sums[index]):
            line["kl_teacher_student"] = float(divergence.sums[index] / divergence.counts[index])
        lines.append(line)
    return lines


def _longest(config: RunConfig) -> int:
    return config.evaluation.max_new_tokens or config.data.generation.max_new_tokens


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _counts(result: ModelResult) -> dict[str, Any]:
    held_out = result.held_out
    texts = [text for text in held_out.texts if text is not None]
    return {
        "rows_with_completion": len(texts),
        "supervised_tokens": sum(text.token_count() for text in texts),
        "rows_dropped": held_out.dropped,
        "rows_truncated": held_out.truncated,
        "prompts_at_limit": held_out.full,
    }
