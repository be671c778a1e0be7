"""Where a run's objective lies among the known ones: α against λ."""

from collections.abc import Mapping, Sequence
from typing import Any

from amidkd.config import ObjectiveConfig, TermConfig
from amidkd.config.objective import schedule_values
from amidkd.report.figures import GRID, INK, MUTED, PAPER, SERIES, Figure, draw_svg
from amidkd.report.words import describe_term, number

__all__ = ["point_figure"]

_KNOWN = (
    ("skew-forward", -1.0, 0.1, "DistiLLM, skew forward", "DistiLLM: KL(teacher‖assistant), α = −1, λ = 0.1"),
    ("skew-reverse", -1.0, 0.9, "DistiLLM, skew reverse", "DistiLLM: KL(student‖assistant), α = −1, λ = 0.9"),
    ("amid-3", -3.0, 0.1, "AMiD", "AMiD's paper: KL(teacher‖assistant), α = −3, λ = 0.1"),
    ("amid-5", -5.0, 0.1, "AMiD", "AMiD's paper: KL(teacher‖assistant), α = −5, λ = 0.1"),
)  # fmt: skip
_LINES = (
    ("gkd", ((-1.0, 0.0), (-1.0, 1.0)), "GKD: α = −1, both pairs weighted, λ = β"),
    ("taid", ((1.0, 0.0), (1.0, 1.0)), "TAID: KL(assistant‖student), α = 1, λ rising to 1"),
    ("forward", ((-6.0, 0.0), (4.0, 0.0)), "λ = 0: the assistant is the student; KL(teacher‖assistant) is forward KL"),
    ("reverse", ((-6.0, 1.0), (4.0, 1.0)), "λ = 1: the assistant is the teacher; KL(student‖assistant) is reverse KL"),
)  # fmt: skip
_PATH_POINTS = 60


def point_figure(objective: ObjectiveConfig, lines: Sequence[Mapping[str, Any]] = ()) -> Figure | None:
    """A run's α and λ beside those of known methods; a schedule is the path that it took.

    Args:
        objective: The run's.
        lines: Lines of its ``metrics.jsonl``; where they hold ``alpha`` and ``lam``, a schedule's path is theirs.

    Returns:
        The figure, or None where the objective has no assistant and so no place in it.
    """
    terms: list[TermConfig] = list(objective.terms) if objective.terms is not None else [objective]
    places = [(describe_term(term), _path(term, lines)) for term in terms if "assistant" in term.between]
    if not places:
        return None
    every = [point for _, path in places for point in path]
    tips = {f"known-{name}": words for name, _, _, _, words in _KNOWN}
    tips |= {f"line-{name}": words for name, _, words in _LINES}
    tips |= {f"run-{place}": f"This run: {words}" for place, (words, _) in enumerate(places)}
    svg = draw_svg("point", "α and λ of this run and of known methods", _drawing(places, every), height=2.9, tips=tips)
    return Figure(
        "This run among known methods",
        svg,
        "α shapes the assistant (−1 arithmetic, 0 square-root, 1 geometric mean); λ is the teacher's weight in it. "
        "Low α seeks the teacher's strongest modes, α near 1 covers them all.",
    )


def _path(term: TermConfig, lines: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The values that the run took, in order; before it, those at which its schedules begin and end."""
    alphas, lams = schedule_values(term.alpha), schedule_values(term.lam)
    if len(alphas) == len(lams) == 1:
        return [(alphas[0], lams[0])]
    taken = [(float(line["alpha"]), float(line["lam"])) for line in lines if "alpha" in line and "lam" in line]
    if not taken:
        longest = max(len(alphas), len(lams))
        return [(alphas[min(i, len(alphas) - 1)], lams[min(i, len(lams) - 1)]) for i in range(longest)]
    every = max(1, len(taken) // _PATH_POINTS)
    return list(dict.fromkeys([*taken[::every], taken[-1]]))


def _drawing(places: Sequence[tuple[str, Sequence[tuple[float, float]]]], every: Sequence[tuple[float, float]]) -> Any:
    low = min(-5.6, *(alpha - 0.6 for alpha, _ in every))
    high = max(3.4, *(alpha + 0.6 for alpha, _ in every))

    def draw(axes: Any) -> None:
        for name, line, _ in _LINES:
            ends = [min(max(alpha, low), high) for alpha, _ in line]
            gid, style = f"line-{name}", (0, (4, 2))
            axes.plot(ends, [lam for _, lam in line], color=MUTED, linewidth=1.2, linestyle=style, gid=gid)
        for alpha, lam, text, turn in ((-0.92, 0.55, "GKD", 90), (1.08, 0.55, "TAID", 90)):
            axes.text(alpha, lam, text, color=MUTED, fontsize=7.5, rotation=turn, va="center")
        axes.text(low, 0.02, "forward KL", color=MUTED, fontsize=7.5, va="bottom")
        axes.text(low, 0.98, "reverse KL", color=MUTED, fontsize=7.5, va="top")
        for name, alpha, lam, label, _ in _KNOWN:
            axes.plot([alpha], [lam], "o", color=MUTED, markerfacecolor=PAPER, markersize=6, gid=f"known-{name}")
            _name(axes, label, (alpha, lam), 6, color=MUTED, fontsize=7.5)
        for place, (_, path) in enumerate(places):
            x, y = [alpha for alpha, _ in path], [lam for _, lam in path]
            if len(path) > 1:
                axes.plot(x, y, color=SERIES[place % len(SERIES)], linewidth=2)
            axes.plot(x[-1:], y[-1:], "D", color=SERIES[place % len(SERIES)], markersize=8, gid=f"run-{place}")
            words = f"this run: α = {number(x[-1])}, λ = {number(y[-1])}"
            _name(axes, words, path[-1], 20 + 12 * place, color=INK, fontsize=8.5)
        axes.set_xlim(low, high)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlabel("α")
        axes.set_ylabel("λ, the teacher's weight")
        axes.grid(color=GRID, linewidth=0.6)

    return draw


def _name(axes: Any, words: str, point: tuple[float, float], distance: float, **style: Any) -> None:
    """Words above a point of the lower half, below one of the upper half."""
    up = point[1] < 0.5
    offset = (0, distance if up else -distance)
    style["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
    axes.annotate(words, point, offset, textcoords="offset points", ha="center", va="bottom" if up else "top", **style)
