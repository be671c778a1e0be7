"""Try settings of a run and compare what comes out (``amidkd sweep``)."""

from amidkd.sweep.run import run_sweep

__all__ = ["run_sweep"]
