"""Text that a model writes to prompts beforehand: a folder of Parquet shards that says what made it."""

from amidkd.policies.texts.answers import Answer, answer_examples
from amidkd.policies.texts.manifest import TextSettings, identity, is_complete, made_with, sampled_with
from amidkd.policies.texts.read import read_answers
from amidkd.policies.texts.write import write_answers

__all__ = [
    "Answer",
    "TextSettings",
    "answer_examples",
    "identity",
    "is_complete",
    "made_with",
    "read_answers",
    "sampled_with",
    "write_answers",
]
