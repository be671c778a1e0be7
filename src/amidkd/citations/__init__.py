"""What to cite for a run: the works behind the settings that it uses. Loads no torch."""

from amidkd.citations.chosen import citations_of
from amidkd.citations.works import CITATIONS, Citation

__all__ = ["CITATIONS", "Citation", "citations_of"]
