"""The results of a run as tables: one row a metric, a column for each side, and a picture of student and teacher."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import GROUPS, METRICS, Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.report.page import Grid, GridRow, Head

__all__ = ["estimates_of", "measured", "results_of", "strip", "suite_of", "unit_of"]

_SIDES = ("student", "teacher", "difference")
_UNITS = {"nats": "nats a token", "tokens": "tokens", "score": "0 to 100"}


def estimates_of(entry: Mapping[str, Any], side: str) -> dict[str, Estimate]:
    """Estimates of one side of an evaluation, by metric.

    Args:
        entry: ``results.evaluation`` of a record, or one task of its suite.
        side: ``student``, ``teacher`` or ``difference``.
    """
    metrics = (entry.get(side) or {}).get("metrics", {})
    return {name: Estimate.from_json(found) for name, found in metrics.items()}


def measured(entry: Mapping[str, Any]) -> list[str]:
    """Metrics that any side has, in the order of the groups and of :data:`~amidkd.evaluation.METRICS`."""
    known = {name for side in _SIDES for name in estimates_of(entry, side)}
    order = {group: place for place, group in enumerate(GROUPS)}
    return sorted((name for name in METRICS if name in known), key=lambda name: order[METRICS[name].group])


def unit_of(metric: Metric) -> str:
    """Unit and direction of a metric in a few words, such as ``nats a token, lower is better``; may be empty."""
    better = f"{metric.better} is better" if metric.better else ""
    return ", ".join(filter(None, (_UNITS.get(metric.unit, ""), better)))


def results_of(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The table of one evaluation, with what it was made from and what is missing in it.

    Args:
        entry: ``results.evaluation`` of a record, or one task of its suite.
        settings: ``settings`` of the evaluation.

    Returns:
        ``grid``, ``note`` and ``missing``.
    """
    sides = [side for side in _SIDES if estimates_of(entry, side)]
    estimates = {side: estimates_of(entry, side) for side in sides}
    rows = []
    for name in measured(entry):
        metric = METRICS[name]
        cells = tuple(
            show(estimates[side][name], metric, sign=side == "difference") if name in estimates[side] else None
            for side in sides
        )
        picture = strip(metric, *(estimates.get(side, {}).get(name) for side in ("student", "teacher")))
        rows.append(GridRow(Head(metric.label, unit_of(metric)), cells, GROUPS[metric.group], picture))
    data = entry["data"]
    return {
        "grid": Grid(f"{data['rows']} rows", tuple(map(Head, sides)), tuple(rows)),
        "note": _note(data, {**settings, **entry.get("settings", {})}, estimates),
        "missing": [*_left_out(data), *(f"Not measured: {line}" for line in entry.get("missing", []))],
    }


def _note(data: Mapping[str, Any], settings: Mapping[str, Any], estimates: Mapping[str, Mapping[str, Estimate]]) -> str:
    levels = {e.interval.level for side in estimates.values() for e in side.values() if e.interval is not None}
    parts = [f"“a to b” is the {100 * level:g} % confidence interval over prompts." for level in sorted(levels)]
    if "difference" in estimates:
        parts.append("The difference is student − teacher, its errors paired by prompt.")
    parts.append(f"Rows: {Path(data['file']).name}.")
    names = {name for side in estimates.values() for name in side}
    if "sampling_seeds" in settings and any("sample" in name for name in names):
        seeds = ", ".join(map(str, settings["sampling_seeds"]))
        parts.append(f"Sampled answers: temperature {settings['temperature']:g}, seeds {seeds}.")
    if settings.get("no_repeat_ngram_size"):
        parts.append(f"No run of {settings['no_repeat_ngram_size']} tokens comes twice in an answer.")
    if "max_new_tokens" in settings and any(METRICS[name].group == "answers" for name in names if name in METRICS):
        parts.append(f"Longest answer: {settings['max_new_tokens']} tokens.")
    return " ".join(parts)


