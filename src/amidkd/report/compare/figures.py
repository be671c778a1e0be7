"""Differences from the baseline as a picture: a row for each metric, with what prompts and seeds leave open."""

import math
from collections.abc import Sequence
from typing import Any

from amidkd.evaluation.compare import Gap, metric_of
from amidkd.evaluation.display import show
from amidkd.report.figures import GRID, INK, MUTED, SERIES, Figure, draw_svg

__all__ = ["gap_figures"]

_UNITS = {"share": "percentage points", "nats": "nats a token", "score": "points of 100"}


def gap_figures(name: str, gaps: Sequence[Gap]) -> list[Figure]:
    """A picture for each unit that the metrics have, better to the right.

    Args:
        name: Prefix of the ids, another for each pair of a page.
        gaps: Differences from the baseline.
    """
    pictures: list[Figure] = []
    for unit, label in _UNITS.items():
        shown = [gap for gap in gaps if _unit(gap) == unit and math.isfinite(gap.gap.value)]
        if shown:
            caption = "" if pictures else _caption(gaps)
            pictures.append(_figure(f"{name}-{unit}", shown, label, 100.0 if unit == "share" else 1.0, caption))
    return pictures


def _caption(gaps: Sequence[Gap]) -> str:
    text = "Bars are confidence intervals. Where one holds 0, the difference is inside that noise."
    if any(gap.seeds is not None for gap in gaps):
        text += " With few training seeds their interval is wide: two runs say little about a third."
    return text


def _unit(gap: Gap) -> str | None:
    metric = metric_of(gap.metric)
    return metric.unit if metric is not None and metric.better is not None else None


def _figure(name: str, gaps: Sequence[Gap], unit: str, factor: float, caption: str) -> Figure:
    metrics = [metric_of(gap.metric) for gap in gaps]
    # Better is to the right for every metric, so a picture is read without knowing which way each one goes.
    signs = [factor if metric is not None and metric.better == "higher" else -factor for metric in metrics]

    def draw(axes: Any) -> None:
        axes.axvline(0, color=MUTED, linewidth=0.9)
        # The first bar of a kind names it; a metric may have none.
        names = {name: name for name in ("over prompts", "over training seeds")}
        for place, (gap, sign) in enumerate(zip(gaps, signs, strict=True)):
            interval, seeds = gap.gap.interval, gap.seeds
            if interval is not None:
                ends = sorted((sign * interval.low, sign * interval.high))
                label = names.pop("over prompts", None)
                axes.plot(ends, [place, place], color=SERIES[0], linewidth=4, solid_capstyle="butt", label=label)
            if seeds is not None:
                ends = sorted((sign * seeds.interval.low, sign * seeds.interval.high))
                label = names.pop("over training seeds", None)
                axes.plot(ends, [place + 0.26] * 2, color=SERIES[1], linewidth=1.6, label=label)
            axes.plot(sign * gap.gap.value, place, "o", color=INK, markersize=4, gid=f"point{place}")
        axes.set_yticks(range(len(gaps)), [m.label if m else gap.metric for gap, m in zip(gaps, metrics, strict=True)])
        axes.set_ylim(len(gaps) - 0.4, -0.6)
        axes.set_xlabel(f"{unit}; better to the right")
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        if len(names) < 2:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)

    tips = {f"point{place}": _tip(gap) for place, gap in enumerate(gaps)}
    title = f"Differences in {unit}"
    height = 1.1 + 0.3 * len(gaps)
    return Figure(title, draw_svg(name, title, draw, height=height, width=5.4, tips=tips), caption)


def _tip(gap: Gap) -> str:
    metric = metric_of(gap.metric)
    if metric is None:
        return gap.metric
    found = show(gap.gap, metric, sign=True)
    interval = f" ({found.interval})" if found.interval else ""
    return f"{metric.label}: {found.text}{interval}. {gap.verdict.words[:1].upper()}{gap.verdict.words[1:]}."
