"""From scores of every prompt to an estimate with its standard errors, each error by its name.

A score is a sum over a count: 1 or 0 over 1 for exact match, the log-probabilities of a row over its tokens for
NLL. The estimate is Σ sums / Σ counts (token-weighted where counts are tokens), and its standard error over an axis
treats everything that shares an index of that axis as one cluster:

    R = Σ_c y_c / Σ_c x_c,    se² = C/(C−1) · Σ_c (y_c − R x_c)² / (Σ_c x_c)²

(Cochran, Sampling Techniques, 1977, §6.4: the ratio estimator.) With equal counts this is the familiar s/√C.
Errors over prompts and over seeds answer different questions and are never added up.

A metric that is another function f of sums (BLEU, chrF, the calibration error) has its error by the jackknife, one
cluster left out at a time:

    v_c = f(Σ − statistics of c),    se² = (C−1)/C · Σ_c (v_c − v̄)²

(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §11.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amidkd.evaluation.formulas import FORMULAS, Array, Formula

__all__ = [
    "Array",
    "Estimate",
    "Interval",
    "Scores",
    "StandardError",
    "check_paired",
    "clusters",
    "difference",
    "estimate",
    "exponential",
    "ratio",
    "stack",
    "without_each",
]


@dataclass(frozen=True)
class StandardError:
    """How far an estimate would move if the things that it is an average over were drawn again.

    Args:
        over: What is drawn again: ``"prompts"``, ``"sampling seeds"`` or ``"training seeds"``.
        value: The standard error, in the unit of the estimate.
        n: How many there were.
    """

    over: str
    value: float
    n: int


@dataclass(frozen=True)
class Interval:
    """A confidence interval over prompts.

    Args:
        low: Its lower end.
        high: Its upper end.
        level: How often such an interval holds the true value, in (0, 1).
    """

    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Estimate:
    """A number with its standard errors.

    Args:
        value: The number.
        errors: Its standard errors, one for each thing that it is an average over; a single draw has none.
        interval: Its confidence interval over prompts, where one was made.
    """

    value: float
    errors: tuple[StandardError, ...] = ()
    interval: Interval | None = None

    def error(self, over: str) -> StandardError | None:
        """The standard error over ``over``, or None where there was one draw or the metric is none of these."""
        return next((error for error in self.errors if error.over == over), None)

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit: value, errors and interval times a positive factor."""
        interval = self.interval
        if interval is not None:
            interval = Interval(factor * interval.low, factor * interval.high, interval.level)
        return Estimate(factor * self.value, tuple(replace(e, value=factor * e.value) for e in self.errors), interval)

    def to_json(self) -> dict[str, Any]:
        """As a record holds it; a number that is not finite becomes its name, since JSON has none."""
        entry: dict[str, Any] = {
            "value": _plain(self.value),
            "errors": [{"over": e.over, "stderr": _plain(e.value), "n": e.n} for e in self.errors],
        }
        if self.interval is not None:
            entry["interval"] = [_plain(self.interval.low), _plain(self.interval.high)]
            entry["level"] = self.interval.level
        return entry

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Estimate":
        """The estimate that :meth:`to_json` wrote."""
        errors = (StandardError(e["over"], float(e["stderr"]), int(e["n"])) for e in entry["errors"])
        interval = None
        if entry.get("interval") is not None:
            low, high = map(float, entry["interval"])
            interval = Interval(low, high, float(entry["level"]))
        return Estimate(float(entry["value"]), tuple(errors), interval)


