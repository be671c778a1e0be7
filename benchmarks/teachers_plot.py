"""The plot of docs/choose/teacher.md: error of each objective by k, and of each way to store by bytes."""

from pathlib import Path
from typing import Any

__all__ = ["plot"]

SHOWN = (
    "forward KL",
    "skew forward KL, κ = 0.1",
    "AMiD, α = −0.5",
    "AMiD, α = −3",
    "Jensen–Shannon, GKD β = 0.5",
    "TAID, t = 0.5",
    "total variation",
    "ABKD, (0.2, 0.7)",
    "reverse KL",
)
"""Objectives of the left panel; others lie between them."""

COLOURS = ("#1b4f9c", "#2a9d8f", "#d1495b", "#8e44ad", "#e08e0b", "#5b6770", "#111111", "#7f5539", "#c2185b")
MARKS = "osD^vPX<>"


def plot(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draw both panels on the stories and write SVG or PNG, by the file's ending."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    style = {"font.size": 10, "svg.hashsalt": "teacher", "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
        figure.patch.set_facecolor("white")
        _objectives(left, [row for row in found["error"] if row["world"] == "stories"])
        _stores(right, [row for row in found["samples"] if row["world"] == "stories"])
        for axes in (left, right):
            axes.set_facecolor("white")
            axes.grid(alpha=0.3, which="major")
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, metadata=metadata, dpi=150)
        pyplot.close(figure)


def _objectives(axes: Any, rows: list[dict[str, Any]]) -> None:
    width = max(row["k"] or 0 for row in rows)
    for objective, colour, mark in zip(SHOWN, COLOURS, MARKS, strict=True):
        points = [
            (row["k"], 100 * row["parameters_gradient_error"])
            for row in rows
            if row["objective"] == objective and row["form"] == "top_k" and row["k"] < width
        ]
        axes.plot(*zip(*points, strict=True), color=colour, marker=mark, label=objective)
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="error of the student's gradient, %")
    ticks = sorted({row["k"] for row in rows if row["k"] and row["k"] < width})
    axes.set_xticks(ticks, [str(k) for k in ticks], minor=False)
    axes.minorticks_off()
    axes.set_title("top k with its tail, by objective (stories, V = 512)")
    axes.legend(fontsize=8, loc="lower left")


def _stores(axes: Any, rows: list[dict[str, Any]]) -> None:
    stores = list(dict.fromkeys(row["store"] for row in rows))
    sizes = list(rows[0]["batch_errors"])
    for store, colour, mark in zip(stores, COLOURS, MARKS, strict=False):
        mine = [row for row in rows if row["store"] == store]
        for size, line in ((sizes[0], "-"), (sizes[-1], "--")):
            points = [(row["bytes"], 100 * row["batch_errors"][size]) for row in mine]
            label = f"{store}, {size} tokens"
            axes.plot(*zip(*points, strict=True), line, color=colour, marker=mark, label=label)
    axes.set(xscale="log", yscale="log", xlabel="bytes a token", ylabel="error of a batch's gradient, %")
    ticks = sorted({round(row["bytes"]) for row in rows if row["store"] == "top_k"})
    axes.set_xticks(ticks, [str(size) for size in ticks], minor=False)
    axes.minorticks_off()
    axes.set_title("forward KL: top k and samples at equal bytes (stories)")
    axes.legend(fontsize=8, loc="lower left")
