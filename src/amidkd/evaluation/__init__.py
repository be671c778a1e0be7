"""Is it good? Metrics of a student beside its teacher, with their standard errors."""

from amidkd.evaluation.display import print_evaluation
from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.run import evaluate_run, sample_lines, to_record, write_evaluation
from amidkd.evaluation.statistics import Estimate, Scores, StandardError, difference, estimate, stack
from amidkd.evaluation.suite import ModelResult, estimates_of, evaluate_model, stack_results

__all__ = [
    "METRICS",
    "Estimate",
    "Metric",
    "ModelResult",
    "Scores",
    "StandardError",
    "difference",
    "estimate",
    "estimates_of",
    "evaluate_model",
    "evaluate_run",
    "print_evaluation",
    "sample_lines",
    "stack",
    "stack_results",
    "to_record",
    "write_evaluation",
]
