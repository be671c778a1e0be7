"""A language model as judge: which of two answers is better, asked twice with the answers swapped.

Judges favour a place. So each pair is asked in both orders, and an answer wins only if it wins in both; whatever else
the two verdicts say is a tie, which counts as half a win.

Source: Zheng et al., Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, 2023, §3.4 (conservative swapping).
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from amidkd.config import JudgeConfig
from amidkd.errors import SettingError
from amidkd.evaluation.statistics import Scores
from amidkd.record import append_json_line, read_json_lines, write_json_lines
from amidkd.transport import PassingError, RefusedError, Server, persist

__all__ = ["Comparison", "Judge", "Judged", "judge_pairs", "verdict_of"]

Verdict = Literal["A", "B", "tie"]

_WEIGH = "Weigh how helpful, how true and how well put each answer is. Neither length nor order makes an answer better."
_TASK = (
    "You compare two answers to one request. {weigh}\n"
    "Say in a few sentences what decides it. Then end with a line that is exactly one of [[A]] (answer A is better), "
    "[[B]] (answer B is better) or [[C]] (they are equally good)."
)
_AGAIN = "Your reply did not end with a verdict. Reply with [[A]], [[B]] or [[C]] alone."
_MARK = re.compile(r"\[\[([ABC])\]\]")
_MEANING: dict[str, Verdict] = {"A": "A", "B": "B", "C": "tie"}
_READINGS = 3
_TRIES = 5


def verdict_of(reply: str) -> Verdict | None:
    """The verdict that a reply ends with; None where there is not exactly one.

    Args:
        reply: What the judge said.

    Example:
        >>> verdict_of("A is [[A]]-grade, but wrong.\\n\\n**[[B]]**")
        'B'
        >>> verdict_of("[[A]] or [[B]]") is None
        True
    """
    lines = [line.strip(" \t*_.`#>") for line in reply.splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    marks = set(_MARK.findall(last)) or set(_MARK.findall(reply))
    return _MEANING[marks.pop()] if len(marks) == 1 else None


@dataclass(frozen=True)
class Comparison:
    """Two answers to one request.

    Args:
        where: File and line of the row.
        prompt: The request.
        student: The student's answer.
        other: What it is held against.
    """

    where: str
    prompt: str
    student: str
    other: str


@dataclass(frozen=True)
class Judged:
    """What the judge found.

    Args:
        points: Of each pair: 1 the student won, 0.5 a tie, 0 it lost; None where there is no pair or no verdict.
        agreed: Of each pair that was asked about and has both verdicts, whether they say the same of the answers.
        first: How often answer A was preferred, among verdicts that preferred one.
        asked: Verdicts asked for now; the others were in the transcript.
        unread: Replies without a verdict, after being asked for one again.
        failure: Why the judge stopped answering, or None.
    """

    points: list[float | None]
    agreed: list[bool]
    first: float | None
    asked: int
    unread: int
    failure: str | None = None

    def scores(self) -> dict[str, Scores]:
        """The win rate's scores of every pair; none where no pair was judged."""
        if all(point is None for point in self.points):
            return {}
        sums = np.array([0.0 if point is None else point for point in self.points])
        return {"judge_win_rate": Scores(sums, np.array([float(point is not None) for point in self.points]))}

    def to_json(self) -> dict[str, Any]:
        """As a record holds it."""
        known = [point for point in self.points if point is not None]
        return {
            "pairs": len(known),
            "wins": sum(point == 1 for point in known),
            "ties": sum(point == 0.5 for point in known),
            "losses": sum(point == 0 for point in known),
            "orders_agree": sum(self.agreed) / len(self.agreed) if self.agreed else None,
            "prefers_first": self.first,
            "unread": self.unread,
        }


