"""Exact match and ROUGE-L."""

import pytest

from amidkd.evaluation.text import exact_match, rouge_l


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("AA1 R T", ["AA1 R T"], 1.0),
        (" AA1  R\tT\n", ["AA1 R T"], 1.0),
        ("AA1 R T", ["AE1 R T", "AA1 R T"], 1.0),
        ("AA1 R", ["AA1 R T"], 0.0),
        ("aa1 r t", ["AA1 R T"], 0.0),
        ("", ["AA1"], 0.0),
        ("AA1RT", ["AA1 R T"], 0.0),
    ],
)
def test_exact_match_is_up_to_white_space_and_best_over_references(answer, references, expected) -> None:
    assert exact_match(answer, references) == expected


def _lcs(first: list[str], second: list[str]) -> int:
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + _lcs(first[1:], second[1:])
    return max(_lcs(first[1:], second), _lcs(first, second[1:]))


@pytest.mark.parametrize("reference", ["the cat sat on mats", "on the mat", "dog the cat"])
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(reference: str) -> None:
    answer = "the cat on the mat"
    # Stemming makes "mats" and "mat" one word.
    words, target = answer.split(), reference.replace("mats", "mat").split()
    common = _lcs(words, target)
    precision, recall = common / len(words), common / len(target)
    assert rouge_l(answer, [reference]) == pytest.approx(2 * precision * recall / (precision + recall))


def test_rouge_l_takes_the_best_reference_and_knows_nothing_in_common() -> None:
    assert rouge_l("a cat sleeps", ["dogs bark", "a cat sleeps"]) == 1.0
    assert rouge_l("", ["dogs bark"]) == 0.0


@pytest.mark.parametrize("score", [exact_match, rouge_l])
def test_an_answer_needs_a_reference(score) -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        score("a", [])
