"""Checks before a run: what would stop it, what it will learn from, and what it will cost."""

from amidkd.doctor.cost import Cost, compare_with_estimate
from amidkd.doctor.examine import examine

__all__ = ["Cost", "compare_with_estimate", "examine"]
