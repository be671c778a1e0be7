"""Methods timed against each other: in turn, in a new random order each round, so that what drifts hits all alike."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["NOISY", "Ratio", "Results", "Row", "interleaved", "reason", "wall_clock"]

NOISY = 1.3
"""A row whose slowest round took this many times its fastest is flagged."""


@dataclass
class Row:
    """One method in one group of methods that compute the same.

    Args:
        section: Key of ``run.SECTIONS``.
        heap: ``default``, ``warm`` or ``cuda``.
        group: What is computed, and in which dtype.
        method: Whose code.
        rounds: Seconds of each round, or the one figure of a section that does not time.
        figures: Whatever else was measured.
        note: What a reader must know of this row alone.
        missing: Why there are no numbers; empty where there are.
    """

    section: str
    heap: str
    group: str
    method: str
    rounds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""
    missing: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def noisy(self) -> bool:
        return len(self.rounds) > 1 and max(self.rounds) > NOISY * min(self.rounds)

    def record(self) -> dict:
        """What goes into the JSON file."""
        derived = {"median": self.median, "noisy": self.noisy} if self.rounds else {}
        return {name: value for name, value in (asdict(self) | derived).items() if value not in ("", [], {})}


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios within each round, and their range."""

    median: float
    low: float
    high: float


class Results:
    """All rows of a run."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def find(self, section: str, heap: str, group: str, method: str) -> Row | None:
        """The row, if it was measured."""
        wanted = (section, heap, group, method)
        return next(
            (row for row in self.rows if (row.section, row.heap, row.group, row.method) == wanted and row.rounds), None
        )

    @staticmethod
    def ratio(above: Row | None, below: Row | None) -> Ratio | None:
        """Round by round, one row over another of the same group; None where one is missing."""
        if above is None or below is None:
            return None
        each = [a / b for a, b in zip(above.rounds, below.rounds, strict=True)]
        return Ratio(statistics.median(each), min(each), max(each))


def reason(error: BaseException) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds of one call that ends with all its numbers in hand."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _timer(cuda: bool) -> Callable[[Callable[[], object]], float]:
    if not cuda:
        return wall_clock
    from triton.testing import do_bench

    # Clears the L2 cache before each call and times on the device, so that launches of Python do not count.
    return lambda call: do_bench(call, warmup=20, rep=100, return_mode="median") / 1e3


def interleaved(
    calls: dict[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    seed: int,
    cuda: bool,
    timer: Callable[[Callable[[], Any]], float] | None = None,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time the calls against each other.

    Args:
        calls: What to time, by name; each is called once untimed. One that raises then is left out.
        rounds: How often each is timed.
        seconds: No new round starts after this long, once there are two.
        seed: Of the order.
        cuda: Time with ``triton.testing.do_bench``.
        timer: Gives the seconds of a call, for calls that measure themselves or end on the host; None: by the device.

    Returns:
        Seconds of each round by name, and the reasons of those that were left out.
    """
    missing = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # Whatever someone else's code raises is its row's answer.
            missing[name] = reason(error)
        if cuda and name in missing:
            # What ran out of memory leaves its pieces in torch's cache, where the next method cannot use them whole.
            import torch

            torch.cuda.empty_cache()
    order = [name for name in calls if name not in missing]
    times: dict[str, list[float]] = {name: [] for name in order}
    timed, shuffled, start = timer or _timer(cuda), random.Random(seed), time.perf_counter()
    for number in range(rounds):
        if number >= 2 and time.perf_counter() - start > seconds:
            break
        shuffled.shuffle(order)
        for name in order:
            times[name].append(timed(calls[name]))
    return times, missing
