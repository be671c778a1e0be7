"""Which trials of a sweep cannot be told from the best one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from amidkd.evaluation.statistics import Estimate, StandardError, difference
from amidkd.record import RunFolder
from amidkd.report.sweep.record import Objective, Sweep, Trial, seed_values

__all__ = [
    "Comparison",
    "Standing",
    "standing",
    "t_quantile",
    "verdicts",
]

_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A trial beside the best one.

    Args:
        number: The trial.
        difference: Trial − best, with the standard error that the verdict rests on, if there is one.
        margin: How large a difference chance alone can make; None where nothing tells.
    """

    number: int
    difference: Estimate
    margin: float | None

    @property
    def inside(self) -> bool | None:
        """Whether the difference is inside the noise; None where nothing tells."""
        return None if self.margin is None else abs(self.difference.value) <= self.margin


@dataclass(frozen=True)
class Standing:
    """All complete trials beside the best one, in one objective.

    Args:
        objective: What they are compared in.
        best: The best trial.
        over: What the noise is over: ``training seeds`` or ``prompts``; None where nothing tells.
        paired: Whether the same seeds, or the same prompts, stand on both sides.
        units: How many of them.
        comparisons: Every other trial, the nearest first.
    """

    objective: Objective
    best: Trial
    over: str | None
    paired: bool
    units: int
    comparisons: tuple[Comparison, ...]

    def alike(self) -> list[int]:
        """The trials whose difference from the best is inside the noise."""
        return [each.number for each in self.comparisons if each.inside]

    def of(self, number: int) -> Comparison | None:
        """The comparison of a trial."""
        return next((each for each in self.comparisons if each.number == number), None)


def standing(sweep: Sweep, objective: Objective) -> Standing | None:
    """Compare every complete trial with the best one, by the best evidence that there is for all.

    Over training seeds where each trial has at least two: the residuals of the table trial × seed, pooled over the
    better half of the trials, or the trial's own paired differences where these spread more. Else over prompts, paired
    where the runs kept the scores of each prompt, from the two standard errors where not. The margin is that of a
    two-sided test at 5 % divided by the number of comparisons (Bonferroni), since the best of many is partly the
    luckiest.

    Args:
        sweep: The sweep.
        objective: What to compare in.

    Returns:
        The comparison, or None where no trial is complete.
    """
    trials = sweep.complete()
    if not trials:
        return None
    ranked = sorted(trials, key=lambda trial: objective.loss(_value(trial, objective.metric)))
    return _by_seeds(ranked, objective) or _by_prompts(ranked, objective)


def _value(trial: Trial, metric: str) -> float:
    found = trial.estimate(metric)
    assert found is not None, "complete() gives only trials with every objective"
    return found.value


def _by_seeds(ranked: Sequence[Trial], objective: Objective) -> Standing | None:
    by_trial = [seed_values(trial, objective.metric) for trial in ranked]
    seeds = sorted(set.intersection(*(set(values) for values in by_trial)))
    if len(seeds) < 2:
        return None
    table = np.array([[values[seed] for seed in seeds] for values in by_trial])
    order = np.argsort([objective.loss(mean) for mean in table.mean(axis=1)], kind="stable")
    ranked, table = [ranked[place] for place in order], table[order]
    half = table[: max(2, math.ceil(len(table) / 2))]
    residuals = half - half.mean(axis=1, keepdims=True) - half.mean(axis=0) + half.mean()
    freedom = max(1, (len(half) - 1) * (len(seeds) - 1))
    pooled = math.sqrt(2 * float(np.square(residuals).sum()) / freedom / len(seeds))
    factor = t_quantile(_one_sided(len(ranked) - 1), freedom)
    comparisons = []
    for trial, row in zip(ranked[1:], table[1:], strict=True):
        apart = row - table[0]
        error = max(pooled, float(apart.std(ddof=1)) / math.sqrt(len(seeds)))
        estimate = Estimate(float(apart.mean()), (StandardError("training seeds", error, len(seeds)),))
        comparisons.append(Comparison(trial.number, estimate, factor * error))
    return Standing(objective, ranked[0], "training seeds", True, len(seeds), tuple(comparisons))


