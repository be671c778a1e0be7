"""Statistics of BLEU and chrF give sacrebleu's scores; diversity by its definition."""

import random

import numpy as np
import pytest

from amidkd.evaluation.formulas import FORMULAS
from amidkd.evaluation.overlap import bleu_statistics, chrf_statistics, distinct, self_bleu

WORDS = ["the", "cat", "sat", "on", "mat,", "a", "dog.", "ran", "$3", "it's", "Über"]


def texts(count: int, seed: int, longest: int = 12) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("longest", [3, 12])
def test_corpus_scores_are_those_of_sacrebleu(longest: int) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    answers, first, second = (texts(40, seed, longest) for seed in (1, 2, 3))
    pairs = list(zip(answers, zip(first, second, strict=True), strict=True))
    for name, statistics, theirs in (("bleu", bleu_statistics, BLEU()), ("chrf", chrf_statistics, CHRF())):
        total = np.sum([statistics(answer, references) for answer, references in pairs], axis=0)
        expected = theirs.corpus_score(answers, [first, second]).score
        assert float(FORMULAS[name](total)) == pytest.approx(expected, abs=1e-9), name
        assert expected > 1


def test_an_equal_answer_scores_100_and_an_empty_one_0() -> None:
    answer = "the cat sat on the mat"
    for name, statistics in (("bleu", bleu_statistics), ("chrf", chrf_statistics)):
        assert float(FORMULAS[name](statistics(answer, ["a dog", answer]))) == pytest.approx(100.0)
        assert float(FORMULAS[name](statistics("", [answer]))) == 0.0


def test_distinct_counts_different_ngrams_of_all_answers() -> None:
    answers = ["red cat red cat", "red cat", "dog"]
    assert distinct(answers, 1) == (3, 7)
    # No pair across two answers.
    assert distinct(answers, 2) == (2, 4)
    assert distinct(["", "one"], 2) == (0, 0)


def test_self_bleu_is_the_mean_over_answers_with_the_others_as_references() -> None:
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    answers = ["the cat sat on a mat", "the cat ran", "a dog sat on a mat"]
    expected = [bleu.sentence_score(a, [b for b in answers if b != a]).score for a in answers]
    assert self_bleu(answers) == pytest.approx(np.mean(expected))
    assert self_bleu(["same  thing", "same thing", "same thing"]) == 100.0
    assert self_bleu(["", ""]) == 100.0
    assert self_bleu(["red cat", "green dog"]) == 0.0
    with pytest.raises(ValueError, match="at least two"):
        self_bleu(["one"])
