"""What α does, in one picture: a teacher of two modes, and a student that can be one bump only.

    python examples/toy.py [docs/images/toy.svg] [--lam 0.1]

Each objective has its best bump found by gradient descent (the closed-form gradient of ``amidkd.maths``, from several
starts). A bump over both modes covers the teacher; one on the larger mode seeks it. This is the toy experiment of AMiD
(arXiv 2510.15982) with an own teacher.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amidkd.maths import Objective
from amidkd.maths.gradient import value_and_gradient

ALPHAS = (-5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0)
PAIRS = ("teacher||assistant", "student||assistant")
PLACES = torch.linspace(-6.0, 6.0, 241, dtype=torch.float64)
STARTS = ((0.0, 3.0), (-1.6, 0.6), (1.8, 0.9))


def bump(centre: Tensor, width: Tensor) -> Tensor:
    """Log-probabilities [*N, V] of a discretised Gaussian with centres and widths [*N]."""
    distance = (PLACES - centre.unsqueeze(-1)) / width.unsqueeze(-1)
    return torch.log_softmax(-0.5 * distance**2, -1)


def two_modes() -> Tensor:
    """The teacher's log-probabilities [V]: 65 % of its mass around −1.6, 35 % around 1.8."""
    shares, centres, widths = (torch.tensor(v, dtype=torch.float64) for v in ((0.65, 0.35), (-1.6, 1.8), (0.6, 0.9)))
    return torch.logsumexp(shares.log().unsqueeze(-1) + bump(centres, widths), 0)


@dataclass(frozen=True)
class Fit:
    """The best bump of an objective, and what it is like."""

    objective: str
    alpha: float | None
    centre: float
    width: float
    forward: float
    reverse: float

    @property
    def log_q(self) -> Tensor:
        """The student's log-probabilities [V]."""
        return bump(*torch.tensor([[self.centre], [self.width]], dtype=torch.float64))[0]


def fit(between: str, alphas: Sequence[float], *, lam: float, steps: int) -> list[Fit]:
    """The best student for each α: the lowest value from any start, all of them descending at once."""
    log_p = two_modes()
    alpha = torch.tensor(alphas, dtype=torch.float64).repeat_interleave(len(STARTS))
    start = torch.tensor(STARTS, dtype=torch.float64).repeat(len(alphas), 1)
    centre, log_width = start[:, 0].clone(), start[:, 1].log()
    objective = Objective(between=between, alpha=alpha, lam=lam)
    teacher = log_p.expand(len(alpha), -1)
    optimizer = torch.optim.Adam([centre, log_width], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        _, slope = value_and_gradient(objective, teacher=teacher, student=bump(centre, log_width.exp()))
        # Through the logits −(v − centre)² / (2 width²).
        distance = (PLACES - centre.unsqueeze(-1)) / log_width.exp().unsqueeze(-1)
        centre.grad = (slope * distance).sum(-1) / log_width.exp()
        log_width.grad = (slope * distance**2).sum(-1)
        optimizer.step()
        schedule.step()
    log_q = bump(centre, log_width.exp())
    value = objective(teacher=teacher, student=log_q).reshape(len(alphas), -1)
    best = value.argmin(-1) + torch.arange(len(alphas)) * len(STARTS)
    forward = Objective(between="teacher||student")(teacher=teacher, student=log_q)
    reverse = Objective(between="student||teacher")(teacher=teacher, student=log_q)
    with_assistant = "assistant" in between
    return [
        Fit(
            objective=f"KL({between.replace('||', '‖')})",
            alpha=a if with_assistant else None,
            centre=float(centre[row]),
            width=float(log_width[row].exp()),
            forward=float(forward[row]),
            reverse=float(reverse[row]),
        )
        for a, row in zip(alphas, best.tolist(), strict=True)
    ]


def show(fits: Sequence[Fit]) -> None:
    """Print the table."""
    print(f"{'objective':24} {'α':>5} {'centre':>8} {'width':>7} {'KL(p‖q)':>9} {'KL(q‖p)':>9}   it")
    for found in fits:
        alpha = "–" if found.alpha is None else f"{found.alpha:g}".replace("-", "−")
        centre = f"{found.centre:.2f}".replace("-", "−")
        kind = "covers both modes" if found.width > 1.2 else "seeks one mode"
        numbers = f"{centre:>8} {found.width:7.2f} {found.forward:9.3f} {found.reverse:9.3f}"
        print(f"{found.objective:24} {alpha:>5} {numbers}   {kind}")


def draw(fits: Sequence[Fit], lam: float, path: Path) -> None:
    """One panel for each pair: the teacher, the two plain KLs, and the best bump at each α."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": "toy", "font.size": 9}
    with pyplot.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
        colours = pyplot.get_cmap("viridis")
        for axes, pair in zip(panels, PAIRS, strict=True):
            axes.fill_between(PLACES, two_modes().exp(), color="0.85", label="teacher")
            for found in fits:
                if found.alpha is None:
                    dashes = {"KL(teacher‖student)": (0, (5, 2)), "KL(student‖teacher)": (0, (1, 1.5))}[found.objective]
                    axes.plot(
                        PLACES, found.log_q.exp(), color="0.35", linewidth=1.2, linestyle=dashes, label=found.objective
                    )
                elif found.objective == f"KL({pair.replace('||', '‖')})":
                    place = ALPHAS.index(found.alpha) / (len(ALPHAS) - 1) if found.alpha in ALPHAS else 0.5
                    label = f"α = {found.alpha:g}".replace("-", "−")
                    axes.plot(PLACES, found.log_q.exp(), color=colours(0.9 * place), linewidth=1.6, label=label)
            axes.set_title(f"KL({pair.replace('||', '‖')}), λ = {lam:g}", fontsize=10)
            axes.set_xlabel("outcome")
            axes.set_yticks([])
        panels[1].legend(loc="upper right", frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main(words: Sequence[str] | None = None, *, steps: int = 300) -> list[Fit]:
    """Fit, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", default="toy.svg", help="where the picture goes")
    parser.add_argument("--lam", type=float, default=0.1, help="λ, the teacher's weight in the assistant")
    options = parser.parse_args(words)
    fits = [
        *(fit(pair, [0.0], lam=0.5, steps=steps)[0] for pair in ("teacher||student", "student||teacher")),
        *(found for pair in PAIRS for found in fit(pair, ALPHAS, lam=options.lam, steps=steps)),
    ]
    show(fits)
    draw(fits, options.lam, Path(options.picture))
    print(f"Picture: {options.picture}")
    return fits


if __name__ == "__main__":
    main()
