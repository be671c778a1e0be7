"""pass@k: the estimator against all subsets, code out of answers, and answers that are run."""

import math
from itertools import combinations

import numpy as np
import pytest

from amidkd.config import CodeConfig
from amidkd.data import Row, load_rows
from amidkd.errors import SettingError
from amidkd.evaluation.answers import Answers
from amidkd.evaluation.code import check_tests, code_of, pass_at_k, program_lines, program_of, run_answers
from amidkd.evaluation.statistics import estimate
from amidkd.record import write_json_lines

CONFIG = CodeConfig(k=[1, 2], timeout=8)


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_the_estimate_is_the_share_of_all_choices_of_k_answers_with_a_right_one(n: int, c: int) -> None:
    right = [number < c for number in range(n)]
    for k in range(1, n + 1):
        choices = [any(choice) for choice in combinations(right, k)]
        assert math.isclose(pass_at_k(n, c, k), sum(choices) / len(choices), abs_tol=1e-12)


def test_the_estimate_is_unbiased() -> None:
    chance, n, k = 0.3, 6, 3
    expected = sum(math.comb(n, c) * chance**c * (1 - chance) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert math.isclose(expected, 1 - (1 - chance) ** k, abs_tol=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (3, -1, 1)])
def test_counts_that_cannot_be_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Here:\n```python\nx = 1\n```\nbye", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```Python3\nx = 1\n", "x = 1\n"),
        ("```bash\nls\n```\n```py\nx = 1\n```", "x = 1\n"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```python\ny = 2\n```\n```python\ndef f(a): pass\n```", "def f(a): pass\n"),
        ("```python\ny = '''\n``` not the end'''\n```", "y = '''\n"),
    ],
)
def test_code_is_found_in_an_answer(answer: str, code: str) -> None:
    assert code_of(answer, "f") == code


def row(prompt: str = "Add.", **kept: object) -> Row:
    return Row(0, "rows.jsonl, line 1", prompt=prompt, kept=kept)


def test_an_answer_that_goes_on_from_the_prompt_is_cut_where_it_leaves_the_function() -> None:
    asked = row("def add(a, b):\n", test="def check(f):\n    assert f(1, 2) == 3", entry_point="add")
    program = program_of(asked, "    return a + b\n\ndef add(a, b):\n    return 0\n", CONFIG)
    assert program.count("def add") == 1
    assert program.endswith("check(add)\n")
    whole = program_of(asked, "```python\ndef add(a, b):\n    return a + b\n```", CONFIG)
    assert whole.count("def add") == 1
    space: dict = {}
    exec(program, space)
    exec(whole, space)


def test_tests_may_be_lines_and_must_be_there() -> None:
    assert "assert f() == 1\nassert f() != 2" in program_of(
        row(test=["assert f() == 1", "assert f() != 2"]), "", CONFIG
    )
    for kept in ({}, {"test": ""}, {"test": 3}, {"test": []}):
        with pytest.raises(SettingError, match=r"rows\.jsonl, line 1: column `test` must hold Python code"):
            check_tests([row(**kept)], CONFIG)
    with pytest.raises(SettingError, match="plain text"):
        check_tests([Row(0, "x", text="words")], CONFIG)
    with pytest.raises(SettingError, match=r"column `entry_point` must hold the name of the function"):
        check_tests([row(test="assert f()", entry_point=3)], CONFIG)
    check_tests([row(test="assert f()", entry_point=None)], CONFIG)


def answers(*texts: str) -> Answers:
    return Answers([[1]] * len(texts), list(texts), [1] * len(texts))


def test_answers_are_run_and_their_ends_are_kept(tmp_path) -> None:
    write_json_lines(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "Write add.", "test": "assert add(1, 2) == 3", "other": 1},
            {"prompt": "Write half.", "test": ["assert half(4) == 2"]},
        ],
    )
    rows = load_rows(tmp_path / "rows.jsonl", keep=["test"])
    assert [dict(row.kept) for row in rows] == [{"test": "assert add(1, 2) == 3"}, {"test": ["assert half(4) == 2"]}]
    check_tests(rows, CONFIG)
    right, wrong = "def add(a, b): return a + b", "def add(a, b): return a - b"
    draws = [
        answers(f"```python\n{right}\n```", "def half(x): return x / 2"),
        answers(wrong, "def half(x): return x"),
        answers(right, "no code"),
    ]
    found = run_answers(rows, draws, CONFIG)
    assert np.allclose(found.scores["pass_at_1"].sums, [2 / 3, 1 / 3])
    assert np.allclose(found.scores["pass_at_2"].sums, [1.0, 2 / 3])
    assert math.isclose(estimate(found.scores["pass_at_1"]).value, 0.5)
    assert found.to_json() == {
        "programs": 6,
        "passed": 3,
        "stopped_by": {"AssertionError": 2, "SyntaxError": 1},
    }
    lines = program_lines(rows, "student", [10, 20, 30], draws, found)
    assert [line["passed"] for line in lines] == [True, True, False, False, True, False]
    assert lines[3]["why"] == "AssertionError at `assert half(4) == 2`"
    assert (lines[3]["seed"], lines[3]["row"]) == (20, "rows.jsonl, line 2")
