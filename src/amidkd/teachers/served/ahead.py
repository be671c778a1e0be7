"""Rows asked of a server before they are needed, several requests at once, found again by their content."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar, final

from amidkd.teachers.served.protocol import ScoredRow, digests_of

if TYPE_CHECKING:
    from amidkd.data import Sequences

__all__ = ["Ahead", "AheadStatistics", "scored_rows"]

A = TypeVar("A")


@dataclass(frozen=True)
class AheadStatistics:
    """How much of a server's time the student did not have to wait for.

    Args:
        requests: Requests answered.
        asked: Seconds that they took, added up.
        waited: Seconds in which an answer was wanted and not there.
    """

    requests: int
    asked: float
    waited: float


def scored_rows(sequences: "Sequences") -> list[ScoredRow]:
    """The rows of a batch that have supervised tokens, up to the last of these, on the CPU.

    Args:
        sequences: A batch; its answers, one row after the other, are in the row-major order of ``predicts_BT``.
    """
    predicts_BT, tokens_BT = sequences.predicts_BT().cpu(), sequences.tokens_BT.cpu()
    places = [predicts_T.nonzero()[:, 0] for predicts_T in predicts_BT]
    return [
        ScoredRow(tokens_T[: int(places_n[-1]) + 2], places_n)
        for tokens_T, places_n in zip(tokens_BT, places, strict=True)
        if len(places_n)
    ]


@final
class Ahead(Generic[A]):
    """Answers for rows, asked for by threads.

    Args:
        ask: Sends one request and gives an answer for each of its rows; called by several threads.
        connections: Requests under way at once.
        batch_rows: Rows of a request.
    """

    def __init__(self, ask: Callable[[list[ScoredRow]], list[A]], *, connections: int, batch_rows: int) -> None:
        self._ask, self._connections, self._batch_rows = ask, connections, batch_rows
        self._expected: dict[bytes, tuple[Future[list[A]], int]] = {}
        self._waiting: SimpleQueue[tuple[list[ScoredRow], Future[list[A]]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._requests, self._asked, self._waited = 0, 0.0, 0.0

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Ask for batches; what was expected before and is not among them is let go of.

        Args:
            batches: Those of the steps to come, in order.
        """
        rows = {key: row for batch in batches for key, row in self._keyed(scored_rows(batch)).items()}
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
        began = time.monotonic()
        rows = scored_rows(sequences)
        keys = self._keys(rows)
        known = {
            key: self._expected[key] for key in keys if key in self._expected and not _failed(self._expected[key][0])
        }
        known |= self._begin({key: row for key, row in zip(keys, rows, strict=True) if key not in known})
        try:
            return [known[key][0].result()[known[key][1]] for key in keys]
        finally:
            self._waited += time.monotonic() - began

    def statistics(self) -> AheadStatistics:
        """What was asked and waited for so far."""
        with self._lock:
            return AheadStatistics(self._requests, self._asked, self._waited)

    def close(self) -> None:
        """Let the threads go; what is under way is not waited for."""
        for future, _ in self._expected.values():
            future.cancel()
        self._expected = {}
        for _ in self._threads:
            self._waiting.put(None)
        self._threads = []

    def _keys(self, rows: Sequence[ScoredRow]) -> list[bytes]:
        return [bytes(digest.numpy()) for digest in digests_of(rows)]

    def _keyed(self, rows: Sequence[ScoredRow]) -> dict[bytes, ScoredRow]:
        return dict(zip(self._keys(rows), rows, strict=True))

    def _begin(self, rows: dict[bytes, ScoredRow]) -> dict[bytes, tuple[Future[list[A]], int]]:
        """Put rows in the queue, some to a request; where each row's answer will be."""
        self._start()
        keys, found = list(rows), {}
        for start in range(0, len(keys), self._batch_rows):
            some, future = keys[start : start + self._batch_rows], Future[list[A]]()
            self._waiting.put(([rows[key] for key in some], future))
            found.update({key: (future, place) for place, key in enumerate(some)})
        return found

    def _start(self) -> None:
        # Daemons, unlike those of an executor: a server that does not answer holds up no exit.
        while len(self._threads) < self._connections:
            thread = threading.Thread(target=self._work, name="teacher", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            rows, future = job
            if not future.set_running_or_notify_cancel():
                continue
            began = time.monotonic()
            try:
                future.set_result(self._ask(rows))
            except BaseException as error:
                future.set_exception(error)
            with self._lock:
                self._requests, self._asked = self._requests + 1, self._asked + time.monotonic() - began


def _failed(future: "Future[list[A]]") -> bool:
    """Whether it ended without an answer, so that it is asked for again."""
    return future.cancelled() or (future.done() and future.exception() is not None)