@final
class Judge:
    """A judge at an OpenAI-compatible address.

    Args:
        config: The run file's ``evaluation.judge``.

    Raises:
        SettingError: The address is none; the variable of the key is not set.
    """

    def __init__(self, config: JudgeConfig) -> None:
        url, self._path = config.url.rstrip("/"), "/chat/completions"
        if url.endswith("/v1"):
            url, self._path = url.removesuffix("/v1"), "/v1/chat/completions"
        self._config = config
        self._server = Server(
            url,
            section="evaluation.judge",
            token_variable=config.key_variable,
            timeout=config.timeout,
            setting="key_variable",
        )
        self._limit_name, self._extra = "max_tokens", {"temperature": 0.0}

    def messages(self, pair: Comparison, *, swapped: bool) -> list[dict[str, str]]:
        """What is asked about a pair.

        Args:
            pair: The two answers.
            swapped: The student's is answer B.
        """
        a, b = (pair.other, pair.student) if swapped else (pair.student, pair.other)
        weigh = self._config.instruction or _WEIGH
        return [
            {"role": "system", "content": _TASK.replace("{weigh}", weigh)},
            {"role": "user", "content": f"[Request]\n{pair.prompt}\n\n{_answer('A', a)}\n\n{_answer('B', b)}"},
        ]

    def check(self) -> None:
        """Ask for one word, before any work.

        Raises:
            SettingError: The judge does not answer; the message names the setting to look at.
        """
        greeting = [{"role": "user", "content": "Reply with [[C]]."}]
        try:
            persist(lambda: self._reply(greeting), tries=2)
        except PassingError as error:
            raise SettingError(
                f"evaluation.judge.url: {self._config.url} does not answer: {self._safe(error)}"
            ) from None
        except RefusedError as error:
            names = {401: "key_variable", 403: "key_variable", 404: "url or evaluation.judge.model"}
            setting = names.get(error.status, "model")
            raise SettingError(f"evaluation.judge.{setting}: {self._config.url} refused: {self._safe(error)}") from None

    def ask(self, messages: list[dict[str, str]]) -> tuple[Verdict | None, str, int]:
        """One verdict: the last reply is read, and asked for again where it has none.

        Args:
            messages: From :meth:`messages`.

        Returns:
            The verdict, or None where no reply had one; the last reply; how many were asked for.

        Raises:
            PassingError: The judge does not answer.
            RefusedError: It said no.
        """
        reply = self._persistently(messages)
        for number in range(1, _READINGS):
            verdict = verdict_of(reply)
            if verdict is not None:
                return verdict, reply, number
            turn = [{"role": "assistant", "content": reply or "…"}, {"role": "user", "content": _AGAIN}]
            reply = self._persistently([*messages, *turn])
        return verdict_of(reply), reply, _READINGS

    def _persistently(self, messages: list[dict[str, str]]) -> str:
        return persist(lambda: self._reply(messages), tries=_TRIES)

    def _reply(self, messages: list[dict[str, str]]) -> str:
        body = {"model": self._config.model, "messages": messages, self._limit_name: self._config.max_tokens}
        try:
            content, _ = self._server.send("POST", self._path, json.dumps(body | self._extra).encode())
        except RefusedError as error:
            if not self._adapt(str(error)):
                raise
            return self._reply(messages)
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise PassingError(f"no chat completion: {content[:200].decode('utf-8', 'replace')}") from None
        # A model that thinks may have come to no answer.
        return text if isinstance(text, str) else ""

    def _adapt(self, refusal: str) -> bool:
        """Newer models of OpenAI take neither ``max_tokens`` nor a temperature, and say so."""
        if self._limit_name == "max_tokens" and "max_completion_tokens" in refusal:
            self._limit_name = "max_completion_tokens"
            return True
        if self._extra and "temperature" in refusal:
            self._extra = {}
            return True
        return False

    def _safe(self, error: Exception) -> str:
        """The message without the key, which some servers say again."""
        key = os.environ.get(self._config.key_variable or "", "").strip()
        return str(error).replace(key, "…") if key else str(error)

    def explain(self, error: PassingError | RefusedError) -> str:
        """Why no verdict came, without the key.

        Args:
            error: What was raised.
        """
        return self._safe(error)