def _plain(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


@dataclass(frozen=True)
class Scores:
    """What one metric gave for every prompt, before averaging.

    Args:
        sums: Sums of the metric [..., P]; the last axis is prompts. For a formula other than a ratio, its statistics
            [..., P, K].
        counts: What they are sums over [..., P]: tokens, or 1 for a score of the whole answer; 0 where the prompt has
            no part in the metric.
        axes: Names of the axes; the last one is ``"prompts"``.
        formula: How the value follows from the sums over prompts, by names in
            :data:`~amidkd.evaluation.formulas.FORMULAS`.
    """

    sums: Array
    counts: Array
    axes: tuple[str, ...] = ("prompts",)
    formula: Formula = "ratio"

    def __post_init__(self) -> None:
        shape = self.sums.shape if self.formula == "ratio" else self.sums.shape[:-1]
        if shape != self.counts.shape or len(shape) != len(self.axes):
            raise ValueError(
                f"Scores needs sums and counts of one shape with an axis for each of {self.axes}; "
                f"got {self.sums.shape} and {self.counts.shape}"
            )

    @property
    def statistics(self) -> Array:
        """What adds up over prompts [..., P, K]; for a ratio sums and counts."""
        return np.stack([self.sums, self.counts], axis=-1) if self.formula == "ratio" else self.sums

    def value_of(self, totals: Array) -> Array:
        """The metric's value from statistics added up [..., K] over any choice of prompts: [...]."""
        return FORMULAS[self.formula](totals)


def ratio(sums: Array, counts: Array) -> tuple[float, float]:
    """Σ sums / Σ counts over C clusters, and its standard error.

    Args:
        sums: Sum of each cluster [C].
        counts: Count of each cluster [C], not all 0.

    Returns:
        Value and standard error; the error is NaN for a single cluster, since one draw says nothing about it, and
        where the value is infinite.

    Raises:
        ValueError: All counts are 0.

    Example:
        >>> ratio(np.array([1.0, 0.0, 1.0]), np.ones(3))
        (0.6666666666666666, 0.3333333333333333)
    """
    total = counts.sum()
    if not total > 0:
        raise ValueError("no average over nothing: all counts are 0")
    value = float(sums.sum() / total)
    # A single infinite score makes the average infinite; what its error would be is unknown.
    return value, _spread((sums - value * counts) / total) if math.isfinite(value) else math.nan


def _spread(residuals: Array) -> float:
    clusters = residuals.shape[0]
    if clusters < 2:
        return math.nan
    return float(np.sqrt(clusters / (clusters - 1) * np.square(residuals).sum()))


def clusters(scores: Scores, axis: str = "prompts") -> tuple[Array, NDArray[np.bool_]]:
    """What adds up over the metric, for each cluster along an axis.

    Args:
        scores: Scores of every prompt.
        axis: One of their axes.

    Returns:
        Statistics [C, K] (of a ratio: sum and count), and a mask [C] of the clusters where something was measured.
    """
    place = scores.axes.index(axis)
    others = tuple(other for other in range(len(scores.axes)) if other != place)
    return scores.statistics.sum(axis=others), scores.counts.sum(axis=others) > 0


def without_each(scores: Scores, statistics: Array) -> Array:
    """The metric with each cluster left out in turn.

    Args:
        scores: Whose statistics they are.
        statistics: Those of each cluster [C, K].

    Returns:
        Values [C].
    """
    return scores.value_of(statistics.sum(axis=0) - statistics)


def _jackknife(values: Array) -> float:
    count = len(values)
    return float(np.sqrt((count - 1) / count * np.square(values - values.mean()).sum()))


def estimate(scores: Scores) -> Estimate:
    """The average of all scores, with one standard error for each axis that has more than one entry.

    Args:
        scores: Scores of every prompt, and of every seed where there are several.

    Raises:
        ValueError: All counts are 0.
    """
    statistics, measured = clusters(scores)
    if not measured.any():
        raise ValueError("no average over nothing: all counts are 0")
    value = float(scores.value_of(statistics.sum(axis=0)))
    errors = []
    for name in reversed(scores.axes):
        statistics, measured = clusters(scores, name)
        # A prompt without the thing measured (no completion, say) was never drawn for this metric.
        if measured.sum() > 1:
            errors.append(StandardError(name, _error(scores, statistics[measured], value), int(measured.sum())))
    return Estimate(value, tuple(errors))


def _error(scores: Scores, statistics: Array, value: float) -> float:
    # A single infinite score makes the average infinite; what its error would be is unknown.
    if not math.isfinite(value):
        return math.nan
    if scores.formula == "ratio":
        return ratio(statistics[:, 0], statistics[:, 1])[1]
    return _jackknife(without_each(scores, statistics))


def difference(first: Scores, second: Scores) -> Estimate:
    """How much higher ``first`` is than ``second`` on the same prompts, with the paired standard errors.

    With R_a and R_b the two estimates, the residual of cluster c is (y_a − R_a x_a)/X_a − (y_b − R_b x_b)/X_b, so that
    what makes a prompt hard for both models cancels; metrics of a whole corpus are left out cluster by cluster on both
    sides at once. Axes that only one of them has (or that differ in size) are averaged over and get no error.

    Args:
        first: Scores of one model.
        second: Scores of another on the same prompts, in the same order.

    Raises:
        ValueError: The numbers of prompts, or the formulas, differ.
    """
    check_paired(first, second)
    value = estimate(first).value - estimate(second).value
    errors = []
    for name in reversed(first.axes):
        if name not in second.axes:
            continue
        (ours, mine), (theirs, other) = clusters(first, name), clusters(second, name)
        if ours.shape != theirs.shape:
            continue
        measured = mine | other
        if measured.sum() < 2:
            continue
        spread = math.nan
        if math.isfinite(value):
            spread = _gap_error(first, second, ours[measured], theirs[measured])
        errors.append(StandardError(name, spread, int(measured.sum())))
    return Estimate(value, tuple(errors))


def check_paired(first: Scores, second: Scores) -> None:
    """Refuse scores that are not of the same prompts, or not of the same kind.

    Raises:
        ValueError: They differ in the number of prompts or in their formula.
    """
    ours, theirs = first.counts.shape[-1], second.counts.shape[-1]
    if ours != theirs:
        raise ValueError(f"a paired difference needs the same prompts on both sides; got {ours} and {theirs}")
    if first.formula != second.formula:
        raise ValueError(f"a paired difference needs one metric; got {first.formula} and {second.formula}")


def _gap_error(first: Scores, second: Scores, ours: Array, theirs: Array) -> float:
    if first.formula == "ratio":
        return _spread(_residuals(ours) - _residuals(theirs))
    return _jackknife(without_each(first, ours) - without_each(second, theirs))


def _residuals(statistics: Array) -> Array:
    """How far each cluster is from the ratio of all, as a part of it."""
    sums, counts = statistics[:, 0], statistics[:, 1]
    return (sums - sums.sum() / counts.sum() * counts) / counts.sum()


def stack(scores: Sequence[Scores], axis: str) -> Scores:
    """Scores of several repetitions (such as training seeds) as one, with a new first axis.

    Args:
        scores: Scores on the same prompts.
        axis: What was repeated: ``"training seeds"`` or ``"sampling seeds"``.

    Raises:
        ValueError: None is given, or they do not have one shape.
    """
    shapes = {(s.sums.shape, s.axes, s.formula) for s in scores}
    if len(shapes) != 1:
        raise ValueError(f"scores to stack must have one shape; got {sorted(map(str, shapes))}")
    sums, counts = np.stack([s.sums for s in scores]), np.stack([s.counts for s in scores])
    return Scores(sums, counts, (axis, *scores[0].axes), scores[0].formula)


def exponential(mean: Estimate) -> Estimate:
    """exp of an estimate, its errors by the delta method: se(e^x) ≈ e^x · se(x). Perplexity is this of NLL."""
    value, interval = _exp(mean.value), mean.interval
    if interval is not None:
        interval = Interval(_exp(interval.low), _exp(interval.high), interval.level)
    return Estimate(value, tuple(replace(e, value=value * e.value) for e in mean.errors), interval)


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
