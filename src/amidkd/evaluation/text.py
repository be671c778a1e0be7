"""Scores of an answer as text: exact match and ROUGE-L, best over the references."""

from collections.abc import Sequence
from functools import cache
from typing import Any

__all__ = ["exact_match", "normalise", "rouge_l"]


def normalise(text: str) -> str:
    """The text with every run of white space as one blank, and none at the ends."""
    return " ".join(text.split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals a reference up to white space, else 0.

    Args:
        answer: What the model said.
        references: Right answers, at least one.

    Raises:
        ValueError: No reference is given.

    Example:
        >>> exact_match(" AA1  R T ", ["AE1 R T", "AA1 R T"])
        1.0
    """
    _need(references)
    return float(normalise(answer) in {normalise(reference) for reference in references})


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of stemmed words, best over the references, in [0, 1].

    Args:
        answer: What the model said.
        references: Right answers, at least one.

    Raises:
        ValueError: No reference is given.

    Example:
        >>> round(rouge_l("the cat sits", ["a dog", "the cat sat"]), 3)
        0.667

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004; Google's ``rouge-score``, Porter stemmer.
    """
    _need(references)
    return max(_scorer().score(reference, answer)["rougeL"].fmeasure for reference in references)


def _need(references: Sequence[str]) -> None:
    if not references:
        raise ValueError("an answer can only be scored against at least one reference; got none")


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
