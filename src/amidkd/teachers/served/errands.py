"""Errands run by a few threads, in the order in which they were given."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, final

from amidkd.errors import TeacherError

__all__ = ["Errands"]


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
        """Let the threads end after what was given; does not wait. What is given from now on fails."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)

    def _run(self) -> None:
        while (given := self._queue.get()) is not None:
            future, errand = given
            if future.set_running_or_notify_cancel():
                try:
                    result = errand()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
