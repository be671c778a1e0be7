"""Reports as Markdown, for people who write, and as JSON, for programs: one run, a sweep, or a comparison."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from amidkd.config import dump_yaml, load
from amidkd.errors import SettingError
from amidkd.evaluation.compare import Gap, metric_of
from amidkd.evaluation.display import Shown, show
from amidkd.evaluation.extra_lines import extra_lines
from amidkd.evaluation.statistics import Estimate
from amidkd.record import RunFolder, read_json_lines, write_atomic, write_json
from amidkd.report.compare import Compared, Side
from amidkd.report.compare.page import pair_rows
from amidkd.report.compare.words import detail_of, sentence_of_pair, sentence_of_sides, statistics_note, title_of
from amidkd.report.costs import cost_table, facts_of, versions_of
from amidkd.report.page import Grid
from amidkd.report.results import results_of, suite_of
from amidkd.report.run import sentence_of
from amidkd.report.sweep import summary_of_sweep

__all__ = ["TextFormat", "write_compared_text", "write_run_text", "write_sweep_text"]

TextFormat = Literal["md", "json"]


def write_run_text(folder: RunFolder, form: TextFormat) -> Path:
    """Write ``report.md`` or ``report.json`` of a run.

    Args:
        folder: The run.
        form: Which of the two.

    Returns:
        Path of the file.

    Raises:
        SettingError: The folder holds no record.
    """
    record = folder.record()
    if not record:
        raise SettingError(
            f"{folder.path} holds no record.json: it is not the folder of a run that has begun. "
            "Give the folder named by `output` in the run file"
        )
    config = load(folder.path) if folder.run_file.is_file() else None
    sentence = sentence_of(record, config)
    path = folder.path / f"report.{form}"
    if form == "json":
        samples = read_json_lines(folder.samples_file)
        return _written(
            path, {"kind": "run", "name": folder.path.name, "sentence": sentence, "record": record, "samples": samples}
        )
    parts = [f"# {folder.path.name}", sentence, *_results(record, folder.path)]
    stages = cost_table({folder.path.name: record})
    if stages["rows"]:
        parts += ["## Cost", _table(stages["heads"], stages["rows"])]
    parts += [_table(["", ""], facts)] if (facts := facts_of(record)) else []
    if config is not None:
        parts += ["## Configuration", f"```yaml\n{dump_yaml(config).rstrip()}\n```"]
    versions = versions_of(record)
    if versions:
        parts += ["## Versions", _table(["", ""], versions)]
    write_atomic(path, "\n\n".join(parts) + "\n")
    return path


def _results(record: Mapping[str, Any], folder: Path) -> list[str]:
    evaluation = record.get("results", {}).get("evaluation")
    if not evaluation:
        return [f"This run has not been evaluated: amidkd eval {os.path.relpath(folder)}"]
    found = results_of(evaluation, evaluation.get("settings", {}))
    parts = ["## Result", _grid(found["grid"]), found["note"], *found["missing"]]
    suite = suite_of(evaluation)
    if suite is not None:
        parts += ["## Suite", suite["title"], _grid(suite["grid"])]
        for name, task in suite["tasks"]:
            parts += [f"### {name}", _grid(task["grid"]), *task["missing"]]
    beside = extra_lines(evaluation)
    return [*parts, "## More tests", "\n".join(f"- {line}" for line in beside)] if beside else parts


def write_sweep_text(folder: Path, form: TextFormat) -> Path:
    """Write ``report.md`` or ``report.json`` of a sweep.

    Args:
        folder: The sweep's folder, with its ``sweep.json``.
        form: Which of the two.

    Returns:
        Path of the file.

    Raises:
        SettingError: The folder is not that of a sweep.
    """
    summary = summary_of_sweep(folder)
    sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    path = folder / f"report.{form}"
    if form == "json":
        return _written(path, {"kind": "sweep", **summary, "sweep": sweep})
    keys, objectives = list(sweep["space"]), [each["metric"] for each in sweep["objective"]]
    rows = []
    for trial in sweep["trials"]:
        params = [trial["params"].get(key, "–") for key in keys]
        values = [_value(trial, name) for name in objectives]
        state = trial["state"] + (", best" if trial["number"] in sweep["best"] else "")
        rows.append([trial["number"], state, *params, *values, trial.get("error") or ""])
    labels = [metric.label if (metric := metric_of(name)) else name for name in objectives]
    parts = [
        f"# {summary['name']}",
        summary["sentence"],
        *summary["notes"],
        "## Trials",
        _table(["trial", "state", *keys, *labels, "error"], rows),
        "## Importance of the keys",
    ]
    for each in summary["importances"]:
        if each["shares"]:
            shares = [[key, f"{100 * share:.0f} %"] for key, share in each["shares"].items()]
            parts.append(_table([f"share of the spread of {each['metric']}", ""], shares))
        parts += each["notes"]
    write_atomic(path, "\n\n".join(parts) + "\n")
    return path


def _value(trial: Mapping[str, Any], name: str) -> str:
    metric, entry = metric_of(name), trial.get("metrics", {}).get(name)
    if entry is not None and metric is not None:
        return _cell(show(Estimate.from_json(entry), metric))
    value = trial.get("values", {}).get(name)
    return "–" if value is None else f"{value:g}"


def write_compared_text(found: Compared, path: Path, form: TextFormat) -> Path:
    """Write a comparison as Markdown or JSON.

    Args:
        found: The comparison.
        path: Where it goes.
        form: Which of the two.

    Returns:
        The path.
    """
    if form == "json":
        return _written(path, _comparison(found))
    notes = [*found.notes, *(f"Left out: {line}" for line in found.omitted)]
    parts = [f"# {title_of(found)}", sentence_of_sides(found), *notes]
    sides = [[side.name, detail_of(side)] for side in found.sides]
    parts += [_table(["", "settings that differ"], sides)]
    for side in found.sides[1:]:
        heads = ["metric", found.baseline.name, side.name, "difference", "p", "over training seeds", "so it is"]
        rows = [
            [row["label"], *row["values"], _cell(row["gap"]), row["p"], _seeds(row["seeds"]), row["verdict"].words]
            for row in pair_rows(found.baseline, side)
        ]
        parts += [f"## {side.name} against {found.baseline.name}", sentence_of_pair(found.baseline, side)]
        parts += [_table(heads, rows)]
    write_atomic(path, "\n\n".join([*parts, *statistics_note(found)]) + "\n")
    return path


def _seeds(found: Mapping[str, str]) -> str:
    return f"{found['interval']} (p {found['p']})" if found["p"] else found["interval"]


def _comparison(found: Compared) -> dict[str, Any]:
    return {
        "kind": "comparison",
        "title": title_of(found),
        "sentence": sentence_of_sides(found),
        "baseline": found.baseline.name,
        "prompts": dict(found.prompts),
        "level": found.level,
        "teacher": _metrics(found.teacher),
        "sides": [_side(side) for side in found.sides],
        "notes": found.notes,
        "omitted": found.omitted,
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "settings": dict(side.settings),
        "runs": [{"folder": os.path.relpath(run.folder.path), "seed": run.seed} for run in side.runs],
        "metrics": _metrics(side.estimates),
        "spread": {
            name: {"training seeds": _number(spread.training), "sampling seeds": _number(spread.sampling)}
            for name, spread in side.spreads.items()
        },
        "difference": {gap.metric: _gap(gap) for gap in side.gaps},
    }


def _gap(gap: Gap) -> dict[str, Any]:
    entry = {
        **gap.gap.to_json(),
        "p": _number(gap.p),
        "p_holm": _number(gap.adjusted),
        "prompts": gap.prompts,
        "prompts_differing": gap.differing,
        "finding": gap.verdict.finding,
        "verdict": gap.verdict.words,
    }
    if gap.seeds is not None:
        entry["over_training_seeds"] = {
            "value": gap.seeds.value,
            "stderr": gap.seeds.stderr,
            "df": gap.seeds.df,
            "interval": [gap.seeds.interval.low, gap.seeds.interval.high],
            "level": gap.seeds.interval.level,
            "p": _number(gap.seeds.p),
            "p_holm": _number(gap.seeds_adjusted),
            "paired": gap.seeds.paired,
        }
    return entry


def _metrics(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: found.to_json() for name, found in estimates.items()}


def _number(value: float | None) -> float | str | None:
    """A number as JSON has it: null where there is none, an infinity by its name."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _written(path: Path, content: Mapping[str, Any]) -> Path:
    write_json(path, content)
    return path


def _grid(grid: Grid) -> str:
    heads = [grid.corner, *(head.title for head in grid.heads)]
    rows = []
    for row in grid.rows:
        title = f"{row.head.title} ({row.head.detail})" if row.head.detail else row.head.title
        rows.append([title, *(_cell(cell) for cell in row.cells)])
    return _table(heads, rows)


def _cell(shown: Shown | None) -> str:
    """An estimate in one cell: the number, its interval, its other errors."""
    if shown is None:
        return "–"
    parts = [shown.interval] if shown.interval else []
    parts += [f"± {e.text} {e.over}" for e in shown.errors if not (shown.interval and e.over == "prompts")]
    return f"{shown.text} ({'; '.join(parts)})" if parts else shown.text


def _table(heads: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: Any) -> str:
    return " ".join(str(cell).replace("|", "\\|").split())