def _answer(name: str, text: str) -> str:
    return f"[Answer {name}]\n{text}\n[End of answer {name}]"


def judge_pairs(
    judge: Judge,
    pairs: Sequence[Comparison | None],
    config: JudgeConfig,
    transcript: Path,
    *,
    progress: Callable[[int], Any] | None = None,
) -> Judged:
    """Ask about every pair in both orders. What the transcript has is not asked again; equal answers are a tie.

    Args:
        judge: The judge.
        pairs: Pairs of answers; None where nothing is asked.
        config: How many verdicts at once, and which model: it is a part of what was asked.
        transcript: ``judge.jsonl``: one line a verdict, with the whole reply.
        progress: Called with 1 for each verdict.

    Returns:
        Points of every pair. Where the judge stopped answering, those that there are, and why.
    """
    transcript.parent.mkdir(parents=True, exist_ok=True)
    known = {line["key"]: line for line in read_json_lines(transcript)}
    if known:
        # A kill may have cut the last line; nothing is to be appended to its half.
        write_json_lines(transcript, list(known.values()))
    panel = _Panel(judge, config, transcript, known, progress)
    there = [place for place, pair in enumerate(pairs) if pair is not None]
    tasks = [(pair, swapped) for pair in pairs if pair is not None for swapped in (False, True)]
    with ThreadPoolExecutor(max_workers=config.parallel) as pool:
        verdicts = list(pool.map(panel.verdict, tasks))
    judged = _tally(verdicts, asked=panel.asked, failure=panel.failure)
    points = dict(zip(there, judged.points, strict=True))
    return replace(judged, points=[points.get(place) for place in range(len(pairs))])


@dataclass
class _Panel:
    judge: Judge
    config: JudgeConfig
    transcript: Path
    known: dict[str, dict[str, Any]]
    progress: Callable[[int], Any] | None
    asked: int = 0
    failure: str | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def verdict(self, task: tuple[Comparison, bool]) -> str | None:
        """``A``, ``B``, ``tie``, ``unread``; ``same`` where there is nothing to ask; None where no answer came."""
        pair, swapped = task
        if pair.student.strip() == pair.other.strip():
            return "same"
        messages = self.judge.messages(pair, swapped=swapped)
        asked = {"url": self.config.url, "model": self.config.model, "messages": messages}
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        found = self.known.get(key)
        if found is None:
            if self.failure is not None:
                return None
            try:
                verdict, reply, tries = self.judge.ask(messages)
            except (PassingError, RefusedError) as error:
                self.failure = self.judge.explain(error)
                return None
            found = {"key": key, "row": pair.where, "model": self.config.model}
            found |= {"student_is": "B" if swapped else "A", "verdict": verdict or "unread", "replies": tries}
            found |= {"prompt": pair.prompt, "student": pair.student, "other": pair.other, "reply": reply}
            with self._lock:
                append_json_line(self.transcript, found)
                self.asked += 1
        if self.progress is not None:
            self.progress(1)
        return str(found["verdict"])


def _tally(verdicts: Sequence[str | None], *, asked: int, failure: str | None) -> Judged:
    """Verdicts, two a pair (the student first as A, then as B), into points."""
    points: list[float | None] = []
    agreed: list[bool] = []
    for as_a, as_b in zip(verdicts[::2], verdicts[1::2], strict=True):
        if as_a == "same":
            points.append(0.5)
            continue
        if as_a in (None, "unread") or as_b in (None, "unread"):
            points.append(None)
            continue
        won, lost = (as_a == "A") + (as_b == "B"), (as_a == "B") + (as_b == "A")
        points.append(1.0 if won == 2 else 0.0 if lost == 2 else 0.5)
        agreed.append(won == 2 or lost == 2 or as_a == as_b == "tie")
    preferring = [verdict for verdict in verdicts if verdict in ("A", "B")]
    first = preferring.count("A") / len(preferring) if preferring else None
    return Judged(points, agreed, first, asked, sum(verdict == "unread" for verdict in verdicts), failure)
