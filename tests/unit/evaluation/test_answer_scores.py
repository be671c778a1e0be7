"""Scores of answers over prompts and seeds against sums made by hand."""

from typing import get_args

import numpy as np
import pytest

from amidkd.config.evaluation import AnswerMetric
from amidkd.evaluation import estimate
from amidkd.evaluation.answers import Answers, answer_scores
from amidkd.evaluation.text import symbol_errors

EVERY = list(get_args(AnswerMetric))
DRAWS = [["red cat sits", "12", "a b"], ["red cat", "so 13", "a b"]]
REFERENCES = [("red cat sits here",), ("#### 12", "x"), ()]


def drawn(texts: list[str]) -> Answers:
    return Answers([[1]] * len(texts), texts, [len(text.split()) for text in texts])


def scored(metrics=EVERY, suffix="sampled", draws=DRAWS, references=REFERENCES):
    return answer_scores([drawn(texts) for texts in draws], references, suffix, metrics)


def test_a_prompt_without_references_has_no_part_in_what_needs_them() -> None:
    found = scored()
    for name in ("exact_match", "rouge_l", "phoneme_error_rate", "character_error_rate", "bleu", "chrf"):
        assert (found[f"{name}_sampled"].counts > 0).tolist() == [[True, True, False]] * 2, name
        assert estimate(found[f"{name}_sampled"]).error("prompts").n == 2
    # The first prompt's reference has no number.
    assert found["numeric_match_sampled"].counts.tolist() == [[0, 1, 0]] * 2
    assert estimate(found["numeric_match_sampled"]).value == 0.5
    assert found["length_sampled"].counts.tolist() == [[1, 1, 1]] * 2


def test_error_rates_are_edits_over_symbols_of_all_prompts() -> None:
    pairs = [
        symbol_errors(text, right) for texts in DRAWS for text, right in zip(texts, REFERENCES, strict=True) if right
    ]
    edits, symbols = np.sum(pairs, axis=0)
    assert estimate(scored()["phoneme_error_rate_sampled"]).value == pytest.approx(edits / symbols)


def test_corpus_metrics_are_sacrebleus_over_every_answer() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    texts = [text for draw in DRAWS for text in draw[:2]]
    references = [[right[0] for right in REFERENCES[:2]] * 2, ["red cat sits here", "x"] * 2]
    found = scored()
    assert estimate(found["bleu_sampled"]).value == pytest.approx(BLEU().corpus_score(texts, references).score)
    assert estimate(found["chrf_sampled"]).value == pytest.approx(CHRF().corpus_score(texts, references).score)


def test_variety_is_over_all_seeds_of_a_prompt_and_said_of_sampled_answers_alone() -> None:
    found = scored()
    assert found["distinct_1_sampled"].sums.tolist() == [3, 3, 2]
    assert found["distinct_1_sampled"].counts.tolist() == [5, 3, 4]
    assert found["self_bleu_sampled"].sums[2] == 100.0
    assert "self_bleu_sampled" not in scored(draws=DRAWS[:1])
    assert not any("distinct" in name or "self_bleu" in name for name in scored(suffix="greedy"))


def test_only_what_is_asked_for_is_measured() -> None:
    assert set(scored(["bleu"])) == {"bleu_sampled", "length_sampled"}
    assert set(scored(["bleu", "distinct_n"], references=[(), (), ()])) == {
        "distinct_1_sampled",
        "distinct_2_sampled",
        "length_sampled",
    }
