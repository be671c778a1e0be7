"""What a stage measures: the window between two log lines, and means over the tokens of a step and all ranks."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amidkd.training.settings import Tokens

__all__ = ["TIME_FIELDS", "Measured", "Progress", "mean_metrics", "peak_memory_mb"]

TIME_FIELDS = ("seconds", "tokens_per_second", "peak_memory_mb")
"""Fields of a line of metrics.jsonl that differ between a resumed and an uninterrupted run."""

_MEASURES = (
    "divergence",
    "kl_teacher_student",
    "kl_student_teacher",
    "entropy_teacher",
    "entropy_student",
    "entropy_assistant",
    "top1_agreement",
    "responsibility",
    "cross_entropy",
    "aligned_tokens",
)


class Measured:
    """Means over the supervised tokens of an optimizer step, from all its forward passes and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add a forward pass: means over its tokens, and their number as ``tokens``."""
        if not metrics:
            return
        count = metrics["tokens"].double()
        for name in _MEASURES:
            if name in metrics:
                # A pass without tokens has no mean; it must not spoil the others'.
                part = torch.where(count > 0, metrics[name].double() * count, 0.0)
                self._sums[name] = self._sums.get(name, torch.zeros_like(part)) + part
                self._counts[name] = self._counts.get(name, torch.zeros_like(count)) + count

    def means(self, add_up: Callable[[list[float]], list[float]]) -> dict[str, float]:
        """The means; every rank must call it.

        Args:
            add_up: Sums a list of numbers over all ranks.
        """
        local = [float(table.get(name, 0.0)) for table in (self._sums, self._counts) for name in _MEASURES]
        total = add_up(local)
        sums, counts = total[: len(_MEASURES)], total[len(_MEASURES) :]
        return {name: s / n for name, s, n in zip(_MEASURES, sums, counts, strict=True) if n > 0}


class Progress:
    """Sums since the last log line and since the stage began; part of every checkpoint."""

    def __init__(self) -> None:
        self.tokens = 0
        self._clear_window()
        self._window_start = 0.0
        self._earlier = self._earlier_peak = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent on the stage, in all its sessions that led to a checkpoint, and in this one."""
        return self._earlier + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def peak_memory_mb(self) -> float:
        """Largest memory of any session of the stage, MiB."""
        return max(self._earlier_peak, peak_memory_mb())

    def _clear_window(self) -> None:
        self._steps, self._loss, self._corpus, self._window_tokens = 0, 0.0, 0.0, 0
        self._student, self._answers, self._finished = 0, 0, 0

    def add(self, *, loss: float, corpus: float, tokens: Tokens) -> None:
        """Add an optimizer step: its loss, the corpus loss within it, and what it was made of."""
        self._steps += 1
        self._loss += loss
        self._corpus += corpus
        self._window_tokens += tokens.data
        self._student += tokens.student
        self._answers += tokens.answers
        self._finished += tokens.finished
        self.tokens += tokens.data

    def line(self, *, corpus: bool, writes: bool = False) -> dict[str, float]:
        """The window as fields of a log line; a new window starts.

        Args:
            corpus: Whether there is a corpus loss to report.
            writes: Whether the student writes: ``student_text`` is the part of the supervised tokens that are its
                own, ``answer_length`` the mean length of its answers in tokens, and ``finished`` the part of them that
                end in EOS.
        """
        seconds = self.seconds
        steps, elapsed = max(1, self._steps), seconds - self._window_start
        found = {
            "loss": self._loss / steps,
            **({"corpus_loss": self._corpus / steps} if corpus else {}),
            "tokens": self.tokens,
            "tokens_per_second": self._window_tokens / elapsed if elapsed > 0 else 0.0,
            "peak_memory_mb": self.peak_memory_mb,
            "seconds": seconds,
        }
        if writes:
            found["student_text"] = self._student / max(1, self._window_tokens)
        if writes and self._answers:
            found["answer_length"] = self._student / self._answers
            found["finished"] = self._finished / self._answers
        self._clear_window()
        self._window_start = seconds
        return found

    def state(self) -> dict[str, Any]:
        """All sums, as JSON can hold them."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "peak_memory_mb": self.peak_memory_mb,
            "window": {
                "steps": self._steps,
                "loss": self._loss,
                "corpus": self._corpus,
                "tokens": self._window_tokens,
                "student": self._student,
                "answers": self._answers,
                "finished": self._finished,
                "start": self._window_start,
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave."""
        window = state["window"]
        self.tokens, self._earlier = state["tokens"], state["seconds"]
        self._earlier_peak = state["peak_memory_mb"]
        self._steps, self._loss, self._corpus = window["steps"], window["loss"], window["corpus"]
        self._window_tokens, self._window_start = window["tokens"], window["start"]
        self._student, self._answers, self._finished = window["student"], window["answers"], window["finished"]


def peak_memory_mb() -> float:
    """Largest memory so far: of the CUDA device where there is one, else of the process, MiB."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def mean_metrics(made: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of parts of a pass as those of the whole: averaged over the tokens of the parts that have them.

    Args:
        made: What ``distillation_loss`` measured of each part; ``tokens`` is how many it has.
    """
    metrics: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for found in made for name in found):
        having = [found for found in made if name in found]
        tokens = torch.stack([found["tokens"] for found in having])
        values = torch.stack([found[name] for found in having])
        metrics[name] = tokens.sum() if name == "tokens" else (values * tokens).sum() / tokens.sum().clamp(min=1)
    return metrics
