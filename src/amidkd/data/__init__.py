"""From files to batches: rows → examples → sequences, with what is supervised decided once."""

from amidkd.data.corpus import corpus_windows
from amidkd.data.encode import Encoded, Encoder, special_prefix
from amidkd.data.rows import Row, choose_labels, load_rows
from amidkd.data.sequences import ORIGINS, Collator, Example, ExampleDataset, Origin, Sequences, collate, idle
from amidkd.data.splits import evaluation_rows, training_rows
from amidkd.data.templates import INSTRUCTION, fill, find_template

__all__ = [
    "INSTRUCTION",
    "ORIGINS",
    "Collator",
    "Encoded",
    "Encoder",
    "Example",
    "ExampleDataset",
    "Origin",
    "Row",
    "Sequences",
    "choose_labels",
    "collate",
    "corpus_windows",
    "evaluation_rows",
    "fill",
    "find_template",
    "idle",
    "load_rows",
    "special_prefix",
    "training_rows",
]
