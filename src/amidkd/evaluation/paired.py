"""Tests of a difference: over prompts by flipping signs, over training seeds by Student's t, many at once by Holm.

Over prompts the null hypothesis is that it does not matter which of the two models gave which of the two answers to a
prompt. Each prompt's statistics are exchanged or not, at random, and the metric's difference is computed again; p is
the share of such differences that are at least as large as the one found (Fisher, The Design of Experiments, 1935;
Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989). It needs no distribution and holds for every formula.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from amidkd.evaluation.statistics import Array, Interval, Scores, check_paired, clusters

__all__ = ["SeedGap", "holm", "seed_gap", "sign_flip", "t_quantile", "t_two_sided"]

_EXACT = 12
"""Up to so many prompts that differ, all 2^n exchanges are looked at instead of random ones."""
_ROOM = 2_000_000


def sign_flip(first: Scores, second: Scores, *, flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the difference between two models on the same prompts.

    Args:
        first: Scores of one model.
        second: Scores of another on the same prompts, in the same order.
        flips: Random exchanges; with n of them the smallest p is 1/(n + 1). Few prompts are exchanged in every way.
        seed: Seed of the exchanges.

    Returns:
        p in (0, 1]; NaN where the difference is not finite.

    Raises:
        ValueError: They are not of the same prompts, or not of one metric.
    """
    check_paired(first, second)
    ours, theirs = clusters(first)[0], clusters(second)[0]
    total, gaps = (ours + theirs).sum(axis=0), ours - theirs
    gaps = gaps[(gaps != 0).any(axis=1)]
    if not (np.isfinite(total).all() and np.isfinite(gaps).all()):
        return math.nan

    def value(exchanged: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return first.value_of((total + exchanged) / 2) - first.value_of((total - exchanged) / 2)

    found = abs(float(value(gaps.sum(axis=0))))
    exact = len(gaps) <= _EXACT
    extreme = 0
    rows = 2 ** len(gaps) if exact else flips
    generator = np.random.default_rng((seed, len(gaps)))
    at_once = max(1, _ROOM // max(1, len(gaps)))
    for start in range(0, rows, at_once):
        count = min(at_once, rows - start)
        bits = (
            np.arange(start, start + count)[:, None] >> np.arange(len(gaps)) & 1
            if exact
            else generator.integers(0, 2, size=(count, len(gaps)))
        )
        drawn = np.abs(value((2.0 * bits - 1.0) @ gaps))
        # Equal differences come in other orders of the sum; and one without a value speaks for no effect.
        extreme += int((~(drawn < found * (1 - 1e-12))).sum())
    return extreme / rows if exact else (extreme + 1) / (rows + 1)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, so that the chance of any false finding stays below the level.

    Args:
        values: p-values; NaN ones are no tests and stay as they are.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    order = sorted((place for place, value in enumerate(values) if not math.isnan(value)), key=lambda n: values[n])
    adjusted, largest = list(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class SeedGap:
    """How two configurations differ when a training run is one draw.

    Args:
        value: Mean of the first's runs minus mean of the second's.
        stderr: Its standard error over training seeds.
        df: Degrees of freedom.
        interval: Confidence interval by Student's t.
        p: Two-sided p-value; NaN where all runs of each side are alike.
        paired: Whether runs were paired by their seed.
    """

    value: float
    stderr: float
    df: float
    interval: Interval
    p: float
    paired: bool


def seed_gap(first: dict[int, float], second: dict[int, float], *, level: float = 0.95) -> SeedGap | None:
    """The difference of two configurations with training runs as units.

    Runs are paired where both sides have the same seeds, since those share order of rows and first weights; else the
    two means are compared by Welch's test.

    Args:
        first: Value of each training seed.
        second: The other configuration's.
        level: Level of the interval.

    Returns:
        The difference, or None where a side has fewer than two runs or a value that is not finite: one run says nothing
        about the next.
    """
    ours, theirs = np.array(list(first.values())), np.array(list(second.values()))
    if min(len(ours), len(theirs)) < 2 or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return None
    paired = set(first) == set(second)
    value = float(ours.mean() - theirs.mean())
    if paired:
        gaps = np.array([first[seed] - second[seed] for seed in first])
        stderr, df = float(gaps.std(ddof=1) / math.sqrt(len(gaps))), float(len(gaps) - 1)
    else:
        parts = [float(side.var(ddof=1)) / len(side) for side in (ours, theirs)]
        stderr = math.sqrt(sum(parts))
        weights = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (ours, theirs), strict=True))
        df = sum(parts) ** 2 / weights if weights > 0 else float(len(ours) + len(theirs) - 2)
    half = t_quantile((1 + level) / 2, df) * stderr
    p = t_two_sided(value / stderr, df) if stderr > 0 else math.nan
    return SeedGap(value, stderr, df, Interval(value - half, value + half, level), p, paired)


def t_two_sided(t: float, df: float) -> float:
    """P(|T| ≥ |t|) of Student's t.

    With t = √ν · tan θ the density is cos^(ν−1) θ up to its norm, which Gauss and Legendre's rule integrates.

    Args:
        t: The statistic.
        df: Degrees of freedom ν, at least 1.
    """
    end = math.atan(abs(t) / math.sqrt(df))
    nodes, weights = _rule()
    # From the statistic to infinity, so that a small tail keeps its digits.
    middle, half = (math.pi / 2 + end) / 2, (math.pi / 2 - end) / 2
    tail = half * float((weights * np.cos(middle + half * nodes) ** (df - 1)).sum())
    norm = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * norm * tail)


@cache
def _rule() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return nodes, weights


def t_quantile(level: float, df: float) -> float:
    """The value that Student's t stays below with probability ``level``.

    Args:
        level: In (0.5, 1).
        df: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while 1 - t_two_sided(high, df) / 2 < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - t_two_sided(middle, df) / 2 < level else (low, middle)
    return (low + high) / 2