def _by_prompts(ranked: Sequence[Trial], objective: Objective) -> Standing:
    metric, best = objective.metric, ranked[0]
    kept: dict[int, Any] = {trial.number: _scores(trial, metric) for trial in ranked}
    paired = all(_same_prompts(kept[best.number], scores) for scores in kept.values())
    factor = NormalDist().inv_cdf(_one_sided(len(ranked) - 1))
    comparisons, units = [], 0
    for trial in ranked[1:]:
        if paired:
            found = difference(kept[trial.number][1], kept[best.number][1])
            error = found.error("prompts")
        else:
            found, error = _unpaired(trial, best, metric)
        units = max(units, error.n if error else 0)
        known = error is not None and math.isfinite(error.value)
        shown = Estimate(found.value, (error,) if error is not None and known else ())
        comparisons.append(Comparison(trial.number, shown, factor * error.value if error and known else None))
    over = "prompts" if any(each.margin is not None for each in comparisons) else None
    return Standing(objective, best, over, paired and over is not None, units, tuple(comparisons))


def _scores(trial: Trial, metric: str) -> Any:
    """The prompts and the student's score of each, where the trial has one run that kept them."""
    from amidkd.evaluation.scores import read_scores

    paths = [RunFolder(path).scores_file for path in trial.runs.values()]
    if len(paths) != 1 or not paths[0].is_file():
        return None
    task, _, name = metric.rpartition(".")
    stored = read_scores(paths[0]).get(task)
    scores = stored.student.get(name) if stored is not None else None
    return None if stored is None or scores is None else (stored.prompts, scores)


def _same_prompts(first: Any, second: Any) -> bool:
    return first is not None and second is not None and first[0] == second[0]


def _unpaired(trial: Trial, best: Trial, metric: str) -> tuple[Estimate, StandardError | None]:
    ours, theirs = trial.estimate(metric), best.estimate(metric)
    assert ours is not None
    assert theirs is not None
    errors = [each.error("prompts") for each in (ours, theirs)]
    apart = Estimate(ours.value - theirs.value)
    if any(error is None for error in errors):
        return apart, None
    both = [error for error in errors if error is not None]
    return apart, StandardError("prompts", math.hypot(*(e.value for e in both)), min(e.n for e in both))


def _one_sided(comparisons: int) -> float:
    """Probability below the margin's quantile, for so many comparisons at a time."""
    return 1 - (1 - _LEVEL) / 2 / max(1, comparisons)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: Mass below it, in (0.5, 1).
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < probability else (low, middle)
    return high


def _t_below(value: float, freedom: int) -> float:
    """Mass below a value ≥ 0 (Abramowitz & Stegun, 1972, 26.7.3 and 26.7.4, for whole degrees of freedom)."""
    angle = math.atan2(value, math.sqrt(freedom))
    cosine = math.cos(angle)
    if freedom % 2:
        term, total = cosine, cosine if freedom > 1 else 0.0
        for n in range(3, freedom - 1, 2):
            term *= cosine * cosine * (n - 1) / n
            total += term
        between = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term, total = 1.0, 1.0
        for n in range(2, freedom - 1, 2):
            term *= cosine * cosine * (n - 1) / n
            total += term
        between = math.sin(angle) * total
    return 0.5 + between / 2


def verdicts(found: Standing) -> Mapping[int, str]:
    """A few words on each trial, by number: the best, inside the noise, worse by how much.

    Args:
        found: The comparison.
    """
    words = {found.best.number: "best"}
    for each in found.comparisons:
        words[each.number] = {True: "inside the noise", False: "worse", None: "not known"}[each.inside]
    return words
