"""``sweep.json``: all that a sweep has found so far, for reports and for whoever watches."""

import itertools
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amidkd.record import now, write_json
from amidkd.sweep.goals import Goal
from amidkd.sweep.space import combinations, is_finite
from amidkd.sweep.storage import study_name
from amidkd.sweep.study import SweepStudy, trial_folder
from amidkd.sweep.trial import seed_folder

__all__ = ["SNAPSHOT", "best_of", "expected_trials", "write_snapshot"]

SNAPSHOT = "sweep.json"
_MOST_COUNTED = 10_000
"""Combinations beyond which their number is not counted: it is counted anew at every trial."""
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


def write_snapshot(study: SweepStudy) -> dict[str, Any]:
    """Write ``sweep.json`` of the sweep's folder from the storage.

    Args:
        study: The sweep.

    Returns:
        What was written.
    """
    with study.alone():
        trials = [_trial(study, trial) for trial in study.trials() if trial.state.name in _STATES]
        sweep = study.sweep
        tree = sweep.model_dump(mode="json")
        began = min((trial.datetime_start for trial in study.trials() if trial.datetime_start), default=None)
        found = {
            "name": study_name(study.config),
            "space": {key: _entry(entry) for key, entry in tree["space"].items()},
            "objective": [{"metric": goal.metric, "direction": goal.direction} for goal in study.goals],
            "sampler": tree["sampler"],
            "pruner": tree["pruner"],
            "seeds": tree["seeds"],
            "budget": {name: tree[name] for name in ("trials", "hours", "tokens")},
            "expected_trials": expected_trials(study),
            "hours": study.hours(),
            "trials": trials,
            "best": best_of(trials, study.goals),
            # Another process may still be at it.
            "stopped": None if any(trial["state"] == "running" for trial in trials) else study.stopped,
            "started": now() if began is None else began.astimezone(UTC).isoformat(timespec="seconds"),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(study.folder / SNAPSHOT, found)
    return found


def expected_trials(study: SweepStudy) -> int | None:
    """How many trials there will be, where that is known.

    Args:
        study: The sweep.
    """
    space: Any = study.sweep.space
    most = study.sweep.trials or _MOST_COUNTED
    if not is_finite(space):
        return study.sweep.trials
    combined = sum(1 for _ in itertools.islice(combinations(space), most))
    return combined if combined < most else study.sweep.trials


def best_of(trials: Sequence[Mapping[str, Any]], goals: Sequence[Goal]) -> list[int]:
    """The best trial's number; with several objectives those that no other trial beats in all of them.

    Args:
        trials: As in ``sweep.json``.
        goals: The objectives.
    """
    losses = {
        trial["number"]: tuple(
            trial["values"][goal.metric] * (1 if goal.direction == "minimize" else -1) for goal in goals
        )
        for trial in trials
        if trial["state"] == "complete"
    }
    if len(goals) == 1:
        return [min(losses, key=lambda number: (losses[number], number))] if losses else []
    return [number for number, mine in losses.items() if not any(_beats(other, mine) for other in losses.values())]


def _beats(other: Sequence[float], mine: Sequence[float]) -> bool:
    return other != mine and all(a <= b for a, b in zip(other, mine, strict=True))


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "when" or value is not None}


def _trial(study: SweepStudy, trial: Any) -> dict[str, Any]:
    from amidkd.sweep.sampler import decoded_params

    attributes = trial.user_attrs
    result, error = attributes.get("result", {}), attributes.get("error")
    folder = trial_folder(study.folder, trial.number)
    finished = trial.state.name == "COMPLETE"
    return {
        "number": trial.number,
        "state": _STATES[trial.state.name],
        "params": decoded_params(study.sweep.space, trial.params),
        "folder": folder.relative_to(study.folder).as_posix(),
        "values": {
            goal.metric: value for goal, value in zip(study.goals, trial.values or (), strict=False) if finished
        },
        "metrics": result.get("metrics", {}),
        "seconds": result.get("seconds", 0.0),
        "tokens": result.get("tokens", 0),
        "steps": result.get("steps", 0),
        "elapsed": attributes.get("elapsed"),
        "resumed": attributes.get("resumed", 0),
        # A process that was killed while it recorded a failure leaves the error in a trial that goes on.
        "error": None if error is None or trial.state.name != "FAIL" else _told(error),
        "runs": result.get("runs") or _runs(study, folder),
        "validation": _losses(study.goals, trial),
    }


def _told(error: Mapping[str, str]) -> str:
    where = f" ({error['where']})" if error["where"] else ""
    return f"{error['type']}: {error['message']}{where}"


def _runs(study: SweepStudy, folder: Path) -> list[dict[str, Any]]:
    """Runs of a trial that is not complete: those that began."""
    found = [(seed, seed_folder(folder, seed)) for seed in study.sweep.seeds]
    return [
        {"seed": seed, "folder": path.relative_to(study.folder).as_posix()} for seed, path in found if path.is_dir()
    ]


def _losses(goals: Sequence[Goal], trial: Any) -> list[list[float]]:
    """Steps and validation losses that the pruner was told."""
    sign = 1 if goals[0].direction == "minimize" else -1
    return [[step, sign * loss] for step, loss in sorted(trial.intermediate_values.items()) if math.isfinite(loss)]
