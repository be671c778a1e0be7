"""Is it good? Metrics of a student beside its teacher, with their standard errors."""

from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.statistics import Estimate, Scores, StandardError, difference, estimate, stack

__all__ = ["METRICS", "Estimate", "Metric", "Scores", "StandardError", "difference", "estimate", "stack"]
