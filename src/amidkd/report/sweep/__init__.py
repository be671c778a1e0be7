"""The page of a sweep: what was tried, what to use, and what the noise leaves open.

``record`` reads ``sweep.json``; ``noise`` says which trials cannot be told from the best one; ``importance`` what each
key explains; ``maps`` and ``figures`` draw; ``table`` and ``words`` are what stands between.
"""

from amidkd.report.sweep.page import describe_sweep, is_sweep, summary_of_sweep, sweep_of_run, write_sweep_report

__all__ = ["describe_sweep", "is_sweep", "summary_of_sweep", "sweep_of_run", "write_sweep_report"]
