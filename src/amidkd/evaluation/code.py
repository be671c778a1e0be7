"""pass@k: sampled answers run as code against each row's tests, in a sandbox."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Any

import numpy as np

from amidkd.config import CodeConfig
from amidkd.data import Row
from amidkd.errors import SettingError
from amidkd.evaluation.answers import Answers
from amidkd.evaluation.sandbox import Limits, Outcome, run_program
from amidkd.evaluation.statistics import Scores

__all__ = ["CodeResult", "check_tests", "code_of", "pass_at_k", "program_lines", "program_of", "run_answers"]

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "py", "python3")
# Where a base model that goes on from a function's beginning has left the function (Chen et al. 2021, §2.1).
_LEFT = re.compile(r"\n(?=def |class |if |print|#|@|```)")


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k)/C(n, k): the unbiased estimate of the chance that one of k answers is right.

    Args:
        n: Answers drawn.
        c: How many of them are right.
        k: At most n.

    Raises:
        ValueError: k is not within 1 … n, or c not within 0 … n.

    Example:
        >>> pass_at_k(5, 1, 1), pass_at_k(5, 1, 5)
        (0.2, 1.0)

    Source: Chen et al., Evaluating Large Language Models Trained on Code, 2021, equation 1.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 ≤ k ≤ n and 0 ≤ c ≤ n; got n = {n}, c = {c}, k = {k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def code_of(answer: str, entry_point: str | None = None) -> str:
    """The Python code of an answer: its fenced block where it has one, else all of it.

    Of several blocks, the first that defines the function asked for; else the first. A fence that never closes, as
    where an answer was cut, goes to the end.

    Args:
        answer: What the model said.
        entry_point: Name of the function asked for.

    Example:
        >>> code_of("Sure!\\n```python\\ndef f(): return 1\\n```\\nThat is it.")
        'def f(): return 1\\n'
    """
    blocks = [body for language, body in _FENCE.findall(answer) if language.lower() in _PYTHON]
    if not blocks:
        return answer
    return next((block for block in blocks if entry_point and _defines(block, entry_point)), blocks[0])


def program_of(row: Row, answer: str, config: CodeConfig) -> str:
    """The program that decides whether an answer is right: its code, then the row's tests.

    Args:
        row: The row, with its tests.
        answer: What the model said.
        config: Which columns hold what.

    Raises:
        SettingError: The row has no tests, or they are not text.
    """
    tests = _tests(row, config.tests)
    entry_point = row.kept.get(config.entry_point)
    code = code_of(answer, entry_point)
    if entry_point and (code[:1].isspace() or not _defines(code, entry_point)):
        # The answer goes on from the prompt, which has the function's first lines.
        code = (row.prompt or "") + _LEFT.split(code, maxsplit=1)[0]
    call = f"\ncheck({entry_point})" if entry_point and re.search(r"^def check\(", tests, re.MULTILINE) else ""
    return f"{code}\n\n{tests}{call}\n"


def _defines(code: str, name: str) -> bool:
    return (
        re.search(rf"^(?:async )?(?:def|class) {re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.MULTILINE)
        is not None
    )


def _tests(row: Row, column: str) -> str:
    value = row.kept.get(column)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    found = "none" if value is None else repr(value)[:80]
    raise SettingError(
        f"evaluation.code.tests: {row.where}: column `{column}` must hold Python code that tests the answer, as text "
        f"or a list of lines; got {found}"
    )


def check_tests(rows: Sequence[Row], config: CodeConfig) -> None:
    """Check, before any work, that the rows have tests.

    Args:
        rows: Rows to evaluate on.
        config: Which columns hold what.

    Raises:
        SettingError: A row with a prompt has none, or names its function by something else than text.
    """
    for row in rows:
        if row.text is not None:
            raise SettingError(f"evaluation.code: {row.where} is plain text; code is asked for by a prompt")
        _tests(row, config.tests)
        name = row.kept.get(config.entry_point)
        if name is not None and not isinstance(name, str):
            raise SettingError(
                f"evaluation.code.entry_point: {row.where}: column `{config.entry_point}` must hold the name of the "
                f"function asked for, as text; got {repr(name)[:80]}"
            )


@dataclass(frozen=True)
class CodeResult:
    """What became of a model's code.

    Args:
        scores: pass@k of every prompt, by metric.
        outcomes: How each answer's program ended, answers of one seed after another [S][P].
    """

    scores: dict[str, Scores]
    outcomes: list[list[Outcome]]

    def to_json(self) -> dict[str, Any]:
        """As a record holds it: programs, how many passed, and what stopped most of the others."""
        ended = [outcome for draw in self.outcomes for outcome in draw]
        causes: dict[str, int] = {}
        for outcome in ended:
            if not outcome.passed:
                cause = re.split(r"[: ]", outcome.why, maxsplit=1)[0] if outcome.why else "unknown"
                causes[cause] = causes.get(cause, 0) + 1
        most = sorted(causes.items(), key=lambda pair: (-pair[1], pair[0]))
        return {
            "programs": len(ended),
            "passed": sum(outcome.passed for outcome in ended),
            "stopped_by": dict(most[:10]),
        }


def run_answers(
    rows: Sequence[Row],
    draws: Sequence[Answers],
    config: CodeConfig,
    *,
    progress: Callable[[int], Any] | None = None,
) -> CodeResult:
    """Run answers as code, several at once, each in a process of its own.

    Args:
        rows: Rows with tests, P of them.
        draws: Answers to them, one set for each sampling seed.
        config: Limits, and the k of pass@k.
        progress: Called with 1 for each program that has ended.
    """
    limits = Limits(config.timeout, config.memory_mb, config.file_mb, config.processes)

    # Answers of a greedy or a small model repeat.
    @cache
    def ended(program: str) -> Outcome:
        return run_program(program, limits)

    def run(task: tuple[Row, str]) -> Outcome:
        outcome = ended(program_of(*task, config))
        if progress is not None:
            progress(1)
        return outcome

    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        outcomes = [list(pool.map(run, zip(rows, draw.texts, strict=True))) for draw in draws]
    passed = np.array([[outcome.passed for outcome in draw] for draw in outcomes])
    scores = {}
    for k in config.k:
        chances = np.array([pass_at_k(len(draws), int(right), k) for right in passed.sum(axis=0)])
        scores[f"pass_at_{k}"] = Scores(chances, np.ones_like(chances))
    return CodeResult(scores, outcomes)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def program_lines(
    rows: Sequence[Row], side: str, seeds: Sequence[int], draws: Sequence[Answers], result: CodeResult
) -> list[Mapping[str, Any]]:
    """Lines of ``code.jsonl``: each answer with how its program ended.

    Args:
        rows: The rows.
        side: ``student`` or ``teacher``.
        seeds: Sampling seed of each set of answers.
        draws: The answers.
        result: What became of them.
    """
    return [
        {
            "row": row.where,
            "side": side,
            "seed": seed,
            "passed": outcome.passed,
            "why": outcome.why,
            "seconds": round(outcome.seconds, 3),
            "answer": text,
            "output": outcome.output[:1000],
        }
        for seed, draw, ends in zip(seeds, draws, result.outcomes, strict=True)
        for row, text, outcome in zip(rows, draw.texts, ends, strict=True)
    ]
