"""The mathematics of distillation through an α-mixture, as a textbook in reading order.

`shapes`: what fits together · `mixture`: the assistant · `divergence`: how far two distributions are apart ·
`objective`: which two are compared · `gradient`: the same in closed form · `coarse`: truncated teachers ·
`reduce`: from tokens to a loss · `schedule`: α and λ over a run. Needs torch alone.
"""

from amidkd.maths.divergence import DIVERGENCES, Divergence, divergence
from amidkd.maths.gradient import value_and_gradient
from amidkd.maths.mixture import log_mixture, log_mixture_of, responsibility
from amidkd.maths.objective import Objective, WeightedSum

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "Objective",
    "WeightedSum",
    "divergence",
    "log_mixture",
    "log_mixture_of",
    "responsibility",
    "value_and_gradient",
]
