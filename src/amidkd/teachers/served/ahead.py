"""Rows asked of a server before they are needed, several requests at once, found again by their content."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, final

import torch

from amidkd.errors import TeacherError
from amidkd.teachers.served.errands import Errands
from amidkd.teachers.served.protocol import ScoredRow, digests_of

if TYPE_CHECKING:
    from amidkd.data import Sequences

__all__ = ["Ahead", "scored_rows"]

A = TypeVar("A")


def scored_rows(sequences: "Sequences") -> list[ScoredRow]:
    """The rows of a batch that have supervised tokens, up to the last of these: what comes after decides nothing.

    Args:
        sequences: A batch, padded anywhere; its answers, one row after the other, are in the row-major order of
            ``predicts_BT``.
    """
    tokens, attention = sequences.tokens_BT.cpu(), sequences.attention_BT.cpu() != 0
    predicts = sequences.predicts_BT().cpu()
    found = []
    for row in range(tokens.shape[0]):
        places = predicts[row, attention[row]].nonzero()[:, 0]
        if len(places):
            found.append(ScoredRow(tokens[row, attention[row]][: int(places[-1]) + 2].to(torch.int64), places))
    return found


@final
class Ahead(Generic[A]):
    """Answers for rows, asked for by threads. A row that stands in two batches is asked for once.

    Args:
        ask: Sends one request and gives an answer for each of its rows; called by several threads.
        connections: Requests under way at once.
        batch_rows: Rows of a request.
        closing: Set when the teacher is closed.
    """

    def __init__(
        self,
        ask: Callable[[list[ScoredRow]], list[A]],
        *,
        connections: int,
        batch_rows: int,
        closing: threading.Event,
    ) -> None:
        self._ask, self._batch_rows = ask, batch_rows
        self._errands = Errands(connections)
        self._expected: dict[bytes, tuple[Future[list[A]], int]] = {}
        self._lock, self._closing = threading.Lock(), closing
        self._answers, self._server, self._waited = 0, 0.0, 0.0

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Ask for batches; what was expected before and is not among them is let go of.

        Args:
            batches: Those of the steps to come, in order.
        """
        rows = {key: row for batch in batches for key, row in _keyed(scored_rows(batch)).items()}
        kept = {key: known for key, known in self._expected.items() if key in rows and not _failed(known[0])}
        needed = {id(future) for future, _ in kept.values()}
        for future, _ in self._expected.values():
            if id(future) not in needed:
                future.cancel()
        self._expected = {**kept, **self._begin({key: row for key, row in rows.items() if key not in kept})}

    def answers(self, sequences: "Sequences") -> list[A]:
        """What the server says of the rows that have supervised tokens, in order; asked for now where it was not.

        Args:
            sequences: A batch.

        Raises:
            TeacherError: No answer, after all tries.
            SettingError: The server refused.
        """
        rows = scored_rows(sequences)
        keys = _keys(rows)
        known = {key: self._expected[key] for key in keys if key in self._expected}
        known = {key: place for key, place in known.items() if not _failed(place[0])}
        known |= self._begin({key: row for key, row in zip(keys, rows, strict=True) if key not in known})
        began = time.monotonic()
        try:
            return [future.result()[place] for future, place in (known[key] for key in keys)]
        finally:
            self._waited += time.monotonic() - began

    def statistics(self) -> dict[str, float]:
        """What asking has cost so far.

        Returns:
            ``waited``: seconds that :meth:`answers` waited; ``server``: seconds that requests took, added up;
            ``answers``: how many came.
        """
        with self._lock:
            return {"waited": self._waited, "server": self._server, "answers": self._answers}

    def close(self) -> None:
        """Give up what is asked for and let the threads end."""
        self._closing.set()
        for future, _ in self._expected.values():
            future.cancel()
        self._expected = {}
        self._errands.close()

    def _begin(self, rows: dict[bytes, ScoredRow]) -> dict[bytes, tuple[Future[list[A]], int]]:
        """Ask for rows, some to a request; where each row's answer will be."""
        keys = list(rows)
        found: dict[bytes, tuple[Future[list[A]], int]] = {}
        for start in range(0, len(keys), self._batch_rows):
            some = keys[start : start + self._batch_rows]
            future = self._errands.give(partial(self._timed, [rows[key] for key in some]))
            found.update({key: (future, place) for place, key in enumerate(some)})
        return found

    def _timed(self, rows: list[ScoredRow]) -> list[A]:
        if self._closing.is_set():
            raise TeacherError("the teacher was closed")
        began = time.monotonic()
        answers = self._ask(rows)
        with self._lock:
            self._server += time.monotonic() - began
            self._answers += 1
        return answers


def _keys(rows: Sequence[ScoredRow]) -> list[bytes]:
    return [digest.numpy().tobytes() for digest in digests_of(rows)]


def _keyed(rows: Sequence[ScoredRow]) -> dict[bytes, ScoredRow]:
    return dict(zip(_keys(rows), rows, strict=True))


def _failed(future: "Future[list[A]]") -> bool:
    """Whether it ended without an answer, so that it is asked for again."""
    return future.cancelled() or (future.done() and future.exception() is not None)
