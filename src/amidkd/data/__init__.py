"""From files to batches: rows → examples → sequences, with what is supervised decided once."""

from amidkd.data.rows import Row, choose_labels, load_rows
from amidkd.data.sequences import ORIGINS, Collator, Example, ExampleDataset, Origin, Sequences, collate

__all__ = [
    "ORIGINS",
    "Collator",
    "Example",
    "ExampleDataset",
    "Origin",
    "Row",
    "Sequences",
    "choose_labels",
    "collate",
    "load_rows",
]
