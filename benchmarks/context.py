"""What a section is told, and how it makes its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sizes import Sizes
from timing import Row, interleaved

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """One process of the benchmark.

    Args:
        sizes: How large.
        heap: ``default``, ``warm`` or ``cuda``.
        quick: Whether this only tries the scripts.
        seed: Of numbers and orders.
    """

    sizes: Sizes
    heap: str
    quick: bool
    seed: int

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return "cuda" if self.heap == "cuda" else "cpu"

    def timed(
        self,
        section: str,
        group: str,
        calls: dict[str, Callable[[], object]],
        *,
        rounds: int,
        missing: dict[str, str],
        notes: dict[str, str] | None = None,
        timer: Callable[[Callable[[], Any]], float] | None = None,
        seconds: float | None = None,
    ) -> list[Row]:
        """Time a group's calls against each other, and make its rows; ``timer`` and ``seconds`` as for
        :func:`~timing.interleaved`."""
        times, failed = interleaved(
            calls,
            rounds=rounds,
            seconds=self.sizes.seconds if seconds is None else seconds,
            seed=self.seed,
            cuda=self.device == "cuda",
            timer=timer,
        )
        rows = [
            Row(
                section,
                self.heap,
                group,
                name,
                rounds=times.get(name, []),
                note=(notes or {}).get(name, ""),
                missing=failed.get(name, ""),
            )
            for name in calls
        ]
        return rows + [Row(section, self.heap, group, name, missing=why) for name, why in missing.items()]
