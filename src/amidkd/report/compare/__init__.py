"""Several runs on the same prompts: whether one is better than another, or only looks so.

``load`` reads the runs and groups those of one configuration; ``shared`` finds the prompts and metrics that can be
compared; ``page``, ``figures`` and ``words`` show what came out.
"""

from amidkd.report.compare.page import print_compared, write_compared_page
from amidkd.report.compare.shared import Compared, Side, compared

__all__ = ["Compared", "Side", "compared", "print_compared", "write_compared_page"]
