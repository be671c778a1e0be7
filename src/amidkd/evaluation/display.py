"""Estimates as people read them: in the unit of their metric, each error with what it is over."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amidkd.evaluation.extra_lines import extra_lines
from amidkd.evaluation.metrics import GROUPS, METRICS, Metric
from amidkd.evaluation.statistics import Estimate

__all__ = ["Shown", "ShownError", "print_evaluation", "show", "table_console"]

_DECIMALS = {"share": 1, "nats": 3, "tokens": 2, "score": 1, "": 2}


@dataclass(frozen=True)
class ShownError:
    """A standard error as text, and what it is over."""

    text: str
    over: str


@dataclass(frozen=True)
class Shown:
    """An estimate as text.

    Args:
        text: The number with its unit.
        errors: Its standard errors.
        interval: Its confidence interval, such as ``38.2 to 51.9``; empty where there is none.
        level: Level of the interval, such as ``95 %``.
    """

    text: str
    errors: tuple[ShownError, ...]
    interval: str = ""
    level: str = ""


def show(estimate: Estimate, metric: Metric, *, sign: bool = False) -> Shown:
    """An estimate in the unit of its metric: shares in per cent, the rest as they are.

    Args:
        estimate: The number with its errors.
        metric: What it measures.
        sign: Write a plus in front of what is above 0, for differences.
    """
    factor, decimals = (100.0 if metric.unit == "share" else 1.0), _DECIMALS[metric.unit]
    text = _fixed(factor * estimate.value, decimals)
    if metric.unit == "share":
        text += " %"
    if sign and estimate.value > 0:
        text = "+" + text
    errors = tuple(ShownError(_fixed(factor * e.value, decimals), e.over) for e in estimate.errors)
    if estimate.interval is None:
        return Shown(text, errors)
    low, high = (_fixed(factor * end, decimals) for end in (estimate.interval.low, estimate.interval.high))
    return Shown(text, errors, f"{low} to {high}", f"{100 * estimate.interval.level:g} %")


def _fixed(value: float, decimals: int) -> str:
    """Fixed decimals, unless a number that is not 0 would then read as 0."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "unknown")
    if value != 0 and abs(value) < 0.5 * 10**-decimals:
        return (f"{value:.1g}" if abs(value) >= 1e-4 else f"{value:.1e}").replace("-", "−")
    return f"{value:.{decimals}f}".replace("-", "−")


def table_console() -> Any:
    """Where tables are printed: a terminal at its width; a file or a pipe with room for a metric on a line."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def print_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print an evaluation as tables on standard output: the held-out rows, then the tasks of the suite.

    Args:
        evaluation: What :func:`amidkd.evaluation.evaluate_run` returned, or ``results.evaluation`` of a record.
    """
    console = table_console()
    console.print(_table(evaluation))
    suite = evaluation.get("suite") or {}
    if suite:
        console.print(_suite_table(suite))
    level = evaluation.get("settings", {}).get("confidence", 0.95)
    console.print(_LEGEND.format(level=f"{100 * level:g} %"), markup=False, soft_wrap=True)
    for name, entry in {"": evaluation, **suite}.items():
        full = entry["data"].get("prompts_at_limit", 0)
        if full:
            console.print(f"{name or 'Held-out rows'}: {full} prompts fill the limit; what is beyond it was not read")
        for line in entry.get("missing", []):
            where = f" ({name})" if name else ""
            console.print(f"Not measured{where}: {line}", markup=False, soft_wrap=True)
    for line in extra_lines(evaluation):
        console.print(line, markup=False, soft_wrap=True)


def _sides(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {side: evaluation[side]["metrics"] for side in ("student", "teacher", "difference") if evaluation.get(side)}


def _table(evaluation: Mapping[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    sides = _sides(evaluation)
    measured = [metric for name, metric in METRICS.items() if any(name in metrics for metrics in sides.values())]
    rows = {metric: _cells(sides, metric) for metric in measured}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    _add_titles(table, [f"{evaluation['data']['rows']} rows"], [[metric.label] for metric in measured])
    _add_sides(table, list(sides), list(rows.values()))
    groups = [(group, [metric for metric in measured if metric.group == group]) for group in GROUPS]
    groups = [(group, metrics) for group, metrics in groups if metrics]
    for group, metrics in groups:
        if len(groups) > 1:
            table.add_row(Text(GROUPS[group], style="bold"))
        for metric in metrics:
            table.add_row(metric.label, *rows[metric])
    return table


def _add_titles(table: Any, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns that a narrow terminal breaks at blanks alone."""
    for place, head in enumerate(heads):
        table.add_column(head, min_width=_widest([row[place] for row in rows]))


def _add_sides(table: Any, sides: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same for numbers."""
    for place, side in enumerate(sides):
        table.add_column(side, justify="right", min_width=max(len(side), _widest([row[place] for row in rows])))


def _widest(cells: Sequence[str]) -> int:
    return max((len(word) for cell in cells for word in cell.replace(" %", ".%").split(" ")), default=0)


def _suite_table(suite: Mapping[str, Mapping[str, Any]]) -> Any:
    """What sampled answers are worth, task by task; the record has the rest."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    every = {name: _sides(entry) for name, entry in suite.items()}
    sides = list(dict.fromkeys(side for found in every.values() for side in found))
    rows: list[tuple[str, str, str, list[str]]] = []
    for name, found in every.items():
        title, count = name, str(suite[name]["data"]["rows"])
        for metric in METRICS.values():
            told = metric.group == "answers" and metric.name.endswith("_sampled") and metric.better is not None
            if told and any(metric.name in metrics for metrics in found.values()):
                rows.append((title, count, metric.label.removesuffix(", sampled"), _cells(found, metric)))
                title, count = "", ""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    _add_titles(table, ["suite", "rows", "sampled"], [titles for *titles, _ in rows])
    _add_sides(table, sides, [cells for *_, cells in rows])
    for *titles, cells in rows:
        table.add_row(*titles, *cells)
    return table


def _cells(sides: Mapping[str, Mapping[str, Any]], metric: Metric) -> list[str]:
    return [_cell(metrics.get(metric.name), metric, sign=side == "difference") for side, metrics in sides.items()]


_MARKS = {"prompts": "p", "sampling seeds": "s", "training seeds": "t"}
_LEGEND = (
    "[low,high]: {level} confidence interval over prompts. ± one standard error: p over prompts, s over sampling "
    "seeds. NLL and KL in nats a token. difference: student − teacher, paired by prompt."
)


def _cell(entry: Mapping[str, Any] | None, metric: Metric, *, sign: bool) -> str:
    if entry is None:
        return "–"
    shown = show(Estimate.from_json(entry), metric, sign=sign)
    # The interval says what the standard error over prompts would.
    errors = [error for error in shown.errors if not (shown.interval and error.over == "prompts")]
    interval = [f"[{shown.interval.replace(' to ', ',')}]"] if shown.interval else []
    return " ".join([shown.text, *interval, *(f"±{error.text}{_MARKS[error.over]}" for error in errors)])
