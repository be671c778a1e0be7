"""``amidkd eval``: a run's student beside its teacher, into the run's record."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch

from amidkd.config import PretrainedStudent, RunConfig, live_teacher
from amidkd.data import Encoder, Row, evaluation_rows
from amidkd.errors import SettingError, SettingWarning
from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.held_out import question
from amidkd.evaluation.scores import write_scores
from amidkd.evaluation.suite import ModelResult, estimates_of, evaluate_model
from amidkd.models import load_model, load_tokenizer
from amidkd.record import RunFolder, now, write_json_lines
from amidkd.teachers import LiveTeacher, make_live

__all__ = ["evaluate_run", "sample_lines", "to_record", "write_evaluation"]

_log = logging.getLogger("amidkd")


def evaluate_run(config: RunConfig, folder: RunFolder, *, student: str | Path | None = None) -> dict[str, Any]:
    """Measure a run's student and teacher on the same held-out rows.

    Writes ``results.evaluation`` of ``record.json``, ``samples.jsonl`` and ``scores.npz``.

    Args:
        config: The run's settings.
        folder: The run folder.
        student: A model folder to measure instead; default: the run's ``student/``, or before training the model
            that ``student.model`` names.

    Returns:
        The entry written to the record: ``data``, ``settings``, ``student``, ``teacher``, ``difference`` (student −
        teacher, paired by prompt), ``missing``.

    Raises:
        SettingError: No held-out rows, no student yet, a teacher with another tokenizer.
    """
    source = _student_source(config, folder, student)
    rows = evaluation_rows(config)
    file = config.evaluation.data or config.data.validation or config.data.train
    tokenizer = load_tokenizer(source, trust_remote_code=config.student.trust_remote_code)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    teacher, source_of_teacher = _teacher(config, tokenizer, device)
    model = _load_student(config, source, device)
    _log.info("Evaluating %s on %d rows of %s", source, len(rows), Path(file).name)
    encoder = Encoder(tokenizer, config.data)
    found = _measure(model, config, tokenizer, rows, encoder, teacher, name="student")
    reference = None
    if teacher is not None:
        reference = _measure(teacher.model, config, tokenizer, rows, encoder, teacher, name="teacher")
    return write_evaluation(
        config,
        folder,
        found,
        reference,
        file=str(file),
        models={"student": (str(source), model), "teacher": (str(source_of_teacher), getattr(teacher, "model", None))},
    )


def write_evaluation(
    config: RunConfig,
    folder: RunFolder,
    student: ModelResult,
    teacher: ModelResult | None,
    *,
    file: str,
    models: Mapping[str, tuple[str, Any]],
) -> dict[str, Any]:
    """Write ``results.evaluation`` of the record, ``samples.jsonl`` and ``scores.npz``.

    Args:
        config: The run's settings.
        folder: The run folder.
        student: The student's result.
        teacher: The teacher's on the same rows, or None.
        file: Where the rows came from.
        models: Folder or hub name and model of ``student`` and ``teacher``.

    Returns:
        The entry written to the record.
    """
    entry = {
        "data": {"file": file, "rows": len(student.held_out.rows), **_counts(student)},
        "settings": {**config.evaluation.model_dump(mode="json"), "max_new_tokens": _longest(config)},
        "evaluated": now(),
        **to_record(student, teacher, Bootstrap(config.evaluation.bootstrap, config.evaluation.confidence)),
    }
    for side, (source, model) in models.items():
        if side in entry:
            entry[side]["model"] = source
            entry[side]["parameters"] = _parameters(model)
    write_json_lines(folder.samples_file, sample_lines(student, teacher, kept=config.evaluation.samples_kept))
    write_scores(folder.scores_file, {"": (student, teacher)})
    folder.update_record(results={"evaluation": entry})
    return entry


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
        entry["teacher"] = _side(teacher, bootstrap, without=_DISTANCES)
        shared = [name for name in student.scores if name in teacher.scores and name not in _DISTANCES]
        gaps = {name: bootstrap.gap(student.scores[name], teacher.scores[name]) for name in shared}
        entry["difference"] = {"metrics": {name: gap.to_json() for name, gap in gaps.items()}}
    return entry


_DISTANCES = (
    "kl_teacher_student",
    "kl_student_teacher",
    "top1_agreement",
    "acceptance",
    "kl_student_teacher_on_samples",
    "acceptance_on_samples",
)


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


def _student_source(config: RunConfig, folder: RunFolder, student: str | Path | None) -> str | Path:
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


def _teacher(config: RunConfig, tokenizer: Any, device: Any) -> tuple[LiveTeacher | None, str | None]:
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
            stacklevel=3,
        )
        return None, None
    if config.teacher.kind == "ensemble":
        _log.info("Of the teachers, the student is held against %s", named.title)
    return make_live(named, student_tokenizer=tokenizer, device=device), named.model


def _load_student(config: RunConfig, source: str | Path, device: Any) -> Any:
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


def _measure(
    model: Any,
    config: RunConfig,
    tokenizer: Any,
    rows: Sequence[Row],
    encoder: Encoder,
    teacher: LiveTeacher | None,
    *,
    name: str,
) -> ModelResult:
    return evaluate_model(
        model,
        tokenizer=tokenizer,
        rows=rows,
        encoder=encoder,
        config=config.evaluation,
        max_new_tokens=_longest(config),
        teacher=teacher,
        memory_mb=config.kernels.memory_mb or 128.0,
        name=name,
    )


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
    }
