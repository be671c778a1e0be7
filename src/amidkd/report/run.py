"""The page of one run."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amidkd.citations import Citation, citations_of
from amidkd.config import EnsembleTeacher, RunConfig, dump_yaml, load
from amidkd.errors import SettingError
from amidkd.evaluation.display import Shown, show
from amidkd.evaluation.metrics import METRICS
from amidkd.evaluation.statistics import Estimate
from amidkd.record import RunFolder, read_json_lines
from amidkd.report.costs import cost_table, facts_of, parameters_of, versions_of
from amidkd.report.curves import curves_of_run, lines_of_run, note_on
from amidkd.report.page import Grid, GridRow, Head, render, sample_view
from amidkd.report.words import count, describe_objective, describe_policy, describe_teacher, duration

__all__ = ["sentence_of", "write_report"]

_SIDES = ("student", "teacher", "difference")


def write_report(folder: RunFolder) -> Path:
    """Write ``report.html`` from what the folder's records hold; what is missing is said, with the command for it.

    Args:
        folder: The run.

    Returns:
        Path of the page.

    Raises:
        SettingError: The folder holds neither a run file nor a record.
    """
    record = folder.record()
    if not record and not folder.run_file.is_file():
        raise SettingError(
            f"{folder.path} holds neither run.yaml nor record.json: it is not the folder of a run. "
            "Give the folder named by `output` in the run file"
        )
    config = load(folder.path) if folder.run_file.is_file() else None
    evaluation = record.get("results", {}).get("evaluation")
    lines = lines_of_run(folder)
    return render(
        folder.report_file,
        "run.html.j2",
        title=folder.path.name,
        sentence=sentence_of(record, config),
        folder=shlex.quote(os.path.relpath(folder.path)),
        results=_results(evaluation) if evaluation else None,
        stages=cost_table({folder.path.name: record}),
        facts=facts_of(record),
        figures=curves_of_run(lines),
        curve_note=note_on([lines]),
        samples=[sample_view(entry) for entry in read_json_lines(folder.samples_file)],
        metrics=[METRICS[name] for name in _measured(evaluation)] if evaluation else list(METRICS.values()),
        configuration=dump_yaml(config) if config is not None else None,
        versions=versions_of(record),
        citations=_citations(config),
    )


def _citations(config: RunConfig | None) -> list[Citation]:
    return citations_of(config) if config is not None else []


def sentence_of(record: Mapping[str, Any], config: RunConfig | None) -> str:
    """What a run did and how good it became, in one sentence made from its record.

    Args:
        record: ``record.json``.
        config: The run's settings, or None where they are unknown.
    """
    student, teacher = (parameters_of(record, name) for name in ("student", "teacher"))
    text = f"A student of {count(student)} parameters" if student else "A student"
    distilled = config is not None and config.teacher is not None and record.get("verb", "distill") == "distill"
    if distilled and config is not None:
        where = "" if config.teacher is None else describe_teacher(config.teacher)
        if isinstance(config.teacher, EnsembleTeacher):
            # The size in the record is that of the one that the student is measured against.
            text += f" that learns from {where},"
        else:
            text += f" that learns from a teacher of {count(teacher)}" if teacher else " that learns from its teacher"
            text += f" ({where})" if where else ""
        text += f" by {describe_objective(config.objective)}"
        if config.policy.kind != "dataset":
            text += f" (text: {describe_policy(config.policy)})"
    elif config is not None:
        text += " fine-tuned by cross-entropy"
    text += _effort(record)
    return text + _outcome(record.get("results", {}).get("evaluation")) + "."


def _effort(record: Mapping[str, Any]) -> str:
    stages = record.get("stages", {})
    steps, tokens, seconds = (
        sum(float(stage.get(key, 0)) for stage in stages.values()) for key in ("steps", "tokens", "seconds")
    )
    if not steps:
        return ", not trained yet"
    text = f", trained for {steps:,.0f} steps"
    if "warm_start" in stages:
        text += f" ({stages['warm_start'].get('steps', 0):,} of them fine-tuning first)"
    if tokens:
        text += f" on {count(tokens)} supervised tokens"
    if seconds:
        text += f" in {duration(seconds)}"
    return text + (", not finished" if record.get("started") and not record.get("finished") else "")


def _outcome(evaluation: Mapping[str, Any] | None) -> str:
    """The clause on the most telling metric that was measured."""
    if evaluation is None:
        return "; not evaluated yet"
    told = {
        "exact_match_greedy": "answers {} of the held-out prompts exactly",
        "rouge_l_greedy": "reaches a ROUGE-L of {}",
        "nll": "has an NLL of {} a token on held-out text",
    }
    for name, clause in told.items():
        sides = {side: _estimates(evaluation, side).get(name) for side in ("student", "teacher")}
        student, teacher = sides["student"], sides["teacher"]
        if student is None or (name == "exact_match_greedy" and student.value == 0):
            continue
        text = "; it " + clause.format(_with_error(show(student, METRICS[name])))
        return text + (f", its teacher {_with_error(show(teacher, METRICS[name]))}" if teacher else "")
    return ""


def _with_error(shown: Shown) -> str:
    error = next((error.text for error in shown.errors if error.over == "prompts"), None)
    return shown.text if error is None else f"{shown.text} (± {error} over prompts)"


def _measured(evaluation: Mapping[str, Any]) -> list[str]:
    known = {name for side in _SIDES for name in _estimates(evaluation, side)}
    return [name for name in METRICS if name in known]


def _estimates(evaluation: Mapping[str, Any], side: str) -> dict[str, Estimate]:
    entries = (evaluation.get(side) or {}).get("metrics", {})
    return {name: Estimate.from_json(entry) for name, entry in entries.items()}


def _results(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The result table: a row for each metric, a column for each side that was measured."""
    sides = [side for side in _SIDES if _estimates(evaluation, side)]
    estimates = {side: _estimates(evaluation, side) for side in sides}
    rows = []
    for name in _measured(evaluation):
        metric = METRICS[name]
        cells = tuple(
            show(estimates[side][name], metric, sign=side == "difference") if name in estimates[side] else None
            for side in sides
        )
        unit = {"nats": "nats a token", "tokens": "tokens"}.get(metric.unit, "")
        better = f"{metric.better} is better" if metric.better else ""
        rows.append(GridRow(Head(metric.label, ", ".join(filter(None, (unit, better)))), cells))
    data, settings = evaluation["data"], evaluation["settings"]
    return {
        "grid": Grid(f"{data['rows']} rows", tuple(map(Head, sides)), tuple(rows)),
        "settings": (
            "The difference is student − teacher, its errors paired by prompt. "
            f"Rows: {Path(data['file']).name}. Sampled answers: temperature {settings['temperature']:g}, "
            f"seeds {', '.join(map(str, settings['sampling_seeds']))}. "
            f"Longest answer: {settings['max_new_tokens']} tokens."
        ),
        "missing": [*_left_out(data), *(f"Not measured: {line}" for line in evaluation.get("missing", []))],
    }


def _left_out(data: Mapping[str, Any]) -> list[str]:
    lines = []
    if data.get("rows_dropped"):
        lines.append(f"Left out: {data['rows_dropped']} rows whose prompt is over the limit.")
    if data.get("rows_truncated"):
        lines.append(f"Cut at data.max_length: {data['rows_truncated']} texts; only their beginning is scored.")
    return lines
