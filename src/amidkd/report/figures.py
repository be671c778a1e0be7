"""Figures as inline SVG: they take their colours and font from the page, so that they follow light and dark."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from amidkd.evaluation.statistics import Estimate

__all__ = [
    "DASHES",
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "SERIES",
    "Figure",
    "Series",
    "draw_svg",
    "interval_figure",
    "line_figure",
    "points_averaged",
]

# Stand-ins that matplotlib writes into the SVG and that become the page's colours afterwards.
INK, MUTED, GRID, PAPER = "#a10011", "#a10012", "#a10013", "#a10014"
SERIES = tuple(f"#a1000{n}" for n in range(1, 7))
_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--rule)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{n})" for n, colour in enumerate(SERIES, start=1)},
}
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MOST_POINTS = 300


@dataclass(frozen=True)
class Figure:
    """A picture of the page.

    Args:
        title: What it shows.
        svg: An ``<svg>`` element whose ids are its own within the page.
        caption: A sentence below it; may be empty.
    """

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a figure.

    Args:
        label: Its name in the legend.
        x: Positions, increasing.
        y: Values; NaN is a gap in the line.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


def line_figure(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    caption: str = "",
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Lines over a shared axis; runs of points are averaged where there are more than a picture can show.

    Args:
        name: Prefix of the SVG's ids, another for each figure of a page.
        title: What the figure shows.
        series: Its lines, at least one with a point.
        xlabel: Name and unit of the horizontal axis.
        ylabel: Name and unit of the vertical axis.
        caption: A sentence below the picture.
        marks: Vertical lines by label, such as the starts of stages.
    """
    size = points_averaged(max(len(line.x) for line in series))

    def draw(axes: Any) -> None:
        for index, line in enumerate(series):
            style = {
                "color": SERIES[index % len(SERIES)],
                "linestyle": DASHES[index % len(DASHES)],
                "marker": "o" if len(line.x) <= 12 else None,
            }
            for place, (x, y) in enumerate(_pieces(line)):
                axes.plot(_binned(x, size), _binned(y, size), label=line.label if place == 0 else None, **style)
        for label, position in (marks or {}).items():
            axes.axvline(position, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
            # Along the line, so that the names of short stages do not run into each other.
            style = {"color": MUTED, "fontsize": 7.5, "rotation": 90, "ha": "left", "va": "top"}
            axes.text(position, 0.97, label, transform=axes.get_xaxis_transform(), **style)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        if len(series) > 1:
            columns = 2 if len(series) > 3 else len(series)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns)

    points = [
        {
            "label": line.label,
            "x": [_plain(value) for part, _ in pieces for value in _binned(part, size)],
            "y": [_plain(value) for _, part in pieces for value in _binned(part, size)],
        }
        for line in series
        for pieces in (_pieces(line),)
    ]
    readout = {"name": xlabel, "lines": points}
    return Figure(title, draw_svg(name, title, draw, height=2.5, readout=readout), caption)


def _plain(value: float) -> float:
    return float(f"{value:.5g}")


def interval_figure(
    name: str, title: str, rows: Sequence[tuple[str, Estimate]], *, xlabel: str, caption: str = ""
) -> Figure:
    """A dot for each row with bars of ± one standard error, one line style for each thing it is over.

    Args:
        name: Prefix of the SVG's ids, another for each figure of a page.
        title: What the figure shows.
        rows: Label and estimate, from top to bottom.
        xlabel: Name and unit of the axis.
        caption: A sentence below the picture.
    """
    kinds = list(dict.fromkeys(error.over for _, estimate in rows for error in estimate.errors))

    def draw(axes: Any) -> None:
        positions = range(len(rows))
        for index, kind in enumerate(kinds):
            shift = 0.16 * (index - (len(kinds) - 1) / 2)
            points = [
                (y + shift, estimate.value, error.value)
                for y, (_, estimate) in zip(positions, rows, strict=True)
                for error in estimate.errors
                if error.over == kind and math.isfinite(estimate.value) and math.isfinite(error.value)
            ]
            axes.errorbar(
                [value for _, value, _ in points],
                [y for y, _, _ in points],
                xerr=[error for _, _, error in points],
                fmt="none",
                ecolor=SERIES[index % len(SERIES)],
                elinewidth=1.6,
                capsize=2.5,
                label=f"± standard error over {kind}",
            )
        axes.plot([e.value for _, e in rows], list(positions), "o", color=INK, markersize=4)
        axes.set_yticks(list(positions), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        if kinds:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=1)

    return Figure(title, draw_svg(name, title, draw, height=1.1 + 0.27 * len(rows)), caption)


