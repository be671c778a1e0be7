"""Several teachers at once: weights fixed, by row or searched; some left out of a step; common outcomes."""

from amidkd.teachers.ensemble.drop import staying
from amidkd.teachers.ensemble.outcomes import common_outcomes
from amidkd.teachers.ensemble.teacher import EnsembleTeacher, make_ensemble

__all__ = ["EnsembleTeacher", "common_outcomes", "make_ensemble", "staying"]
