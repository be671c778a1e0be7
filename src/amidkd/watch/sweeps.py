"""A sweep as it stands: its trials, from ``sweep.json``, and how far the running ones are."""

import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from amidkd.config import RunConfig
from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.report.words import duration, number
from amidkd.watch.log import StageLog
from amidkd.watch.runs import read_config
from amidkd.watch.tail import JsonFile, age_of
from amidkd.watch.view import Bar, State, Trials, View

__all__ = ["SWEEP_FILE", "SweepFollower"]

SWEEP_FILE = "sweep.json"
_QUIET = 120.0
_MARKS = {"complete": "done"}


@final
class SweepFollower:
    """Follows one sweep, in any state of it.

    Args:
        path: Its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = JsonFile(path / SWEEP_FILE)
        self._config: RunConfig | None = None
        self._trouble = ""
        self._logs: dict[Path, StageLog] = {}

    def look(self) -> View:
        """The sweep as it stands."""
        self._file.read()
        if self._config is None:
            self._config, self._trouble = read_config(self._path)
        sweep = self._file.value
        trials: Sequence[Mapping[str, Any]] = sweep.get("trials", [])
        state, sentence = self._state(sweep, trials)
        return View(
            title=self._path.name,
            state=state,
            sentence=sentence,
            about=self._about(sweep),
            bars=tuple(self._bars(trials)),
            facts=tuple(self._facts(sweep, trials)),
            warnings=tuple(filter(None, [self._trouble, *_failures(trials)])),
            command=f"amidkd report {shlex.quote(os.path.relpath(self._path))}" if state == "done" else "",
            trials=self._table(sweep, trials) if trials else None,
        )

    def _state(self, sweep: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> tuple[State, str]:
        if not sweep:
            return "waiting", "No trial is recorded yet; waiting for the first."
        counted = _counted(trials)
        if sweep.get("stopped"):
            return "done", f"Stopped: {sweep['stopped']}. {counted}."
        age = age_of(
            [self._file.path, *(path for trial in trials for log in self._running(trial) for path in log.files)]
        )
        if age is not None and age > _QUIET:
            return "silent", f"Nothing was written for {duration(age)}. {counted}."
        return "running", f"Under way. {counted}."

    def _about(self, sweep: Mapping[str, Any]) -> str:
        best = sweep.get("best") or []
        if len(best) > 1:
            return f"No other trial beats trials {', '.join(map(str, best))} in every objective."
        trial = next((trial for trial in sweep.get("trials", []) if trial["number"] in best), None)
        if trial is None:
            return ""
        found = ", ".join(
            f"{_metric(entry['metric']).label} {_shown(trial, entry['metric'])}" for entry in sweep["objective"]
        )
        settings = ", ".join(f"{key} = {_setting(value)}" for key, value in trial["params"].items())
        return f"Best so far: trial {trial['number']}, {found}, with {settings}."

    def _bars(self, trials: Sequence[Mapping[str, Any]]) -> Iterable[Bar]:
        total = None if self._config is None or self._config.sweep is None else self._config.sweep.trials
        done = sum(trial["state"] != "running" for trial in trials)
        yield Bar("trials", done, total, f"{done}" + (f" of {total}" if total else ""))
        for trial in trials:
            if trial["state"] == "running":
                for log in self._running(trial):
                    yield log.bar(None, total=None, moving=True)

    def _running(self, trial: Mapping[str, Any]) -> list[StageLog]:
        """What a trial that is under way is at: the newest log of its runs."""
        if trial["state"] != "running" or not trial.get("folder"):
            return []
        home = self._path / trial["folder"]
        found = [*home.glob("*/progress.json"), *home.glob("*/warm_start/progress.json")]
        if not found:
            return []
        newest = max(found, key=lambda path: path.stat().st_mtime).parent
        log = self._logs.setdefault(newest, StageLog(newest, ""))
        part = "warm start" if newest.name == "warm_start" else "training"
        run = newest.parent.name if newest.name == "warm_start" else newest.name
        log.name = f"trial {trial['number']}, {run}, {part}"
        log.read()
        return [log]

    def _facts(self, sweep: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
        yield "folder", os.path.relpath(self._path)
        for key in ("sampler", "pruner", "seeds", "started", "updated"):
            value = sweep.get(key)
            if value:
                yield key, ", ".join(map(str, value)) if isinstance(value, list) else _name(value)
        if trials:
            yield "time in trials", duration(sum(trial.get("seconds") or 0.0 for trial in trials))
            yield "supervised tokens", f"{sum(trial.get('tokens') or 0 for trial in trials):,}"

    def _table(self, sweep: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Trials:
        keys = list(sweep.get("space", {})) or list(dict.fromkeys(key for trial in trials for key in trial["params"]))
        metrics = [entry["metric"] for entry in sweep["objective"]]
        rows = []
        for trial in sorted(trials, key=lambda trial: -trial["number"]):
            state = _MARKS.get(trial["state"], trial["state"])
            if trial["number"] in (sweep.get("best") or []):
                state += ", best"
            settings = (_setting(trial["params"][key]) if key in trial["params"] else "–" for key in keys)
            seconds = duration(trial["seconds"]) if trial.get("seconds") else "–"
            values = (_shown(trial, metric) for metric in metrics)
            rows.append((str(trial["number"]), state, *settings, *values, seconds))
        points = {
            _metric(name).label: tuple(
                (trial["number"], float(trial["values"][name]))
                for trial in trials
                if isinstance((trial.get("values") or {}).get(name), int | float)
            )
            for name in metrics
        }
        heads = ("trial", "state", *(key.rpartition(".")[2] for key in keys), *points, "time")
        return Trials(heads, tuple(rows), points)


def _counted(trials: Sequence[Mapping[str, Any]]) -> str:
    states = [_MARKS.get(trial["state"], trial["state"]) for trial in trials]
    parts = [f"{states.count(state)} {state}" for state in ("done", "running", "pruned", "failed") if state in states]
    return f"Trials: {', '.join(parts)}" if parts else "No trial yet"


def _failures(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each kind of failure once, with the trials that it stopped."""
    by_error: dict[str, list[int]] = {}
    for trial in trials:
        if trial.get("error"):
            by_error.setdefault(str(trial["error"]), []).append(trial["number"])
    return [
        f"{'Trial' if len(numbers) == 1 else 'Trials'} {', '.join(map(str, numbers))} failed: {error}"
        for error, numbers in by_error.items()
    ]


def _metric(name: str) -> Metric:
    """A metric by the name that objectives use, ``task.metric`` for one of a task of the suite."""
    task, _, own = name.rpartition(".")
    metric = METRICS[own]
    if not task:
        return metric
    return Metric(name, f"{task}: {metric.label}", metric.unit, metric.better, metric.group, metric.meaning)


def _shown(trial: Mapping[str, Any], name: str) -> str:
    value = (trial.get("values") or {}).get(name)
    if not isinstance(value, int | float) or math.isnan(value):
        return "–"
    entry = (trial.get("metrics") or {}).get(name)
    shown = show(Estimate.from_json(entry) if entry else Estimate(float(value)), _metric(name))
    return shown.text + (f" ± {shown.errors[0].text}" if shown.errors else "")


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return _name(value)
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _name(value: Any) -> str:
    """A section by its kind or name, with its other settings."""
    if not isinstance(value, dict):
        return str(value)
    first = next((key for key in ("name", "kind") if key in value), None)
    rest = ", ".join(f"{key} {_setting(entry)}" for key, entry in value.items() if key != first and entry is not None)
    head = "" if first is None else str(value[first])
    return f"{head} ({rest})" if head and rest else head or rest
