"""A page of several students on the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.citations import Citation
from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.report.costs import cost_table, versions_of
from amidkd.report.curves import curves_of_runs, note_on
from amidkd.report.figures import Figure, interval_figure
from amidkd.report.page import Grid, GridRow, Head, render, sample_view

__all__ = ["ComparisonRow", "write_comparison"]

_AXIS = {"share": "per cent", "nats": "nats a token", "tokens": "tokens", "score": "0 to 100", "": ""}


@dataclass(frozen=True)
class ComparisonRow:
    """One model of a comparison.

    Args:
        name: What the tables call it.
        metrics: Its estimates, by names in :data:`amidkd.evaluation.METRICS`.
        detail: A smaller line below the name, such as its objective.
    """

    name: str
    metrics: Mapping[str, Estimate]
    detail: str = ""


def write_comparison(
    path: Path,
    *,
    title: str,
    sentence: str,
    rows: Sequence[ComparisonRow],
    columns: Sequence[str],
    notes: Sequence[str] = (),
    pictures: Sequence[str] = ("exact_match_greedy", "exact_match_sampled", "nll", "kl_teacher_student"),
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    records: Mapping[str, Mapping[str, Any]] | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    citations: Sequence[Citation] = (),
    command: str = "",
) -> Path:
    """Write one self-contained page that compares several models on the same prompts.

    Args:
        path: Where the page goes.
        title: Heading.
        sentence: What was done, in one sentence.
        rows: The models.
        columns: Metrics of the table, by names in :data:`amidkd.evaluation.METRICS`.
        notes: Lines below the table, such as how many prompts and seeds the errors are over.
        pictures: Those of the columns that are also drawn.
        curves: Lines of ``metrics.jsonl`` by model.
        records: ``record.json`` by model: cost, configuration and versions come from here.
        samples: Mappings with ``prompt``, ``references`` and ``answers`` (text by model).
        citations: Works to cite.
        command: What makes the page again.

    Returns:
        The path.

    Raises:
        ValueError: A column is no metric, or there is no row.
    """
    unknown = [name for name in columns if name not in METRICS]
    if unknown or not rows:
        raise ValueError(f"a comparison needs rows and known metrics; unknown: {unknown or 'none'}, rows: {len(rows)}")
    records, curves = records or {}, curves or {}
    grid = Grid("", tuple(_head(METRICS[name]) for name in columns), tuple(_row(row, columns) for row in rows))
    return render(
        path,
        "comparison.html.j2",
        title=title,
        sentence=sentence,
        # Long names belong on the longer side: few models stand in columns, many in rows.
        grid=grid.turned() if len(rows) < len(columns) else grid,
        columns=[METRICS[name] for name in columns],
        notes=list(notes),
        intervals=[_picture(METRICS[name], rows) for name in pictures if name in columns],
        stages=cost_table(records),
        figures=curves_of_runs(curves),
        curve_note=note_on(list(curves.values())),
        samples=[sample_view(entry) for entry in samples],
        configurations=_configurations(records),
        versions=versions_of(next(iter(records.values()), {})),
        citations=list(citations),
        command=command,
    )


def _head(metric: Metric) -> Head:
    unit = "nats a token" if metric.unit == "nats" else ("tokens" if metric.unit == "tokens" else "")
    better = f"{metric.better} is better" if metric.better else ""
    return Head(metric.label, ", ".join(filter(None, (unit, better))))


def _row(row: ComparisonRow, columns: Sequence[str]) -> GridRow:
    cells = (row.metrics.get(name) for name in columns)
    return GridRow(
        Head(row.name, row.detail),
        tuple(
            show(estimate, METRICS[name]) if estimate is not None else None
            for name, estimate in zip(columns, cells, strict=True)
        ),
    )


def _picture(metric: Metric, rows: Sequence[ComparisonRow]) -> Figure:
    factor = 100.0 if metric.unit == "share" else 1.0
    points = [(row.name, row.metrics[metric.name].scaled(factor)) for row in rows if metric.name in row.metrics]
    better = f"{metric.better} is better" if metric.better else ""
    label = ", ".join(filter(None, (_AXIS[metric.unit], better)))
    return interval_figure(f"interval-{metric.name}", metric.label, points, xlabel=label)


def _configurations(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    import yaml

    return [
        (name, yaml.safe_dump(dict(record["config"]), sort_keys=False, allow_unicode=True))
        for name, record in records.items()
        if record.get("config")
    ]
