"""Is it good? Metrics of a student beside its teacher, with their standard errors."""

from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.display import print_evaluation
from amidkd.evaluation.entry import DISTANCES, Measured, sample_lines, to_record, write_evaluation
from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.run import TeacherResults, check_evaluation, evaluate_run
from amidkd.evaluation.scores import StoredScores, read_scores, write_scores
from amidkd.evaluation.statistics import Estimate, Interval, Scores, StandardError, difference, estimate, stack
from amidkd.evaluation.suite import ModelResult, estimates_of, evaluate_model, stack_results

__all__ = [
    "DISTANCES",
    "METRICS",
    "Bootstrap",
    "Estimate",
    "Interval",
    "Measured",
    "Metric",
    "ModelResult",
    "Scores",
    "StandardError",
    "StoredScores",
    "TeacherResults",
    "check_evaluation",
    "difference",
    "estimate",
    "estimates_of",
    "evaluate_model",
    "evaluate_run",
    "print_evaluation",
    "read_scores",
    "sample_lines",
    "stack",
    "stack_results",
    "to_record",
    "write_evaluation",
    "write_scores",
]
