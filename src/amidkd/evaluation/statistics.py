"""From scores of every prompt to an estimate with its standard errors, each error by its name.

A score is a sum over a count: 1 or 0 over 1 for exact match, the log-probabilities of a row over its tokens for
NLL. The estimate is Σ sums / Σ counts (token-weighted where counts are tokens), and its standard error over an axis
treats everything that shares an index of that axis as one cluster:

    R = Σ_c y_c / Σ_c x_c,    se² = C/(C−1) · Σ_c (y_c − R x_c)² / (Σ_c x_c)²

(Cochran, Sampling Techniques, 1977, §6.4: the ratio estimator.) With equal counts this is the familiar s/√C.
Errors over prompts and over seeds answer different questions and are never added up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Estimate",
    "Scores",
    "StandardError",
    "difference",
    "estimate",
    "exponential",
    "ratio",
    "stack",
]

Array = NDArray[np.float64]


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
class Estimate:
    """A number with its standard errors.

    Args:
        value: The number.
        errors: Its standard errors, one for each thing that it is an average over; a single draw has none.
    """

    value: float
    errors: tuple[StandardError, ...] = ()

    def error(self, over: str) -> StandardError | None:
        """The standard error over ``over``, or None where there was one draw or the metric is none of these."""
        return next((error for error in self.errors if error.over == over), None)

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit: value and errors times a positive factor."""
        return Estimate(factor * self.value, tuple(replace(e, value=factor * e.value) for e in self.errors))

    def to_json(self) -> dict[str, Any]:
        """As a record holds it; a number that is not finite becomes its name, since JSON has none."""
        return {
            "value": _plain(self.value),
            "errors": [{"over": e.over, "stderr": _plain(e.value), "n": e.n} for e in self.errors],
        }

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Estimate":
        """The estimate that :meth:`to_json` wrote."""
        errors = (StandardError(e["over"], float(e["stderr"]), int(e["n"])) for e in entry["errors"])
        return Estimate(float(entry["value"]), tuple(errors))


def _plain(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


@dataclass(frozen=True)
class Scores:
    """What one metric gave for every prompt, before averaging.

    Args:
        sums: Sums of the metric [..., P]; the last axis is prompts.
        counts: What they are sums over, of the same shape: tokens, or 1 for a score of the whole answer.
        axes: Names of the axes; the last one is ``"prompts"``.
    """

    sums: Array
    counts: Array
    axes: tuple[str, ...] = ("prompts",)

    def __post_init__(self) -> None:
        if self.sums.shape != self.counts.shape or self.sums.ndim != len(self.axes):
            raise ValueError(
                f"Scores needs sums and counts of one shape with an axis for each of {self.axes}; "
                f"got {self.sums.shape} and {self.counts.shape}"
            )


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


def _along(array: Array, axis: int) -> Array:
    """Sum over every axis but one."""
    return array.sum(axis=tuple(other for other in range(array.ndim) if other != axis))


def estimate(scores: Scores) -> Estimate:
    """The average of all scores, with one standard error for each axis that has more than one entry.

    Args:
        scores: Scores of every prompt, and of every seed where there are several.

    Raises:
        ValueError: All counts are 0.
    """
    value, _ = ratio(scores.sums.ravel(), scores.counts.ravel())
    errors = []
    for axis, name in enumerate(scores.axes):
        sums, counts = _along(scores.sums, axis), _along(scores.counts, axis)
        # A prompt without the thing measured (no completion, say) was never drawn for this metric.
        measured = counts > 0
        if measured.sum() > 1:
            _, spread = ratio(sums[measured], counts[measured])
            errors.append(StandardError(name, spread, int(measured.sum())))
    return Estimate(value, tuple(reversed(errors)))


def difference(first: Scores, second: Scores) -> Estimate:
    """How much higher ``first`` is than ``second`` on the same prompts, with the paired standard errors.

    With R_a and R_b the two estimates, the residual of cluster c is (y_a − R_a x_a)/X_a − (y_b − R_b x_b)/X_b, so that
    what makes a prompt hard for both models cancels. Axes that only one of them has (or that differ in size) are
    averaged over and get no error.

    Args:
        first: Scores of one model.
        second: Scores of another on the same prompts, in the same order.

    Raises:
        ValueError: The numbers of prompts differ.
    """
    if first.sums.shape[-1] != second.sums.shape[-1]:
        raise ValueError(
            f"a paired difference needs the same prompts on both sides; "
            f"got {first.sums.shape[-1]} and {second.sums.shape[-1]}"
        )
    value = estimate(first).value - estimate(second).value
    errors = []
    for name in reversed(first.axes):
        if name not in second.axes:
            continue
        (ours, counts), (theirs, others) = _residuals(first, name), _residuals(second, name)
        if ours.shape != theirs.shape:
            continue
        measured = (counts > 0) | (others > 0)
        if measured.sum() > 1:
            errors.append(StandardError(name, _spread((ours - theirs)[measured]), int(measured.sum())))
    return Estimate(value, tuple(errors))


def _residuals(scores: Scores, name: str) -> tuple[Array, Array]:
    """How far each cluster along an axis is from the average, as a part of it; and the clusters' counts."""
    axis = scores.axes.index(name)
    sums, counts = _along(scores.sums, axis), _along(scores.counts, axis)
    value, total = ratio(sums, counts)[0], counts.sum()
    if not math.isfinite(value):
        return np.full_like(sums, math.nan), counts
    return (sums - value * counts) / total, counts


def stack(scores: Sequence[Scores], axis: str) -> Scores:
    """Scores of several repetitions (such as training seeds) as one, with a new first axis.

    Args:
        scores: Scores on the same prompts.
        axis: What was repeated: ``"training seeds"`` or ``"sampling seeds"``.

    Raises:
        ValueError: None is given, or they do not have one shape.
    """
    shapes = {(s.sums.shape, s.axes) for s in scores}
    if len(shapes) != 1:
        raise ValueError(f"scores to stack must have one shape; got {sorted(map(str, shapes))}")
    return Scores(np.stack([s.sums for s in scores]), np.stack([s.counts for s in scores]), (axis, *scores[0].axes))


def exponential(mean: Estimate) -> Estimate:
    """exp of an estimate, its errors by the delta method: se(e^x) ≈ e^x · se(x). Perplexity is this of NLL."""
    value = math.exp(mean.value) if mean.value < 709 else math.inf
    return Estimate(value, tuple(replace(e, value=value * e.value) for e in mean.errors))
