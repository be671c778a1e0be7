"""One thread runs the model; what clients wait for at one time goes through it together.

Rows of all clients are sorted by length and padded to one another. A row has the answer that it would get alone, up
to the rounding of the model's arithmetic, which depends on the shape of a batch.
"""

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from amidkd.data import Sequences
from amidkd.signals import Hidden
from amidkd.teachers import LiveTeacher
from amidkd.teachers.served.protocol import ScoredRow, Wish
from amidkd.teachers.truncation import truncated

__all__ = ["Worker"]

_log = logging.getLogger("amidkd")


Scored = dict[str, Tensor]
"""What the teacher says of a request's rows: ``ids``, ``log_probs``, ``log_tail``; or ``states``."""


@dataclass(eq=False)
class _Job:
    rows: Sequence[ScoredRow]
    wish: Wish
    future: "Future[Scored]" = field(default_factory=Future)
    parts: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = [{} for _ in self.rows]

    def tokens(self) -> int:
        return sum(len(row.tokens_T) for row in self.rows)


@final
class Worker:
    """Answers requests in the order in which they come, several in one forward pass.

    Args:
        teacher: The model.
        batch_tokens: Tokens in a forward pass, padding included; a row that has more goes alone.
    """

    def __init__(self, teacher: LiveTeacher, *, batch_tokens: int) -> None:
        self._teacher, self._batch_tokens = teacher, batch_tokens
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="teacher", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[ScoredRow], wish: Wish) -> "Future[Scored]":
        """Ask for rows; cancel the future where nobody waits any more."""
        job = _Job(rows, wish)
        self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Finish what was asked for, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            jobs, open_ = self._waiting()
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            for wish in dict.fromkeys(job.wish for job in jobs):
                self._answer([job for job in jobs if job.wish == wish], wish)

    def _waiting(self) -> tuple[list[_Job], bool]:
        """The next job and those behind it that fit into one pass; and whether more may come."""
        job = self._queue.get()
        jobs: list[_Job] = []
        tokens = 0
        while job is not None:
            jobs.append(job)
            tokens += job.tokens()
            if tokens >= self._batch_tokens:
                return jobs, True
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _answer(self, jobs: list[_Job], wish: Wish) -> None:
        entries = [(job, number) for job in jobs for number in range(len(job.rows))]
        entries.sort(key=lambda entry: len(entry[0].rows[entry[1]].tokens_T))
        for batch in self._batches(entries):
            self._score(batch, wish)
        for job in jobs:
            if not job.future.done():
                names = job.parts[0].keys()
                job.future.set_result({name: torch.cat([part[name] for part in job.parts]) for name in names})

    def _batches(self, entries: list[tuple[_Job, int]]) -> list[list[tuple[_Job, int]]]:
        """Rows, sorted by length, in pieces whose padded size stays in bounds."""
        batches: list[list[tuple[_Job, int]]] = []
        for job, number in entries:
            width = len(job.rows[number].tokens_T)
            if not batches or width * (len(batches[-1]) + 1) > self._batch_tokens:
                batches.append([])
            batches[-1].append((job, number))
        return batches

    def _score(self, batch: list[tuple[_Job, int]], wish: Wish) -> None:
        """Run the model; where that fails, row by row, so that nobody suffers for another's row."""
        batch = [(job, number) for job, number in batch if not job.future.done()]
        if not batch:
            return
        rows = [job.rows[number] for job, number in batch]
        try:
            tensors = self._signal(rows, wish)
        except Exception as error:
            if len(batch) > 1:
                for entry in batch:
                    self._score([entry], wish)
                return
            _log.warning("a row of %d tokens failed: %s: %s", len(rows[0].tokens_T), type(error).__name__, error)
            batch[0][0].future.set_exception(error)
            return
        counts = [len(row.places_n) for row in rows]
        pieces = {name: tensor.split(counts) for name, tensor in tensors.items()}
        for place, (job, number) in enumerate(batch):
            job.parts[number] = {name: split[place] for name, split in pieces.items()}

    def _signal(self, rows: Sequence[ScoredRow], wish: Wish) -> dict[str, Tensor]:
        signal = self._teacher.signal(_sequences(rows).to(self._teacher.device))
        if wish.form == "hidden":
            assert isinstance(signal, Hidden)
            return {"states": signal.states.cpu()}
        said = truncated(signal, wish.top_k, vocab_size=wish.vocab_size)
        assert said.log_tail is not None
        return {
            "ids": said.ids.to("cpu", torch.int32),
            "log_probs": said.log_probs.cpu(),
            "log_tail": said.log_tail.cpu(),
        }


def _sequences(rows: Sequence[ScoredRow]) -> Sequences:
    """Rows as a batch, padded on the right."""
    shape = (len(rows), max(len(row.tokens_T) for row in rows))
    tokens, attention = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    targets = torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens_T)] = row.tokens_T
        attention[number, : len(row.tokens_T)] = 1
        targets[number, row.places_n + 1] = True
    index = torch.arange(len(rows))
    return Sequences(tokens, attention, targets, rows_B=index, origin_B=torch.zeros_like(index))
