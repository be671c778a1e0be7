"""Errands run by a few threads, in the order in which they were given."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, final

from amidkd.errors import TeacherError

__all__ = ["Errands"]

_SECONDS_TO_END = 1.0


@final
class Errands:
    """Threads that do not keep the process alive: a request that waits for a dead server must not hold up its end.

    Args:
        threads: How many errands are under way at once.
    """

    def __init__(self, threads: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name="errands", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def give(self, errand: Callable[[], Any]) -> "Future[Any]":
        """Run a function when a thread is free; its future can be cancelled until then."""
        future: Future[Any] = Future()
        if self._closed:
            future.set_exception(TeacherError("the teacher was closed"))
            return future
        self._queue.put((future, errand))
        return future

    def close(self) -> None:
        """Let the threads end after what was given; waits a moment at most. What is given from now on fails."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        # A thread that still lets go of a tensor while the interpreter ends would take the whole process down.
        until = time.monotonic() + _SECONDS_TO_END
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (given := self._queue.get()) is not None:
            _do(*given)
            # Whoever asked holds the answer: a thread that waits holds nothing.
            given = None


def _do(future: "Future[Any]", errand: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = errand()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
