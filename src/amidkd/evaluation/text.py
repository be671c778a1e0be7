"""Scores of an answer as text against its references: equal, near, or with the right number."""

import re
from collections.abc import Hashable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

__all__ = [
    "character_errors",
    "edit_distance",
    "exact_match",
    "normalise",
    "number_of",
    "numeric_match",
    "rouge_l",
    "symbol_errors",
]


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


def symbol_errors(answer: str, references: Sequence[str]) -> tuple[int, int]:
    """Insertions, deletions and substitutions to the nearest reference in symbols parted by white space; its length.

    Summed over prompts, the first over the second is the phoneme (or word) error rate.

    Args:
        answer: What the model said.
        references: Right answers, at least one; the one with the lowest error rate counts.

    Raises:
        ValueError: No reference is given.

    Example:
        >>> symbol_errors("K AE1 T S", ["D AO1 G", "K AE1 T"])
        (1, 3)
    """
    _need(references)
    return _nearest(answer.split(), [reference.split() for reference in references])


def character_errors(answer: str, references: Sequence[str]) -> tuple[int, int]:
    """The same in characters; every run of white space is one blank, and there is none at the ends.

    Args:
        answer: What the model said.
        references: Right answers, at least one.

    Raises:
        ValueError: No reference is given.

    Example:
        >>> character_errors("sitting", ["kitten"])
        (3, 6)
    """
    _need(references)
    return _nearest(normalise(answer), [normalise(reference) for reference in references])


def _nearest(answer: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> tuple[int, int]:
    found = [(edit_distance(answer, reference), len(reference)) for reference in references]
    return min(found, key=lambda pair: pair[0] / max(1, pair[1]))


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The least number of insertions, deletions and substitutions that make one sequence the other.

    Args:
        first: A sequence.
        second: Another.

    Example:
        >>> edit_distance("kitten", "sitting")
        3

    Source: Myers 1999, as simplified by Hyyrö 2003: a column of the table of distances is two rows of bits.
    """
    if not second:
        return len(first)
    places: dict[Hashable, int] = {}
    for place, symbol in enumerate(second):
        places[symbol] = places.get(symbol, 0) | 1 << place
    whole, last = (1 << len(second)) - 1, 1 << (len(second) - 1)
    # Where the column rises and falls by one from each entry to the next.
    rises, falls, distance = whole, 0, len(second)
    for symbol in first:
        equal = places.get(symbol, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        grows, shrinks = falls | ~(diagonal | rises), rises & diagonal
        distance += bool(grows & last) - bool(shrinks & last)
        grows, shrinks = grows << 1 | 1, shrinks << 1
        rises, falls = (shrinks | ~(diagonal | grows)) & whole, grows & diagonal & whole
    return distance


_NUMBER = re.compile(r"(?<![\w.])([-−+]?)[$€£]?([-−]?)((?:\d[\d,]*(?:\.\d+)?)|(?:\.\d+))")


def number_of(text: str) -> Decimal | None:
    """The number that a text answers with: the first one after the last ``####``, else the last one; None without one.

    Commas between digits, currency signs and zeros at the end do not matter.

    Args:
        text: An answer.

    Example:
        >>> number_of("48 / 2 = 24, so she sold $1,024.50 of them.") == Decimal("1024.5")
        True
    """
    _, mark, after = text.rpartition("####")
    found = _NUMBER.findall(after if mark else text)
    if not found:
        return None
    sign, other, digits = found[0] if mark else found[-1]
    value = Decimal(digits.replace(",", ""))
    return -value if (sign or other) in ("-", "−") else value


def numeric_match(answer: str, references: Sequence[str]) -> float | None:
    """1 where the answer's number equals that of a reference, else 0; None where no reference has a number.

    Args:
        answer: What the model said.
        references: Right answers, at least one.

    Raises:
        ValueError: No reference is given.

    Example:
        >>> numeric_match("That makes 72 clips.", ["48 + 24 = 72", "#### 72.0"])
        1.0

    Source: Cobbe et al. 2021 (GSM8K), whose answers stand after ``####``.
    """
    _need(references)
    right = {number for number in map(number_of, references) if number is not None}
    return float(number_of(answer) in right) if right else None


def _need(references: Sequence[str]) -> None:
    if not references:
        raise ValueError("an answer can only be scored against at least one reference; got none")


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