def points_averaged(length: int) -> int:
    """How many neighbouring points become one in a picture of a line of this many.

    Args:
        length: Points of the longest line of the picture.
    """
    return max(1, -(-length // _MOST_POINTS))


def _pieces(line: Series) -> list[tuple[list[float], list[float]]]:
    """The line without its gaps."""
    pieces: list[tuple[list[float], list[float]]] = [([], [])]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isnan(y):
            pieces.append(([], []))
        else:
            pieces[-1][0].append(x)
            pieces[-1][1].append(y)
    return [piece for piece in pieces if piece[0]]


def _binned(values: Sequence[float], size: int) -> list[float]:
    chunks = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(chunk) / len(chunk) for chunk in chunks]


_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.5,
    "lines.markersize": 3,
}


def draw_svg(
    name: str,
    title: str,
    draw: Callable[[Any], None],
    *,
    height: float,
    width: float = 4.4,
    tips: Mapping[str, str] | None = None,
    readout: Mapping[str, Any] | None = None,
) -> str:
    """An ``<svg>`` element with the page's colours and font.

    Args:
        name: Prefix of its ids, another for each figure of a page.
        title: Its name for screen readers.
        draw: Draws on matplotlib's axes, in the colours ``INK``, ``MUTED``, ``GRID``, ``PAPER`` and ``SERIES``.
        height: Inches; a page stretches the picture to the width that it has.
        width: Inches.
        tips: What a pointer is told over a part of the picture, by the ``gid`` that ``draw`` gave it.
        readout: Points that a pointer reads off: ``name`` of the x axis, and ``lines`` with ``label``, ``x`` and ``y``.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context({**_STYLE, "svg.hashsalt": name}):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        axes = canvas.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        canvas.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = _inline(buffer.getvalue(), name, title, tips or {})
    return svg if readout is None else _readable(svg, axes, readout)


def _readable(svg: str, axes: Any, readout: Mapping[str, Any]) -> str:
    """The picture with its points, and where its axes are in it, for the script that reads them off."""
    box, (width, height) = axes.get_position(), axes.figure.get_size_inches()
    # An SVG has 72 units an inch, and 0 is at the top.
    across, down = 72 * width, 72 * height
    span = [across * box.x0, across * box.x1, down * (1 - box.y1), down * (1 - box.y0)]
    content = {**readout, "span": [round(float(end), 2) for end in span], "limits": [float(x) for x in axes.get_xlim()]}
    text = escape(json.dumps(content, ensure_ascii=False, separators=(",", ":")), quote=True)
    return svg.replace(' role="img"', f' role="img" data-readout="{text}"', 1)


def _inline(text: str, name: str, title: str, tips: Mapping[str, str]) -> str:
    """The ``<svg>`` element alone, with ids of its own, the page's colours and font, and a name for screen readers."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid=")', rf"\g<1>{name}-", text)
    text = re.sub(r'(href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(url\(#)", rf"\g<1>{name}-", text)
    # Versions of matplotlib write the font in one property or in several.
    text = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;?\s*", "", text)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    for part, tip in tips.items():
        text = text.replace(f'<g id="{name}-{part}">', f'<g id="{name}-{part}"><title>{escape(tip)}</title>', 1)
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{escape(title, quote=True)}">{rest}'.strip()
