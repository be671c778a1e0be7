"""Confidence intervals over prompts: prompts are drawn again, with replacement, and the metric is computed each time.

The interval is BCa (bias-corrected and accelerated; Efron, Better Bootstrap Confidence Intervals, 1987): the quantiles
of the resampled values are moved by how far their median is from the value, and by how its error changes with it. So it
stays inside the range of a share and is not symmetric where the scores are not. The draws hang on a fixed seed and the
number of prompts alone: the same scores give the same interval.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from amidkd.evaluation.statistics import (
    Array,
    Estimate,
    Interval,
    Scores,
    check_paired,
    clusters,
    difference,
    estimate,
    without_each,
)

__all__ = ["Bootstrap"]

_ROOM = 2_000_000
"""Draws that are in memory at once: 16 MB as 64-bit numbers, whatever the number of prompts."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Args:
        resamples: How many times the prompts are drawn.
        level: Level of the intervals, in (0, 1).
        seed: Seed of the draws.
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def estimates(self, scores: Mapping[str, Scores]) -> dict[str, Estimate]:
        """Every metric with its standard errors and its interval.

        No interval is given where fewer than two prompts were measured, where the value is infinite, where every
        prompt has the same score (drawing equal scores again says nothing about prompts that were not seen), and where
        nearly all draws lie on one side of the value, as with the calibration error of a few prompts.

        Args:
            scores: Scores by metric.
        """
        found = {name: estimate(entry) for name, entry in scores.items()}
        resampled: dict[int, dict[str, Array]] = {}
        for name, entry in scores.items():
            statistics, measured = clusters(entry)
            if measured.sum() > 1 and math.isfinite(found[name].value):
                resampled.setdefault(int(measured.sum()), {})[name] = statistics[measured]
        for group in resampled.values():
            # The draws hang on the number of prompts: metrics that share it share them.
            totals = self._totals(np.concatenate(list(group.values()), axis=1))
            start = 0
            for name, statistics in group.items():
                end = start + statistics.shape[1]
                found[name] = self._with_interval(scores[name], found[name], statistics, totals[:, start:end])
                start = end
        return found

    def _with_interval(self, scores: Scores, found: Estimate, statistics: Array, totals: Array) -> Estimate:
        left_out = without_each(scores, statistics)
        if np.ptp(left_out) <= 1e-12 * max(1.0, abs(found.value)):
            return found
        return replace(found, interval=self._interval(found.value, scores.value_of(totals), left_out))

    def gap(self, first: Scores, second: Scores) -> Estimate:
        """How much higher ``first`` is than ``second`` on the same prompts, with paired errors and interval.

        A prompt is drawn for both at once. Where no prompt tells them apart the interval is the value alone.

        Args:
            first: Scores of one model.
            second: Scores of another on the same prompts, in the same order.

        Raises:
            ValueError: They are not of the same prompts, or not of one metric.
        """
        check_paired(first, second)
        found = difference(first, second)
        (ours, mine), (theirs, other) = clusters(first), clusters(second)
        measured = mine | other
        if measured.sum() < 2 or not math.isfinite(found.value):
            return found
        ours, theirs = ours[measured], theirs[measured]
        with np.errstate(divide="ignore", invalid="ignore"):
            left_out = without_each(first, ours) - without_each(second, theirs)
            totals = self._totals(np.concatenate([ours, theirs], axis=1))
            width = ours.shape[1]
            drawn = first.value_of(totals[:, :width]) - second.value_of(totals[:, width:])
        return replace(found, interval=self._interval(found.value, drawn, left_out))

    def _totals(self, statistics: Array) -> Array:
        """Sums over resampled clusters [R, K] of statistics [C, K], a few resamples at a time."""
        count, width = statistics.shape
        generator = np.random.default_rng((self.seed, count))
        totals = np.empty((self.resamples, width))
        at_once = max(1, _ROOM // count)
        for start in range(0, self.resamples, at_once):
            rows = min(at_once, self.resamples - start)
            draws = generator.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
            times = np.bincount(draws.ravel(), minlength=rows * count).reshape(rows, count)
            totals[start : start + rows] = times.astype(float) @ statistics
        return totals

    def _interval(self, value: float, drawn: Array, left_out: Array) -> Interval | None:
        drawn = drawn[np.isfinite(drawn)]
        # A prompt that alone decides whether there is a value at all leaves nothing to say about other prompts.
        if len(drawn) < self.resamples / 2 or not np.isfinite(left_out).all():
            return None
        low, high = (1 - self.level) / 2, (1 + self.level) / 2
        alike = np.isclose(drawn, value, rtol=1e-9, atol=1e-12)
        below = float((~alike & (drawn < value)).mean() + 0.5 * alike.mean())
        # Further off than that, the bias is larger than what BCa corrects: its interval would be a point, or elsewhere.
        if not low < below < high:
            return None
        low, high = (_moved(level, below, _acceleration(left_out)) for level in (low, high))
        ends = np.quantile(drawn, [low, high])
        return Interval(float(ends[0]), float(ends[1]), self.level)


def _acceleration(left_out: Array) -> float:
    """How fast the standard error changes with the value, from the values with each cluster left out."""
    gaps = left_out.mean() - left_out
    spread = float(np.square(gaps).sum()) ** 1.5
    return float((gaps**3).sum()) / (6 * spread) if spread > 0 else 0.0


def _moved(level: float, below: float, acceleration: float) -> float:
    normal = NormalDist()
    bias, at = normal.inv_cdf(below), normal.inv_cdf(level)
    room = 1 - acceleration * (bias + at)
    # Beyond its pole the correction means nothing; that takes a handful of prompts, one of them far from the others.
    return normal.cdf(bias + (bias + at) / room) if room > 0 else level
