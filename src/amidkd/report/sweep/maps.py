"""Maps of a sweep: what came out at each pair of values of two keys."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.report.figures import GRID, INK, MUTED, PAPER, SERIES, Figure, draw_svg
from amidkd.report.sweep.record import Objective, Sweep, Trial, drawn_text, key_text, metric_called, value_text

__all__ = ["Cell", "axis_of", "cells_of", "map_figure", "scatter_figure", "told"]

_FRAME = (0.96, 0.94)


@dataclass(frozen=True)
class Cell:
    """One place of a map: the best complete trial there, or what became of the others.

    Args:
        trial: The best complete trial, or the last one; None where nothing was tried.
        state: ``complete``, ``pruned``, ``failed``, ``running`` or ``missing``.
        count: How many trials there are.
    """

    trial: Trial | None
    state: str
    count: int


def cells_of(sweep: Sweep, x: str, y: str, objective: Objective) -> dict[tuple[str, str], Cell]:
    """What stands at each pair of values of two keys.

    Args:
        sweep: The sweep.
        x: Key across.
        y: Key upwards.
        objective: Which trial of a place is its best.
    """
    done = {trial.number for trial in sweep.complete()}
    cells = {}
    for one in sweep.values_of(x):
        for other in sweep.values_of(y):
            place = (value_text(one), value_text(other))
            here = [
                trial
                for trial in sweep.trials
                if x in trial.params
                and y in trial.params
                and (value_text(trial.params[x]), value_text(trial.params[y])) == place
            ]
            cells[place] = _cell(here, done, objective)
    return cells


def _cell(here: Sequence[Trial], done: set[int], objective: Objective) -> Cell:
    complete = [trial for trial in here if trial.number in done]
    if complete:
        return Cell(min(complete, key=lambda t: objective.loss(_value(t, objective.metric))), "complete", len(here))
    if not here:
        return Cell(None, "missing", 0)
    # A trial that is complete without a number is worth as much as a failed one.
    state = "failed" if here[-1].state == "complete" else here[-1].state
    return Cell(here[-1], state, len(here))


def _value(trial: Trial, metric: str) -> float:
    found = trial.estimate(metric)
    return math.nan if found is None else found.value


def map_figure(
    name: str, sweep: Sweep, x: str, y: str, objective: Objective, *, alike: Sequence[int] = (), mark: int | None = None
) -> Figure:
    """A map of two keys with the metric of the best trial in each cell; cells without one say why.

    Args:
        name: Prefix of the ids.
        sweep: The sweep.
        x: Key across.
        y: Key upwards.
        objective: What the cells show.
        alike: Trials that are inside the noise of the best.
        mark: A trial that the page is about.
    """
    metric, cells = metric_called(objective.metric), cells_of(sweep, x, y, objective)
    across, upwards = ([value_text(v) for v in sweep.values_of(key)] for key in (x, y))
    losses = {
        place: objective.loss(_value(cell.trial, objective.metric))
        for place, cell in cells.items()
        if cell.state == "complete" and cell.trial is not None
    }
    strengths = _strengths(losses)
    best = min(losses, key=lambda place: losses[place]) if losses else None
    texts = {place: _cell_text(cell, metric, alike) for place, cell in cells.items()}
    tips = {
        f"cell-{across.index(i)}-{upwards.index(j)}": _cell_tip(cell, (x, i), (y, j), objective, alike)
        for (i, j), cell in cells.items()
    }

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for place, cell in cells.items():
            column, row = across.index(place[0]), upwards.index(place[1])
            corner = (column - _FRAME[0] / 2, row - _FRAME[1] / 2)
            if place in strengths:
                axes.add_patch(Rectangle(corner, *_FRAME, color=SERIES[0], alpha=strengths[place], linewidth=0))
            size, colour = _text_size(len(across), texts[place]), INK if place in strengths else MUTED
            axes.text(column, row, texts[place], ha="center", va="center", fontsize=size, color=colour)
            # On top and all but invisible: the whole cell answers to the pointer.
            marked = mark is not None and cell.trial is not None and cell.trial.number == mark
            edge = (SERIES[1], 2.2) if marked else (INK, 1.6) if place == best else (GRID, 0.5)
            top = Rectangle(corner, *_FRAME, facecolor=(PAPER, 0.01), edgecolor=edge[0], linewidth=edge[1], zorder=4)
            top.set_gid(f"cell-{column}-{row}")
            axes.add_patch(top)
        axes.set_xlim(-0.5, len(across) - 0.5)
        axes.set_ylim(-0.5, len(upwards) - 0.5)
        axes.set_xticks(range(len(across)), [drawn_text(text) for text in across])
        axes.set_yticks(range(len(upwards)), [drawn_text(text) for text in upwards])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(axis_of(x))
        axes.set_ylabel(axis_of(y))

    title = f"{metric.label} by {key_text(x)} and {key_text(y)}"
    svg = draw_svg(name, title, draw, height=max(1.5, 0.95 + 0.34 * len(upwards)), tips=tips)
    return Figure(title, svg, _caption(sweep, (x, y), objective, cells, alike, mark))


def _caption(
    sweep: Sweep,
    keys: tuple[str, str],
    objective: Objective,
    cells: Mapping[tuple[str, str], Cell],
    alike: Sequence[int],
    mark: int | None,
) -> str:
    words = [
        _scale_text(metric_called(objective.metric), objective),
        "Framed: the best" + ("; in orange, this run." if mark is not None else "."),
    ]
    if alike:
        words.append("≈: inside the noise of the best.")
    if any(cell.state == "missing" for cell in cells.values()):
        words.append("–: not tried.")
    if any(len(sweep.values_of(key)) > 1 for key in sweep.space if key not in keys):
        words.append("Each cell is the best over the other keys.")
    return " ".join(words)


def _scale_text(metric: Metric, objective: Objective) -> str:
    unit = {"share": " in per cent", "nats": " in nats a token", "tokens": " in tokens"}.get(metric.unit, "")
    way = "lower" if objective.direction == "minimize" else "higher"
    return f"{metric.label}{unit}, {way} is better; the stronger the colour, the better."


def _strengths(losses: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Opacity of each cell, 0.06 to 0.55: text on it stays readable. A few very bad ones do not bleach the others."""
    if not losses:
        return {}
    ordered = sorted(losses.values())
    best, middle = ordered[0], ordered[len(ordered) // 2]
    worst = min(ordered[-1], best + 3 * (middle - best)) if middle > best else ordered[-1]
    span = worst - best
    return {
        place: 0.06 + 0.49 * (1 - min(1.0, (loss - best) / span) if span > 0 else 1.0) for place, loss in losses.items()
    }


def _cell_text(cell: Cell, metric: Metric, alike: Sequence[int]) -> str:
    if cell.state != "complete" or cell.trial is None:
        return {"missing": "–"}.get(cell.state, cell.state)
    text = show(Estimate(_value(cell.trial, metric.name)), metric).text.removesuffix(" %")
    return f"≈ {text}" if cell.trial.number in alike else text


def _text_size(columns: int, text: str) -> float:
    return max(5.5, min(8.5, 62 / columns, 250 / columns / max(1, len(text)) * 1.7))


def _cell_tip(cell: Cell, x: tuple[str, str], y: tuple[str, str], objective: Objective, alike: Sequence[int]) -> str:
    where = f"{key_text(x[0])} {x[1]}, {key_text(y[0])} {y[1]}"
    if cell.trial is None:
        return f"{where}\nnot tried"
    if cell.state != "complete":
        return f"{where}\ntrial {cell.trial.number}: {cell.state}"
    near = "\ninside the noise of the best" if cell.trial.number in alike else ""
    several = f"\nthe best of {cell.count} trials" if cell.count > 1 else ""
    return f"{where}\n{told(cell.trial, objective.metric)}{several}{near}"


def told(trial: Trial, name: str) -> str:
    """A trial's number and what it reached, with its errors.

    Args:
        trial: The trial.
        name: A metric.
    """
    metric, found = metric_called(name), trial.estimate(name)
    if found is None:
        return f"trial {trial.number}"
    shown = show(found, metric)
    errors = "".join(f" ± {error.text} over {error.over}" for error in shown.errors)
    return f"trial {trial.number}: {metric.label} {shown.text}{errors}"


def scatter_figure(name: str, sweep: Sweep, x: str, y: str, objective: Objective, *, mark: int | None = None) -> Figure:
    """Trials at their place in two numeric keys, the better ones in a stronger colour: for ranges without a grid.

    Args:
        name: Prefix of the ids.
        sweep: The sweep.
        x: Key across, a number.
        y: Key upwards, a number.
        objective: What the colour shows.
        mark: A trial that the page is about.
    """
    metric = metric_called(objective.metric)
    trials = [trial for trial in sweep.trials if x in trial.params and y in trial.params]
    done = {trial.number for trial in sweep.complete()}
    losses = {(str(t.number), ""): objective.loss(_value(t, metric.name)) for t in trials if t.number in done}
    strengths = _strengths(losses)
    best = min(losses, key=lambda place: losses[place])[0] if losses else ""
    tips = {}
    for trial in trials:
        words = told(trial, metric.name) if trial.number in done else f"trial {trial.number}: {trial.state}"
        where = f"{key_text(x)} {value_text(trial.params[x])}, {key_text(y)} {value_text(trial.params[y])}"
        tips[f"point-{trial.number}"] = where + "\n" + words

    def draw(axes: Any) -> None:
        for trial in trials:
            place = (trial.params[x], trial.params[y])
            if trial.number in done:
                strength = strengths[str(trial.number), ""]
                axes.plot(*place, "o", color=SERIES[0], alpha=min(1.0, 0.1 + 1.6 * strength), markersize=7, mew=0)
                chosen = str(trial.number) == best
                edge = SERIES[1] if trial.number == mark else INK
                heavy = chosen or trial.number == mark
                ring = {"mec": edge if heavy else MUTED, "mew": 1.6 if heavy else 0.5, "markersize": 8}
                (point,) = axes.plot(*place, "o", mfc="none", **ring)
            else:
                (point,) = axes.plot(*place, "x", color=MUTED, markersize=5)
            point.set_gid(f"point-{trial.number}")
        for key, which in ((x, "x"), (y, "y")):
            if sweep.space[key].get("log"):
                getattr(axes, f"set_{which}scale")("log")
        axes.set_xlabel(axis_of(x))
        axes.set_ylabel(axis_of(y))
        axes.grid(color=GRID, linewidth=0.6)

    caption = [
        _scale_text(metric, objective),
        "Ringed: the best" + ("; in orange, this run." if mark is not None else "."),
    ]
    if any(trial.number not in done for trial in trials):
        caption.append("×: pruned, failed or running.")
    title = f"{metric.label} by {key_text(x)} and {key_text(y)}"
    return Figure(title, draw_svg(name, title, draw, height=2.8, tips=tips), " ".join(caption))


def axis_of(key: str) -> str:
    """A key as the name of an axis.

    Args:
        key: Key of the run file.
    """
    return f"{key_text(key)}  ({key})" if key_text(key) in "αλ" else key
