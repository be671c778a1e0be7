"""From statistics that add up over prompts to the value of a metric of all of them together.

Most metrics are ratios of two sums. BLEU, chrF and the calibration error are other functions of a few sums: kept prompt
by prompt, those give the value of any set of prompts, so that errors and intervals need no answer to be read again.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLEU_ORDERS", "CHRF_ORDERS", "FORMULAS", "Array", "Formula"]

Array = NDArray[np.float64]
Formula = Literal["ratio", "bleu", "chrf", "calibration"]

BLEU_ORDERS = 4
"""Words of the longest n-gram that BLEU counts."""
CHRF_ORDERS = 6
"""Characters of the longest n-gram that chrF counts."""
_BETA_SQUARED = 4.0
"""chrF weighs recall β = 2 times as much as precision."""


def _ratio(totals: Array) -> Array:
    """Sum over count, [..., 2]."""
    return totals[..., 0] / totals[..., 1]


def _bleu(totals: Array) -> Array:
    """Length of answers and of the nearest references, matches of each order, n-grams of each order: [..., 2 + 2·4].

    Source: Papineni et al. 2002, with mteval-v13a's smoothing (each order without a match counts half as much as the
    one before), as in sacrebleu.
    """
    said, right = totals[..., 0], totals[..., 1]
    matches, counts = totals[..., 2 : 2 + BLEU_ORDERS], totals[..., 2 + BLEU_ORDERS :]
    smoothing = 2.0 ** np.cumsum(matches == 0, axis=-1)
    # Where there is no n-gram of an order, or no match at all, the score is 0.
    known = (counts > 0).all(-1) & (matches > 0).any(-1)
    counts = np.where(counts > 0, counts, 1.0)
    precisions = np.where(matches > 0, matches / counts, 1.0 / (smoothing * counts))
    brevity = np.minimum(0.0, 1.0 - right / np.where(said > 0, said, 1.0))
    return np.where(known, 100.0 * np.exp(brevity + np.log(precisions).mean(-1)), 0.0)


def _chrf(totals: Array) -> Array:
    """N-grams of the answer, of the reference, and shared ones, order by order: [..., 6·3].

    Source: Popović 2015, precision and recall averaged over the orders that both sides have, as in sacrebleu.
    """
    said, right, shared = np.moveaxis(totals.reshape(*totals.shape[:-1], CHRF_ORDERS, 3), -1, 0)
    known = (said > 0) & (right > 0)
    orders = np.maximum(known.sum(-1), 1)
    precision = np.where(known, shared / np.where(said > 0, said, 1.0), 0.0).sum(-1) / orders
    recall = np.where(known, shared / np.where(right > 0, right, 1.0), 0.0).sum(-1) / orders
    weight = _BETA_SQUARED * precision + recall
    return 100.0 * (1 + _BETA_SQUARED) * precision * recall / np.where(weight > 0, weight, 1.0)


def _calibration(totals: Array) -> Array:
    """Confidence less what was right, bin by bin, and last the number of tokens: [..., bins + 1].

    Source: Naeini et al. 2015, Guo et al. 2017: Σ_b |Σ_{i in b} (confidence − right)| / n.
    """
    return np.abs(totals[..., :-1]).sum(-1) / totals[..., -1]


FORMULAS: dict[Formula, Callable[[Array], Array]] = {
    "ratio": _ratio,
    "bleu": _bleu,
    "chrf": _chrf,
    "calibration": _calibration,
}
"""Sums over prompts [..., K] → values [...]."""
