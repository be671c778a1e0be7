"""Scores of an answer as text against plain definitions."""

import json
import random
from decimal import Decimal
from pathlib import Path

import pytest

from amidkd.evaluation.text import (
    character_errors,
    edit_distance,
    exact_match,
    number_of,
    numeric_match,
    rouge_l,
    symbol_errors,
)


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


def table(first: str, second: str) -> int:
    """Edit distance by Wagner and Fischer's table."""
    above = list(range(len(second) + 1))
    for row, symbol in enumerate(first, start=1):
        line = [row]
        for column, other in enumerate(second, start=1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (symbol != other)))
        above = line
    return above[-1]


def test_edit_distance_is_that_of_the_table() -> None:
    chosen = random.Random(0)
    for _ in range(400):
        first, second = ("".join(chosen.choices("abc", k=chosen.randint(0, 70))) for _ in range(2))
        assert edit_distance(first, second) == table(first, second) == edit_distance(second, first)


def test_error_rates_count_edits_to_the_nearest_reference() -> None:
    assert symbol_errors("K AE1 T", ["K AE1 T S", "K AE1 T"]) == (0, 3)
    assert symbol_errors("", ["K AE1"]) == (2, 2)
    assert symbol_errors("K K K", ["T"]) == (3, 1)
    # Two edits of eight are nearer than one of two.
    assert symbol_errors("a b c d e f", ["a b c d e f g h", "a z"]) == (2, 8)
    assert character_errors(" the  cat ", ["the cat"]) == (0, 7)
    assert character_errors("the cap", ["the cat", "a"]) == (1, 7)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 and then 5.", "5"),
        ("#### 72", "72"),
        ("10 - 3 = 7\n#### 1,024 clips of 5", "1024"),
        ("#### $0.20", "0.2"),
        ("the loss is -$5", "-5"),
        ("it is $-5.50", "-5.5"),
        ("below zero: −3", "-3"),
        ("+4", "4"),
        ("12 - 5", "5"),
        ("pages 10-15", "15"),
        (".5 of it", "0.5"),
        ("1,000,000.", "1000000"),
        ("48/2 = 24", "24"),
        ("3.0", "3"),
    ],
)
def test_the_number_of_an_answer(text: str, number: str) -> None:
    assert number_of(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none at all", "#### ", "7 of them ####", "A1B2"])
def test_an_answer_without_a_number(text: str) -> None:
    assert number_of(text) is None


def test_numbers_of_real_solutions(shared: Path) -> None:
    lines = (shared / "data" / "gsm8k_train.jsonl").read_text(encoding="utf-8").split("\n")
    solutions = [json.loads(line)["completion"] for line in lines if line]
    for solution in solutions:
        after = solution.rpartition("####")[2].strip().replace(",", "")
        assert number_of(solution) == Decimal(after)
    # Most solutions say the number last, before the mark too.
    told = [number_of(solution.rpartition("####")[0]) == number_of(solution) for solution in solutions]
    assert sum(told) > 0.97 * len(told)


def test_numeric_match_compares_numbers_not_texts() -> None:
    assert numeric_match("so $1,000.00", ["x\n#### 1000"]) == 1.0
    assert numeric_match("so 100", ["#### 1000"]) == 0.0
    assert numeric_match("who knows", ["#### 1000"]) == 0.0
    assert numeric_match("12", ["no number", "#### 12"]) == 1.0
    assert numeric_match("12", ["no number"]) is None


@pytest.mark.parametrize("score", [exact_match, rouge_l, symbol_errors, character_errors, numeric_match])
def test_an_answer_needs_a_reference(score) -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        score("a", [])