def _left_out(data: Mapping[str, Any]) -> list[str]:
    lines = []
    if data.get("rows_dropped"):
        lines.append(f"Left out: {data['rows_dropped']} rows whose prompt is over the limit.")
    if data.get("prompts_at_limit"):
        lines.append(f"Not read to their end, at the limit of a prompt: {data['prompts_at_limit']} prompts.")
    if data.get("rows_truncated"):
        lines.append(f"Cut at data.max_length: {data['rows_truncated']} texts; only their beginning is scored.")
    return lines


def suite_of(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The suite: one table with a row for each task, and every task's own table.

    Args:
        evaluation: ``results.evaluation`` of a record.

    Returns:
        ``grid``, ``title`` (the metric of the grid) and ``tasks`` (name and what :func:`results_of` gives); None
        without a suite.
    """
    suite: Mapping[str, Mapping[str, Any]] = evaluation.get("suite") or {}
    if not suite:
        return None
    metric = METRICS[_telling(list(suite.values()))]
    rows = []
    for name, entry in suite.items():
        cells = tuple(
            show(found, metric, sign=side == "difference") if found is not None else None
            for side in _SIDES
            for found in (estimates_of(entry, side).get(metric.name),)
        )
        picture = strip(metric, *(estimates_of(entry, side).get(metric.name) for side in ("student", "teacher")))
        rows.append(GridRow(Head(name.replace("_", " "), f"{entry['data']['rows']} rows"), cells, "", picture))
    settings = evaluation.get("settings", {})
    return {
        "title": metric.label,
        "grid": Grid("task", tuple(map(Head, _SIDES)), tuple(rows)),
        "tasks": [(name.replace("_", " "), results_of(entry, settings)) for name, entry in suite.items()],
    }


def _telling(tasks: Sequence[Mapping[str, Any]]) -> str:
    """The metric that most tasks have, the papers' own first."""
    wanted = ("rouge_l_sampled", *METRICS)
    return max(wanted, key=lambda name: sum(name in estimates_of(task, "student") for task in tasks))


def strip(metric: Metric, student: Estimate | None, teacher: Estimate | None) -> Markup | None:
    """A small picture of both on one line: the student as a dot with its interval, the teacher as a mark.

    The line begins at 0 and ends at 100 % for a share, at 100 for a score, else above the larger of the two.

    Args:
        metric: What is shown.
        student: The student's estimate.
        teacher: The teacher's.
    """
    if student is None or not math.isfinite(student.value) or student.value < 0:
        return None
    other = teacher if teacher is not None and math.isfinite(teacher.value) else None
    low, high = _ends(student)
    end = {"share": 1.0, "score": 100.0}.get(metric.unit)
    if end is None and other is None:
        # Without a scale of its own or another number, a place on a line says nothing.
        return None
    if end is None:
        largest = max(high, other.value if other is not None else 0.0)
        if largest <= 0:
            return None
        end = 1.08 * largest

    def place(value: float) -> str:
        return f"{100 * min(max(value / end, 0.0), 1.0):.2f}%"

    words = f"student {show(student, metric).text}" + (f", teacher {show(other, metric).text}" if other else "")
    mark = (
        f'<line class="teacher" x1="{place(other.value)}" x2="{place(other.value)}" y1="1" y2="15"/>' if other else ""
    )
    return Markup(
        f'<svg class="strip" width="100%" height="16" role="img" aria-label="{metric.label}: {words}">'
        '<line class="axis" x1="0" x2="100%" y1="8" y2="8"/>'
        f'<line class="interval" x1="{place(low)}" x2="{place(high)}" y1="8" y2="8"/>{mark}'
        f'<circle cx="{place(student.value)}" cy="8" r="4"/></svg>'
    )


def _ends(found: Estimate) -> tuple[float, float]:
    """The confidence interval; where there is none, two standard errors over prompts to both sides."""
    if found.interval is not None and math.isfinite(found.interval.low) and math.isfinite(found.interval.high):
        return found.interval.low, found.interval.high
    error = found.error("prompts")
    reach = 2 * error.value if error is not None and math.isfinite(error.value) else 0.0
    return found.value - reach, found.value + reach
