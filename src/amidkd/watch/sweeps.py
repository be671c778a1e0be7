"""A sweep as it stands: its trials, from ``sweep.json``, and how far the running ones are."""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final

from amidkd.errors import SettingError
from amidkd.evaluation.display import show
from amidkd.report.sweep.record import SWEEP_FILE, Sweep, Trial, key_text, metric_called, read_sweep, value_text
from amidkd.report.sweep.words import effort_of, params_text
from amidkd.report.words import duration
from amidkd.watch.log import StageLog
from amidkd.watch.tail import JsonFile, age_of
from amidkd.watch.view import Bar, State, Trials, View

__all__ = ["SweepFollower"]

_QUIET = 120.0
_STATES = {"complete": "done"}


@final
class SweepFollower:
    """Follows one sweep, in any state of it.

    Args:
        path: Its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = JsonFile(path / SWEEP_FILE)
        self._sweep: Sweep | None = None
        self._trouble = ""
        self._logs: dict[Path, StageLog] = {}

    def look(self) -> View:
        """The sweep as it stands."""
        if self._file.read() and self._file.value:
            try:
                self._sweep, self._trouble = read_sweep(self._path), ""
            except SettingError as error:
                self._trouble = str(error)
        sweep = self._sweep
        warnings = [] if not self._trouble else [self._trouble]
        if sweep is None:
            sentence = "No trial is recorded yet; waiting for the first."
            return View(self._path.name, "waiting", sentence, warnings=tuple(warnings))
        running = [log for trial in sweep.trials for log in self._running(trial)]
        state, sentence = self._state(sweep, running)
        relative = os.path.relpath(self._path)
        return View(
            title=self._path.name,
            state=state,
            sentence=sentence,
            about=_best(sweep),
            bars=(self._bar(sweep), *(log.bar(None, total=None, moving=True) for log in running)),
            facts=(("folder", relative), *effort_of(sweep)),
            warnings=(*warnings, *_failures(sweep.trials)),
            command=f"amidkd report {shlex.quote(relative)}" if state == "done" else "",
            trials=_table(sweep) if sweep.trials else None,
        )

    def _state(self, sweep: Sweep, running: Sequence[StageLog]) -> tuple[State, str]:
        counted = _counted(sweep.trials)
        if sweep.facts.get("stopped"):
            return "done", f"Stopped: {sweep.facts['stopped']}. {counted}."
        age = age_of([self._file.path, *(path for log in running for path in log.files)])
        if age is not None and age > _QUIET:
            return "silent", f"Nothing was written for {duration(age)}. {counted}."
        return "running", f"Under way. {counted}."

    def _bar(self, sweep: Sweep) -> Bar:
        done = sum(trial.state != "running" for trial in sweep.trials)
        total = self._file.value.get("expected_trials")
        return Bar("trials", done, total, f"{done}" + (f" of {total}" if total else ""))

    def _running(self, trial: Trial) -> list[StageLog]:
        """What a trial that is under way is at: the newest log of its runs."""
        if trial.state != "running":
            return []
        found = [*trial.folder.glob("*/progress.json"), *trial.folder.glob("*/warm_start/progress.json")]
        if not found:
            return []
        newest = max(found, key=lambda path: path.stat().st_mtime).parent
        log = self._logs.setdefault(newest, StageLog(newest, ""))
        log.name = f"trial {trial.number}, {newest.relative_to(trial.folder).as_posix()}".replace(
            "/warm_start", ", warm start"
        )
        log.read()
        return [log]


def _best(sweep: Sweep) -> str:
    if len(sweep.best) > 1:
        return f"No other trial beats trials {', '.join(map(str, sweep.best))} in every objective."
    trial = next((trial for trial in sweep.trials if trial.number in sweep.best), None)
    if trial is None:
        return ""
    found = ", ".join(f"{metric_called(o.metric).label} {_shown(trial, o.metric)}" for o in sweep.objectives)
    known = "Best" if sweep.facts.get("stopped") else "Best so far"
    return f"{known}: trial {trial.number}, {found}, with {params_text(sweep, trial)}."


def _table(sweep: Sweep) -> Trials:
    keys, metrics = sweep.varied(), [objective.metric for objective in sweep.objectives]
    rows = []
    for trial in reversed(sweep.trials):
        state = _STATES.get(trial.state, trial.state) + (", best" if trial.number in sweep.best else "")
        settings = (value_text(trial.params[key]) if key in trial.params else "–" for key in keys)
        seconds = duration(trial.seconds) if trial.seconds else "–"
        rows.append((str(trial.number), state, *settings, *(_shown(trial, name) for name in metrics), seconds))
    values = {
        metric_called(name).label: [
            (trial.number, trial.values[name]) for trial in sweep.trials if name in trial.values
        ]
        for name in metrics
    }
    return Trials(("trial", "state", *map(key_text, keys), *values, "time"), tuple(rows), values)


def _counted(trials: Sequence[Trial]) -> str:
    states = [_STATES.get(trial.state, trial.state) for trial in trials]
    parts = [f"{states.count(state)} {state}" for state in ("done", "running", "pruned", "failed") if state in states]
    return f"Trials: {', '.join(parts)}" if parts else "No trial yet"


def _failures(trials: Iterable[Trial]) -> list[str]:
    """Each kind of failure once, with the trials that it stopped."""
    by_error: dict[str, list[int]] = {}
    for trial in trials:
        if trial.error:
            by_error.setdefault(trial.error, []).append(trial.number)
    return [
        f"{'Trial' if len(numbers) == 1 else 'Trials'} {', '.join(map(str, numbers))} failed: {error}"
        for error, numbers in by_error.items()
    ]


def _shown(trial: Trial, name: str) -> str:
    found = trial.estimate(name)
    if found is None:
        return "–"
    shown = show(found, metric_called(name))
    return shown.text + (f" ± {shown.errors[0].text}" if shown.errors else "")
