"""Pictures of a sweep: metrics along a key, the front of two metrics, what each key explains."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from amidkd.evaluation.metrics import Metric
from amidkd.report.figures import DASHES, GRID, INK, MUTED, PAPER, SERIES, Figure, draw_svg
from amidkd.report.sweep.maps import axis_of, told
from amidkd.report.sweep.record import Sweep, Trial, drawn_text, key_text, metric_called, value_text

__all__ = ["curve_figure", "error_kind", "front_figure", "front_of", "importance_figure"]

_MOST_LABELS = 8
_MOST_CAPS = 80
_LEGEND = 54
"""Characters that a line of a legend has room for."""


def error_kind(trials: Sequence[Trial], metric: str) -> str | None:
    """What the errors of a metric are over: training seeds where a trial has several, else prompts; None without any.

    Args:
        trials: The trials that are drawn.
        metric: The metric.
    """
    kinds = {error.over for trial in trials if (found := trial.estimate(metric)) for error in found.errors}
    return next((kind for kind in ("training seeds", "prompts") if kind in kinds), None)


def curve_figure(
    name: str, sweep: Sweep, x: str, metric: str, colour: str | None, *, told_apart: bool = True
) -> Figure:
    """A metric along a numeric key, a line for each value of another key, with bars of ± one standard error.

    Args:
        name: Prefix of the ids.
        sweep: The sweep.
        x: Key across, a number.
        metric: The metric.
        colour: Key whose values have a line each, or None for one line. Where several trials share a place, the best
            in the first objective stands for them.
        told_apart: Each point tells its trial to the pointer.
    """
    drawn = [t for t in sweep.complete() if x in t.params and t.estimate(metric) is not None]
    lines = _lines(sweep, drawn, x, colour)
    kind, shown = error_kind(drawn, metric), metric_called(metric)
    factor = 100.0 if shown.unit == "share" else 1.0
    # On a grid, lines guide the eye; between scattered points they would claim what nobody measured.
    joined = "choices" in sweep.space[x] or bool(sweep.space[x].get("step"))
    shift = 0.05 * _least_gap([t.params[x] for t in drawn])
    tips = {
        f"point-{trial.number}": _where(trial, sweep) + "\n" + told(trial, metric)
        for trials in (lines.values() if told_apart else ())
        for trial in trials
    }

    # Caps on hundreds of bars are a blur.
    caps = 2 if len(drawn) <= _MOST_CAPS else 0

    def draw(axes: Any) -> None:
        for place, (label, trials) in enumerate(lines.items()):
            moved = shift * (place - (len(lines) - 1) / 2) if not sweep.space[x].get("log") else 0.0
            style = {
                "color": SERIES[place % len(SERIES)],
                "linestyle": DASHES[place % len(DASHES)] if joined else "none",
            }
            xs = [t.params[x] + moved for t in trials]
            ys = [factor * _value(t, metric) for t in trials]
            bars = [factor * _error(t, metric, kind) for t in trials]
            if any(map(math.isfinite, bars)):
                axes.errorbar(xs, ys, yerr=bars, fmt="none", ecolor=style["color"], elinewidth=1.1, capsize=caps)
            axes.plot(xs, ys, label=drawn_text(label, 40), marker="o", markersize=3.5, **style)
            for trial, across, up in zip(trials, xs, ys, strict=True) if told_apart else ():
                (point,) = axes.plot(across, up, "o", color=style["color"], markersize=7, alpha=0.01)
                point.set_gid(f"point-{trial.number}")
        if sweep.space[x].get("log"):
            axes.set_xscale("log")
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
        axes.set_xlabel(axis_of(x))
        axes.set_ylabel(_unit_text(shown))
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        if len(lines) > 1:
            columns = max(1, min(len(lines), 3, _LEGEND // max(map(len, lines))))
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns)

    caption = (
        f"Bars: ± one standard error over {kind}." if kind else "No error is known: one run each, no prompts kept."
    )
    rest = [key for key in sweep.space if key not in {x, colour} and len(sweep.values_of(key)) > 1]
    if rest and joined:
        caption += f" Each point is the best over {', '.join(map(key_text, rest))}."
    return Figure(shown.label, draw_svg(name, shown.label, draw, height=2.6, tips=tips), caption)


def _lines(sweep: Sweep, drawn: Sequence[Trial], x: str, colour: str | None) -> dict[str, list[Trial]]:
    first = sweep.objectives[0]
    groups: dict[str, list[Trial]] = {}
    for value in sweep.values_of(colour, drawn) if colour else ():
        assert colour is not None
        label = f"{key_text(colour)} {value_text(value)}"
        groups[label] = [t for t in drawn if colour in t.params and t.params[colour] == value]
    if colour is None:
        groups[""] = list(drawn)
    lines = {}
    for label, trials in groups.items():
        at: dict[float, Trial] = {}
        for trial in sorted(trials, key=lambda t: first.loss(_value(t, first.metric))):
            at.setdefault(float(trial.params[x]), trial)
        lines[label] = [at[place] for place in sorted(at)]
    return {label: trials for label, trials in lines.items() if trials}


def _least_gap(values: Sequence[float]) -> float:
    return min((b - a for a, b in itertools.pairwise(sorted(set(values)))), default=0.0)


def _value(trial: Trial, metric: str) -> float:
    found = trial.estimate(metric)
    return math.nan if found is None else found.value


def _error(trial: Trial, metric: str, kind: str | None) -> float:
    found = trial.estimate(metric)
    error = found.error(kind) if found is not None and kind is not None else None
    return math.nan if error is None else error.value


def _where(trial: Trial, sweep: Sweep) -> str:
    return ", ".join(
        f"{key_text(key)} {value_text(trial.params[key])}" for key in sweep.varied() if key in trial.params
    )


def _unit_text(metric: Metric) -> str:
    unit = {"share": "per cent", "nats": "nats a token", "tokens": "tokens", "score": "0 to 100"}.get(metric.unit, "")
    return ", ".join(filter(None, (unit, f"{metric.better} is better" if metric.better else "")))


def front_of(trials: Sequence[Trial], first: Metric, second: Metric) -> list[Trial]:
    """The trials that no other beats in both metrics, by the first metric from its best.

    Args:
        trials: Trials that have both.
        first, second: Metrics with a better direction.
    """

    def losses(trial: Trial) -> tuple[float, float]:
        return (
            _value(trial, first.name) * (1 if first.better == "lower" else -1),
            _value(trial, second.name) * (1 if second.better == "lower" else -1),
        )

    front: list[Trial] = []
    for trial in sorted(trials, key=losses):
        if not front or losses(trial)[1] < losses(front[-1])[1]:
            front.append(trial)
    return front


def _aimed(sweep: Sweep, name: str) -> Metric:
    """A metric with the direction that the sweep takes it in: `-name` among the objectives turns it around."""
    better: dict[str, Literal["lower", "higher"]] = {"minimize": "lower", "maximize": "higher"}
    aims = {objective.metric: better[objective.direction] for objective in sweep.objectives}
    found = metric_called(name)
    return replace(found, better=aims[name]) if name in aims else found


def front_figure(name: str, sweep: Sweep, x: str, y: str, title: str) -> Figure | None:
    """Trials by two metrics, and the front of those that none beats in both; None where fewer than two have both.

    Args:
        name: Prefix of the ids.
        sweep: The sweep.
        x: Metric across.
        y: Metric upwards.
        title: Heading.
    """
    trials = [t for t in sweep.complete() if t.estimate(x) is not None and t.estimate(y) is not None]
    across, up = _aimed(sweep, x), _aimed(sweep, y)
    if len(trials) < 2 or across.better is None or up.better is None:
        return None
    front = front_of(trials, across, up)
    factors = {metric.name: 100.0 if metric.unit == "share" else 1.0 for metric in (across, up)}
    tips = {f"point-{t.number}": f"{_where(t, sweep)}\n{told(t, x)}\n{told(t, y)}" for t in trials}

    def place(trial: Trial) -> tuple[float, float]:
        return factors[x] * _value(trial, x), factors[y] * _value(trial, y)

    def draw(axes: Any) -> None:
        axes.plot(*zip(*map(place, front), strict=True), color=SERIES[0], linestyle=DASHES[1], linewidth=1.2, zorder=1)
        for trial in trials:
            on = trial in front
            (point,) = axes.plot(*place(trial), "o", color=SERIES[0] if on else MUTED, markersize=6 if on else 4)
            point.set_gid(f"point-{trial.number}")
        axes.margins(0.12)
        _label_front(axes, front, place, lambda t: _where(t, sweep) if len(sweep.space) <= 2 else f"{t.number}")
        axes.ticklabel_format(scilimits=(-3, 5), useOffset=False)
        axes.set_xlabel(f"{across.label}, {_unit_text(across)}")
        axes.set_ylabel(f"{up.label}, {_unit_text(up)}", fontsize=8)
        axes.grid(color=GRID, linewidth=0.6)

    caption = f"Joined: the {len(front)} trials that no other beats in both." if len(front) > 1 else ""
    if len(front) == 1:
        caption = f"Trial {front[0].number} is the best in both."
    return Figure(title, draw_svg(name, title, draw, height=3.0, tips=tips), caption)


def _label_front(
    axes: Any, front: Sequence[Trial], place: Callable[[Trial], tuple[float, float]], text: Callable[[Trial], str]
) -> None:
    """Name points of the front, each beside its own; a name that would lie on a point or another name is left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    # Limits and layout are settled only by drawing.
    axes.figure.draw_without_rendering()
    box = {"facecolor": (PAPER, 0.75), "edgecolor": "none", "pad": 0.5}
    style = {"textcoords": "offset points", "fontsize": 7.5, "color": INK, "bbox": box, "zorder": 1.5}
    frame, dots = axes.get_window_extent(renderer), axes.transData.transform([place(trial) for trial in front])
    radius = renderer.points_to_pixels(3)
    taken = [Bbox([dot - radius, dot + radius]) for dot in dots]
    for trial in front[:: max(1, math.ceil(len(front) / _MOST_LABELS))]:
        for right, up in itertools.product((5, -5), (4, -10)):
            side = "left" if right > 0 else "right"
            label = axes.annotate(drawn_text(text(trial), 48), place(trial), xytext=(right, up), ha=side, **style)
            extent = label.get_window_extent(renderer)
            inside = frame.x0 <= extent.x0 and extent.x1 <= frame.x1
            if inside and not any(extent.overlaps(other) for other in taken):
                taken.append(extent)
                break
            label.remove()


def importance_figure(name: str, shares: Mapping[str, float], metric: str) -> Figure:
    """Bars: how much of a metric's spread over the trials each key explains alone.

    Args:
        name: Prefix of the ids.
        shares: Share by key, in [0, 1], the largest first.
        metric: The metric.
    """
    labels, values = [key_text(key) for key in shares], [100 * value for value in shares.values()]

    def draw(axes: Any) -> None:
        axes.barh(range(len(values)), values, color=SERIES[0], height=0.6)
        for place, value in enumerate(values):
            axes.text(value + 1.5, place, f"{value:.0f} %", va="center", fontsize=8.5, color=INK)
        axes.set_yticks(range(len(values)), labels)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlim(0, 112)
        axes.set_xlabel("per cent of the spread over all trials")

    title = f"What moves {metric_called(metric).label}"
    return Figure(title, draw_svg(name, title, draw, height=0.85 + 0.3 * len(values)))
