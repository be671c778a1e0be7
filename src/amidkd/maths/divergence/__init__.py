"""Divergences D(a‖b) between two distributions: ≥ 0, and 0 only where a = b.

`catalogue`: the nine by name · `forms`: how they are computed · `base`: what each of them has.
"""

from amidkd.maths.divergence.base import Divergence, Pair, UserDivergence
from amidkd.maths.divergence.catalogue import DIVERGENCES, divergence, kl

__all__ = ["DIVERGENCES", "Divergence", "Pair", "UserDivergence", "divergence", "kl"]
