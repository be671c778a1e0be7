"""N-grams that answers share with references, and with one another: statistics of BLEU and chrF, diversity."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from amidkd.evaluation.formulas import CHRF_ORDERS, FORMULAS, Array
from amidkd.evaluation.text import normalise

__all__ = ["bleu_statistics", "chrf_statistics", "distinct", "self_bleu"]


def bleu_statistics(answer: str, references: Sequence[str]) -> Array:
    """What BLEU adds up over prompts [10]: lengths of the answer and of the nearest reference, matches, n-grams.

    Args:
        answer: What the model said.
        references: Right answers, at least one.

    Source: Papineni et al. 2002; words as sacrebleu cuts them (``13a``).
    """
    found = _bleu().sentence_score(answer, list(references))
    return np.array([found.sys_len, found.ref_len, *found.counts, *found.totals], dtype=float)


def chrf_statistics(answer: str, references: Sequence[str]) -> Array:
    """What chrF adds up over prompts [18]: n-grams of the answer, of the nearest reference, and shared, by order.

    Args:
        answer: What the model said.
        references: Right answers, at least one; the one with the best score counts.

    Source: Popović 2015; white space left out and no words, as sacrebleu's default.
    """
    said = _character_ngrams(answer)
    found = np.stack([_shared(said, _character_ngrams(reference)) for reference in references])
    return found[int(FORMULAS["chrf"](found).argmax())]


def _shared(said: Sequence[Counter[str]], right: Sequence[Counter[str]]) -> Array:
    # As in sacrebleu, what is said of an order that the reference is too short for does not count.
    pairs = zip(said, right, strict=True)
    counts = [(ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()) for ours, theirs in pairs]
    return np.array(counts, dtype=float).ravel()


def _character_ngrams(text: str) -> list[Counter[str]]:
    solid = "".join(text.split())
    return [
        Counter(solid[start : start + order] for start in range(len(solid) - order + 1))
        for order in range(1, CHRF_ORDERS + 1)
    ]


def distinct(answers: Sequence[str], order: int) -> tuple[int, int]:
    """Different n-grams of words in some answers, and all of them.

    Args:
        answers: Answers to one prompt.
        order: Words of an n-gram.

    Example:
        >>> distinct(["red cat", "red dog"], 1)
        (3, 4)

    Source: Li et al. 2016, here among the answers to one prompt.
    """
    ngrams: Counter[tuple[str, ...]] = Counter()
    for answer in answers:
        words = answer.split()
        ngrams.update(tuple(words[start : start + order]) for start in range(len(words) - order + 1))
    return len(ngrams), ngrams.total()


def self_bleu(answers: Sequence[str]) -> float:
    """Mean BLEU, in [0, 100], of each answer with the others as its references.

    Args:
        answers: Two answers or more to one prompt.

    Source: Zhu et al. 2018 (Texygen), here among the answers to one prompt; orders that an answer is too short for are
    left out, and an answer that another one equals scores 100.
    """
    if len(answers) < 2:
        raise ValueError(f"self-BLEU needs at least two answers; got {len(answers)}")
    plain = [normalise(answer) for answer in answers]
    scores = []
    for place, answer in enumerate(plain):
        others = [*plain[:place], *plain[place + 1 :]]
        scores.append(100.0 if answer in others else _bleu().sentence_score(answer, others).score)
    return float(np.mean(scores))


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)
