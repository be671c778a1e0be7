"""A page of several students on the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.citations import Citation
from amidkd.evaluation.compare import metric_of
from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.report.costs import cost_table, versions_of
from amidkd.report.curves import curves_of_runs, note_on
from amidkd.report.figures import Figure, interval_figure
from amidkd.report.page import Grid, GridRow, Head, render, sample_view
from amidkd.report.results import unit_of

__all__ = ["ComparisonRow", "write_comparison"]

_AXIS = {"share": "per cent", "nats": "nats a token", "tokens": "tokens", "score": "0 to 100", "": ""}
_IN_COLUMNS = 6
"""So many models at most stand in columns, with the metrics in rows; more stand in rows, which can be sorted."""


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
    warnings: Sequence[str] = (),
    pairs: Sequence[Mapping[str, Any]] = (),
    spreads: Mapping[str, Any] | None = None,
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
        warnings: What a reader must know first, such as what was left out.
        pairs: Models against the first one, as :mod:`amidkd.report.compare` makes them.
        spreads: ``heads`` and ``rows`` of a table of how far repetitions are apart.

    Returns:
        The path.

    Raises:
        ValueError: A column is no metric, or there is no row.
    """
    metrics = {name: metric for name in columns if (metric := metric_of(name)) is not None}
    unknown = [name for name in columns if name not in metrics]
    if unknown or not rows:
        raise ValueError(f"a comparison needs rows and known metrics; unknown: {unknown or 'none'}, rows: {len(rows)}")
    records, curves = records or {}, curves or {}
    grid = Grid("", tuple(map(_head, metrics.values())), tuple(_row(row, metrics) for row in rows))
    turned = len(rows) <= _IN_COLUMNS and len(rows) < len(columns)
    return render(
        path,
        "comparison.html.j2",
        title=title,
        sentence=sentence,
        grid=grid.turned() if turned else grid,
        sortable=not turned and len(rows) > _IN_COLUMNS,
        # A task of the suite means the same as its metric does elsewhere.
        columns=list({metric.meaning: metric for metric in metrics.values()}.values()),
        notes=list(notes),
        warnings=list(warnings),
        pairs=list(pairs),
        spreads=spreads,
        intervals=[_picture(metrics[name], rows) for name in pictures if name in metrics],
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
    return Head(metric.label, unit_of(metric))


def _row(row: ComparisonRow, metrics: Mapping[str, Metric]) -> GridRow:
    cells = ((row.metrics.get(name), metric) for name, metric in metrics.items())
    return GridRow(
        Head(row.name, row.detail),
        tuple(show(estimate, metric) if estimate is not None else None for estimate, metric in cells),
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
