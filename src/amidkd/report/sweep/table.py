"""The table of a sweep's trials, and the list of those that failed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from amidkd.evaluation.display import Shown, show
from amidkd.evaluation.statistics import Estimate
from amidkd.report.sweep.noise import Standing, verdicts
from amidkd.report.sweep.record import Sweep, Trial, is_number, key_text, metric_called, value_text
from amidkd.report.sweep.words import params_text
from amidkd.report.words import count, duration

__all__ = ["failures_of", "trial_table"]


def trial_table(sweep: Sweep, standings: Sequence[Standing], names: Sequence[str]) -> dict[str, Any]:
    """The trials with their settings and what they reached.

    Args:
        sweep: The sweep.
        standings: For the first names, the trials beside the best one.
        names: Metrics, a column each.

    Returns:
        ``heads`` (title, whether it is of numbers) and ``rows``.
    """
    keys, judged = sweep.varied(), [verdicts(each) for each in standings]
    heads = [("trial", True), ("state", False), *((key_text(key), True) for key in keys)]
    for place, name in enumerate(names):
        heads.append((metric_called(name).label, True))
        if place < len(standings):
            heads.append(("beside the best", True))
    heads += [("time", True), ("tokens", True)]
    rows = [_trial_row(sweep, trial, names, standings, judged) for trial in sweep.trials]
    return {"heads": heads, "rows": rows}


def _trial_row(
    sweep: Sweep,
    trial: Trial,
    names: Sequence[str],
    standings: Sequence[Standing],
    judged: Sequence[Mapping[int, str]],
) -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for key in sweep.varied():
        value = trial.params.get(key)
        cells.append(_cell(value_text(value) if key in trial.params else "–", value if is_number(value) else None))
    for place, name in enumerate(names):
        estimate, metric = trial.estimate(name), metric_called(name)
        cells.append(_measure(None if estimate is None else show(estimate, metric), estimate))
        if place < len(standings):
            beside = standings[place].of(trial.number)
            words = judged[place].get(trial.number, "–")
            shown = show(beside.difference, metric, sign=True).text if beside is not None else words
            detail = [words] if beside is not None else []
            cells.append({"text": shown, "value": beside.difference.value if beside else "", "errors": detail})
    cells.append(_cell(duration(trial.seconds) if trial.seconds else "–", trial.seconds or None))
    cells.append(_cell(count(trial.tokens) if trial.tokens else "–", trial.tokens or None))
    pages = [(seed, os.path.relpath(path / "report.html", sweep.folder)) for seed, path in trial.runs.items()]
    links = [(seed, page) for seed, page in pages if (sweep.folder / page).is_file()]
    return {
        "number": trial.number,
        "state": trial.state,
        "best": trial.number in sweep.best,
        "cells": cells,
        "links": links,
    }


def _cell(text: str, value: float | None = None) -> dict[str, Any]:
    return {"text": text, "value": text if value is None else value, "errors": []}


def _measure(shown: Shown | None, estimate: Estimate | None) -> dict[str, Any]:
    if shown is None or estimate is None:
        return _cell("–")
    errors = [f"± {error.text} {error.over}" for error in shown.errors]
    return {"text": shown.text, "value": estimate.value, "errors": errors}


def failures_of(sweep: Sweep) -> list[dict[str, Any]]:
    """Failed trials by their error, the commonest first.

    Args:
        sweep: The sweep.
    """
    found: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        if trial.state == "failed":
            found.setdefault(trial.error or "no error was recorded", []).append(trial)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [
        {
            "error": error,
            "trials": [
                {
                    "number": trial.number,
                    "params": params_text(sweep, trial),
                    "file": os.path.relpath(trial.folder / "error.txt", sweep.folder),
                }
                for trial in trials
            ],
        }
        for error, trials in ordered
    ]
