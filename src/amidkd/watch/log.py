"""One stage's log as it grows: its step, its pace, and its newest numbers."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, final

from amidkd.record import RunFolder
from amidkd.report.curves import PANELS, Panel
from amidkd.report.words import count, duration, mebibytes
from amidkd.watch.tail import JsonFile, Tail
from amidkd.watch.view import Bar, Reading

__all__ = ["StageLog"]

_PACE_LINES = 20
"""The pace is that of so many log lines."""

_HISTORY = 240
"""Points of a reading's history; neighbours are averaged beyond."""

_FORMS = {"tokens_per_second": count, "peak_memory_mb": mebibytes, "learning_rate": lambda value: f"{value:.3g}"}

_UNITS = {
    "nats a token": "nats a token",
    "per cent of tokens": "%",
    "per cent": "%",
    "tokens, mean": "tokens",
    "supervised tokens a second": "tokens/s",
}
"""The unit beside a number, by the name of the axis."""

_KEYS = {key for panel in PANELS for key in panel.keys}

_SPEAK_FOR_THEMSELVES = ("parts", "kl", "schedule")
"""Panels whose lines need no heading."""


@final
class StageLog:
    """``metrics.jsonl`` and ``progress.json`` of one stage.

    Args:
        path: The stage's folder.
        name: What the stage is called.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        folder = RunFolder(path)
        self.metrics, self.progress = Tail(folder.metrics_file), JsonFile(folder.progress_file)
        self._version = -1
        self._forget()

    def _forget(self) -> None:
        self._taken = 0
        self._last: dict[str, float] = {}
        self._finite: dict[str, list[float]] = {}
        self._stage = ""
        self._labelled: list[dict[str, Any]] = []

    @property
    def files(self) -> tuple[Path, Path]:
        """What the stage writes."""
        return self.metrics.path, self.progress.path

    @property
    def begun(self) -> bool:
        """Whether it wrote anything."""
        return bool(self.metrics.rows or self.progress.value)

    def read(self) -> None:
        """Take up what is new."""
        self.metrics.read()
        self.progress.read()
        if self.metrics.versions != self._version:
            self._version = self.metrics.versions
            self._forget()
        for row in self.metrics.rows[self._taken :]:
            self._take(row)
        self._taken = len(self.metrics.rows)

    def _take(self, row: Mapping[str, Any]) -> None:
        for key in _KEYS & row.keys():
            value = float(row[key]) if isinstance(row[key], int | float) else math.nan
            self._last[key] = value
            if math.isfinite(value):
                self._finite.setdefault(key, []).append(value)

    def lines(self, stage: str) -> list[dict[str, Any]]:
        """The log lines, each with the name of its stage.

        Args:
            stage: The name.
        """
        if stage != self._stage:
            self._stage, self._labelled = stage, []
        new = self.metrics.rows[len(self._labelled) :]
        self._labelled.extend({"step": 0, **row, "stage": stage} for row in new)
        return self._labelled

    @property
    def step(self) -> int:
        """The last step that is known to be done."""
        logged = self.metrics.rows[-1].get("step", 0) if self.metrics.rows else 0
        return max(int(logged), int(self.progress.value.get("step", 0)))

    def seconds_a_step(self) -> float | None:
        """The pace: of the newest lines, else since the stage began or went on; None where nothing says it."""
        first, last = (self.metrics.rows[-_PACE_LINES:] or [{}])[0], (self.metrics.rows or [{}])[-1]
        steps = last.get("step", 0) - first.get("step", 0)
        if steps > 0 and "seconds" in last and "seconds" in first:
            return float(last["seconds"] - first["seconds"]) / steps
        entry = self.progress.value
        done = entry.get("step", 0) - entry.get("first", 0)
        if done <= 0:
            return None
        since, updated = (datetime.fromisoformat(entry[key]) for key in ("since", "updated"))
        return (updated - since).total_seconds() / done or None

    def bar(self, entry: Mapping[str, Any] | None, *, total: int | None, moving: bool) -> Bar:
        """How far the stage is.

        Args:
            entry: Its entry in ``record.json`` where it is complete, else None.
            total: Its steps where ``progress.json`` does not say them.
            moving: Whether the run is under way.
        """
        if entry is not None:
            steps = int(entry.get("steps") or self.step)
            took = f" in {duration(entry['seconds'])}" if entry.get("seconds") else ""
            return Bar(self.name, steps, steps, f"{steps:,} steps{took}")
        total = self.progress.value.get("steps") or total
        if not self.begun:
            return Bar(self.name, 0, total, "not begun")
        text = f"step {self.step:,}" + (f" of {total:,}" if total else "")
        pace = self.seconds_a_step()
        if moving and pace and total and self.step < total:
            text += f", about {duration(pace * (total - self.step))} left"
        return Bar(self.name, self.step, total, text)

    def readings(self) -> tuple[Reading, ...]:
        """The newest value of each number that the log holds, with what it was before."""
        found = []
        for panel in PANELS:
            for key, label in panel.keys.items():
                if key not in self._last:
                    continue
                last = panel.factor * self._last[key]
                shown = _FORMS.get(key, _plain)(last) if math.isfinite(last) else "not a number"
                history = tuple(panel.factor * value for value in _thinned(self._finite.get(key, [])))
                found.append(Reading(key, _title(panel, label), _UNITS.get(panel.ylabel, ""), shown, history))
        return tuple(found)


def _title(panel: Panel, label: str) -> str:
    """The name of a number away from its picture."""
    if len(panel.keys) == 1:
        return panel.title
    if panel.name not in _SPEAK_FOR_THEMSELVES:
        return f"{panel.title}: {label}"
    return label if len(label) == 1 else label[0].upper() + label[1:]


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of neighbours, so that few enough are left."""
    size = max(1, -(-len(values) // _HISTORY))
    chunks = (values[start : start + size] for start in range(0, len(values), size))
    return [sum(chunk) / len(chunk) for chunk in chunks]
