"""How far a sweep is: a live table on a terminal, a line for each event elsewhere. Reads the sweep's folder alone."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amidkd.evaluation import METRICS, Estimate
from amidkd.evaluation.display import show
from amidkd.report.words import duration
from amidkd.sweep.snapshot import SNAPSHOT

__all__ = ["Progress", "best_line", "counts_line", "remaining", "value_shown"]

_MOST_ROWS = 14
_SECONDS_BETWEEN_LINES = 60.0
_COLOURS = {"running": "cyan", "failed": "red", "pruned": "yellow", "complete": "default"}
_WORDS = {"complete": "done"}

Found = Mapping[str, Any]


class Progress:
    """Shows a sweep while it runs, from a thread of its own; use it in a ``with`` block.

    Args:
        folder: The sweep's folder.
        workers: Trials at a time.
        console: Where it is shown; default: standard output.
    """

    def __init__(self, folder: Path, workers: int, console: Any = None) -> None:
        from rich.console import Console

        self._folder, self._workers = folder, workers
        # As it is now: what trials print goes elsewhere.
        self._console = Console() if console is None else console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._told: dict[int, tuple[str, int]] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        found = self._read()
        # What earlier sessions did is one line.
        self._told = {trial["number"]: _state(trial) for trial in found.get("trials", ())}
        if self._told and not self._console.is_terminal:
            self._say(f"Going on: {counts_line(found)}. {best_line(found)}")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        if not self._console.is_terminal:
            while not self._stop.wait(0.5):
                self._tell()
            self._tell()
            return
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False, transient=False) as live:
            while not self._stop.wait(0.5):
                live.update(self._screen(), refresh=True)
            live.update(self._screen(), refresh=True)

    def _read(self) -> Found:
        try:
            found: Found = json.loads((self._folder / SNAPSHOT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    # A pipe

    def _tell(self) -> None:
        found = self._read()
        if not found:
            return
        for trial in found["trials"]:
            before, state = self._told.get(trial["number"]), _state(trial)
            if before == state:
                continue
            self._told[trial["number"]] = state
            if before is None and _is_over(trial):
                self._say(f"Trial {trial['number']} begins: {_settings(trial)}")
            self._say(_event(trial, found))
            if _is_over(trial):
                self._say(f"  {counts_line(found)}{self._left(found)}. {best_line(found)}")
        if time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            for trial in found["trials"]:
                if trial["state"] == "running":
                    self._say(f"Trial {trial['number']}: {step_line(self._folder, trial)}")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self, found: Found) -> str:
        left = remaining(found, self._workers)
        return f", about {duration(left)} left" if left else ""

    # A terminal

    def _screen(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        found = self._read()
        if not found:
            return Text("Looking for the first settings to try …")
        lines: list[Any] = [
            Text.assemble((found["name"], "bold"), f"  {counts_line(found)}{self._left(found)}"),
            Text(best_line(found), style="green"),
        ]
        return Group(*lines, _table(self._folder, found), *(Text(text, style="red") for text in _errors(found)))


def counts_line(found: Found) -> str:
    """How many trials are in which state, of how many.

    Args:
        found: What ``sweep.json`` holds.
    """
    states = [trial["state"] for trial in found["trials"]]
    over = sum(state != "running" for state in states)
    total = found.get("expected_trials")
    parts = [f"{over} of {total} trials done" if total else f"{over} trials done"]
    parts += [f"{states.count(state)} {state}" for state in ("running", "pruned", "failed") if state in states]
    return ", ".join(parts)


def best_line(found: Found) -> str:
    """The best trial so far, or the trials that no other beats.

    Args:
        found: What ``sweep.json`` holds.
    """
    best = [trial for trial in found["trials"] if trial["number"] in found["best"]]
    if not best:
        return "No trial is complete yet"
    if len(found["objective"]) > 1:
        return f"No other beats trials {', '.join(str(trial['number']) for trial in best)} in all objectives"
    value = value_shown(best[0], found["objective"][0]["metric"])
    return f"Best so far: trial {best[0]['number']}, {_settings(best[0])}: {value}"


def remaining(found: Found, workers: int) -> float | None:
    """Seconds until the last trial, where their number is known and one is over: from the mean of those.

    Args:
        found: What ``sweep.json`` holds.
        workers: Trials at a time.
    """
    total = found.get("expected_trials")
    took = [trial["elapsed"] for trial in found["trials"] if trial.get("elapsed") and trial["state"] != "failed"]
    if total is None or not took:
        return None
    over = sum(_is_over(trial) for trial in found["trials"])
    # Others may have joined in.
    at_a_time = max(workers, len(found["trials"]) - over)
    return max(0, total - over) * sum(took) / len(took) / at_a_time


def value_shown(trial: Mapping[str, Any], name: str) -> str:
    """A trial's value of an objective with its first error, in the metric's unit.

    Args:
        trial: As in ``sweep.json``.
        name: The metric, or ``<task>.<metric>``.
    """
    entry, metric = trial["metrics"].get(name), METRICS.get(name.rpartition(".")[2])
    if entry is None or metric is None:
        return str(trial["values"].get(name, "–"))
    shown = show(Estimate.from_json(entry), metric)
    error = f" ± {shown.errors[0].text} over {shown.errors[0].over}" if shown.errors else ""
    return f"{name} {shown.text}{error}"


def step_line(folder: Path, trial: Mapping[str, Any]) -> str:
    """Where a trial that runs is: stage, step and loss.

    Args:
        folder: The sweep's folder.
        trial: As in ``sweep.json``.
    """
    files = [
        path for name in ("seed-*/progress.json", "seed-*/*/progress.json") for path in _home(folder, trial).glob(name)
    ]
    if not files:
        return "starting"
    newest = max(files, key=lambda path: path.stat().st_mtime)
    try:
        at = json.loads(newest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "starting"
    loss = _last_loss(newest.with_name("metrics.jsonl"))
    done = "evaluation" if at["stage"] != "warm start" and at["step"] >= at["steps"] else at["stage"]
    seed = newest.relative_to(_home(folder, trial)).parts[0]
    where = f"{seed}, {done}"
    return where if done == "evaluation" else f"{where} {at['step']}/{at['steps']}" + loss


def _state(trial: Mapping[str, Any]) -> tuple[str, int]:
    """Where a trial is, and how often it was taken up."""
    return str(trial["state"]), int(trial["resumed"])


def _is_over(trial: Mapping[str, Any]) -> bool:
    return bool(trial["state"] != "running")


def _home(folder: Path, trial: Mapping[str, Any]) -> Path:
    return folder / str(trial["folder"])


def _last_loss(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            handle.seek(max(0, file.stat().st_size - 4096))
            lines = handle.read().split(b"\n")
        # A line is whole where another begins after it.
        entry = json.loads(lines[-2])
        return f", loss {entry['loss']:.4g}"
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return ""


def _settings(trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_short(value)}" for key, value in trial["params"].items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return " ".join(str(entry) for entry in value.values())
    return str(value)


def _event(trial: Mapping[str, Any], found: Found) -> str:
    name, state = f"Trial {trial['number']}", trial["state"]
    if state == "running":
        return f"{name} {'goes on' if trial['resumed'] else 'begins'}: {_settings(trial)}"
    took = f", {duration(trial['elapsed'])}" if trial.get("elapsed") else ""
    if state == "complete":
        values = ", ".join(value_shown(trial, goal["metric"]) for goal in found["objective"])
        return f"{name} done: {values}{took}"
    if state == "pruned":
        return f"{name} given up at step {trial['steps']}{took}"
    return f"{name} failed: {str(trial['error']).splitlines()[0]}; all of it in {trial['folder']}/error.txt"


def _table(folder: Path, found: Found) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    keys, goals = list(found["space"]), [goal["metric"] for goal in found["objective"]]
    for head in ("trial", "state", *(key.rpartition(".")[2] for key in keys), *goals, "time"):
        table.add_column(head, justify="left" if head == "state" else "right")
    rows = sorted(found["trials"], key=_importance(found))[:_MOST_ROWS]
    for trial in sorted(rows, key=lambda trial: int(trial["number"])):
        state = trial["state"]
        shown = step_line(folder, trial) if state == "running" else _WORDS.get(state, state)
        best = " ★" if trial["number"] in found["best"] else ""
        values = (value_shown(trial, name).removeprefix(f"{name} ").partition(" over ")[0] for name in goals)
        cells = (_short(trial["params"][key]) if key in trial["params"] else "–" for key in keys)
        took = duration(trial["elapsed"]) if trial.get("elapsed") else "–"
        table.add_row(f"{trial['number']}{best}", shown, *cells, *values, took, style=_COLOURS[state])
    if len(rows) < len(found["trials"]):
        table.caption = f"{len(found['trials']) - len(rows)} earlier trials are not shown"
    return table


def _importance(found: Found) -> Callable[[Mapping[str, Any]], tuple[int, int]]:
    """What has to be on the screen first: what runs, what is best, what is new."""

    def place(trial: Mapping[str, Any]) -> tuple[int, int]:
        first = 0 if trial["state"] == "running" else 1 if trial["number"] in found["best"] else 2
        return first, -int(trial["number"])

    return place


def _errors(found: Found) -> Sequence[str]:
    """The last failure, one line."""
    failed = [trial for trial in found["trials"] if trial["error"]]
    if not failed:
        return ()
    return (f"Trial {failed[-1]['number']} failed: {str(failed[-1]['error']).splitlines()[0]}",)
