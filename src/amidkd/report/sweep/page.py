"""The page of a sweep, made from its ``sweep.json`` and the records of its runs."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amidkd.citations import citations_of
from amidkd.config import load
from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import METRICS
from amidkd.evaluation.statistics import Estimate
from amidkd.report.figures import Figure
from amidkd.report.page import render
from amidkd.report.sweep.figures import curve_figure, front_figure, importance_figure
from amidkd.report.sweep.importance import Importance, importance_of
from amidkd.report.sweep.maps import map_figure, scatter_figure
from amidkd.report.sweep.noise import Standing, standing, verdicts
from amidkd.report.sweep.record import (
    SWEEP_FILE,
    Objective,
    Sweep,
    is_number,
    key_text,
    metric_called,
    read_sweep,
)
from amidkd.report.sweep.table import failures_of, trial_table
from amidkd.report.sweep.words import advice_of, effort_of, noise_notes, params_text, sentence_of_sweep
from amidkd.report.words import verb_of

__all__ = [
    "describe_sweep",
    "is_sweep",
    "maps_of",
    "summary_of_sweep",
    "sweep_of_run",
    "write_sweep_report",
]

_MAIN = (
    "nll",
    "kl_teacher_student",
    "kl_student_teacher",
    "teacher_nll_of_samples",
    "coverage",
    "exact_match_greedy",
    "exact_match_sampled",
    "phoneme_error_rate_greedy",
    "rouge_l_sampled",
    "numeric_match_greedy",
    "acceptance",
    "ece",
)
_PRECISION, _COVERAGE = "teacher_nll_of_samples", ("coverage", "nll")
_MOST_ROWS, _MOST_COLOURS, _MOST_TOLD = 12, 6, 120


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep.

    Args:
        folder: Any folder.
    """
    return (folder / SWEEP_FILE).is_file()


def write_sweep_report(folder: Path) -> Path:
    """Write ``report.html`` of a sweep: what was tried, what to use, and what the noise leaves open.

    Args:
        folder: The sweep's folder, with its ``sweep.json``.

    Returns:
        Path of the page.

    Raises:
        SettingError: The folder is not that of a sweep.
    """
    sweep = read_sweep(folder)
    standings = _standings(sweep)
    importances = [importance_of(sweep, objective) for objective in sweep.objectives]
    config = load(folder) if (folder / "run.yaml").is_file() else None
    names, (moving, still) = _measured(sweep), _moving(sweep)
    main = [name for name in moving if name in _main(sweep)]
    return render(
        folder / "report.html",
        "sweep.html.j2",
        title=sweep.name,
        sentence=sentence_of_sweep(sweep, standings),
        folder=shlex.quote(os.path.relpath(folder)),
        use=_best_files(sweep, "distill" if config is None else verb_of(config)),
        notes=noise_notes(sweep, standings),
        maps=maps_of(sweep, standings),
        curves=_curves(sweep, main, "curve"),
        more_curves=_curves(sweep, [name for name in moving if name not in main], "more"),
        still=still,
        curve_key=next((f"{key_text(key)} ({key})" for key in _numeric(sweep)[:1]), None),
        fronts=_fronts(sweep),
        importances=[_importance_view(each, place) for place, each in enumerate(importances)],
        trials=trial_table(sweep, standings, _objectives(sweep)),
        everything=trial_table(sweep, (), names),
        failures=failures_of(sweep),
        effort=effort_of(sweep),
        metrics=[metric_called(name) for name in main],
        configuration=(folder / "run.yaml").read_text(encoding="utf-8") if config is not None else None,
        citations=citations_of(config) if config is not None else [],
    )


def describe_sweep(folder: Path) -> str:
    """What a sweep tried and what to use, in a few sentences.

    Args:
        folder: The sweep's folder.

    Raises:
        SettingError: The folder is not that of a sweep.
    """
    sweep = read_sweep(folder)
    return sentence_of_sweep(sweep, _standings(sweep))


def summary_of_sweep(folder: Path) -> dict[str, Any]:
    """What the page says, as plain data: for other formats.

    Args:
        folder: The sweep's folder.

    Returns:
        ``name``, ``sentence``, ``objectives`` (each with its best trial, and the others' difference, margin and
        verdict), ``importances`` and ``notes``.

    Raises:
        SettingError: The folder is not that of a sweep.
    """
    sweep = read_sweep(folder)
    standings = _standings(sweep)
    return {
        "name": sweep.name,
        "sentence": sentence_of_sweep(sweep, standings),
        "objectives": [_standing_json(each) for each in standings],
        "importances": [
            {"metric": each.metric, "shares": each.shares, "notes": list(each.notes)}
            for each in (importance_of(sweep, objective) for objective in sweep.objectives)
        ],
        "notes": noise_notes(sweep, standings),
    }


def sweep_of_run(folder: Path) -> tuple[str, list[Figure]] | None:
    """Where a run stands in the sweep that it belongs to.

    Args:
        folder: A run's folder; that of a trial is ``SWEEP/trials/NNNN/seed-S``.

    Returns:
        What the sweep found, in a sentence, and its maps with this run marked; None for a run of no sweep.
    """
    path = folder.resolve()
    trial, place = path.parent, path.parent.parent
    if place.name != "trials" or not trial.name.isdigit() or not is_sweep(place.parent):
        return None
    sweep = read_sweep(place.parent)
    standings = _standings(sweep)
    number = int(trial.name)
    text = f"This run is trial {number} of the sweep {sweep.name}. {advice_of(sweep, standings)}"
    return text, maps_of(sweep, standings, mark=number)


def maps_of(sweep: Sweep, standings: Sequence[Standing], mark: int | None = None) -> list[Figure]:
    """A map of the first numeric key (α, where it was varied) against each other key, for each objective.

    Args:
        sweep: The sweep.
        standings: The trials beside the best one, by objective.
        mark: A trial that the page is about.
    """
    keys = [key for key in sweep.varied() if len(sweep.values_of(key)) > 1]
    across = next((key for key in keys if key in _numeric(sweep)), keys[0] if keys else None)
    figures: list[Figure] = []
    for place, objective in enumerate(sweep.objectives if sweep.complete() else ()):
        alike = next((each.alike() for each in standings if each.objective == objective), [])
        for other in keys:
            if across is None or other == across:
                continue
            name = f"map-{place}-{len(figures)}"
            if all(_few(sweep, key) for key in (across, other)):
                figures.append(map_figure(name, sweep, across, other, objective, alike=alike, mark=mark))
            elif all(key in _numeric(sweep) for key in (across, other)):
                figures.append(scatter_figure(name, sweep, across, other, objective, mark=mark))
    return figures


def _few(sweep: Sweep, key: str) -> bool:
    """Whether a key has so few values that they are the columns of a map."""
    listed = "choices" in sweep.space[key] or bool(sweep.space[key].get("step"))
    return listed and len(sweep.values_of(key)) <= _MOST_ROWS


def _numeric(sweep: Sweep) -> list[str]:
    return [
        key
        for key in sweep.varied()
        if len(values := sweep.values_of(key, sweep.complete())) > 1 and all(map(is_number, values))
    ]


def _standings(sweep: Sweep) -> list[Standing]:
    found = (standing(sweep, objective) for objective in sweep.objectives)
    return [each for each in found if each is not None]


def _objectives(sweep: Sweep) -> list[str]:
    return [objective.metric for objective in sweep.objectives]


def _main(sweep: Sweep) -> list[str]:
    return [*_objectives(sweep), *(name for name in _MAIN if name not in _objectives(sweep))]


def _measured(sweep: Sweep) -> list[str]:
    """Every metric that a complete trial has: objectives first, then as the table of metrics, then the suite's."""
    found = {name for trial in sweep.complete() for name in trial.metrics} | set(
        _objectives(sweep) if sweep.complete() else ()
    )
    order = [*_main(sweep), *METRICS]
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def _moving(sweep: Sweep) -> tuple[list[str], str]:
    """The metrics in which trials differ; and those in which they do not, in a sentence."""
    moving, still = [], []
    for name in _measured(sweep):
        found = [each for trial in sweep.complete() if (each := trial.estimate(name)) is not None]
        values = {each.value for each in found}
        if len(values) > 1 or (found and len(found) < 2):
            moving.append(name)
        elif found:
            metric = metric_called(name)
            still.append(f"{metric.label} ({show(Estimate(found[0].value), metric).text})")
    return moving, f"The same in every trial: {', '.join(still)}." if still else ""


def _curves(sweep: Sweep, names: Sequence[str], prefix: str) -> list[Figure]:
    keys = _numeric(sweep)
    if not keys:
        return []
    others = [
        key
        for key in sweep.varied()
        if key != keys[0] and 2 <= len(sweep.values_of(key, sweep.complete())) <= _MOST_COLOURS
    ]
    colour = others[0] if others else None
    # Each point that answers to the pointer takes time and room.
    told_apart = prefix == "curve" and len(sweep.complete()) <= _MOST_TOLD
    return [
        curve_figure(f"{prefix}-{place}", sweep, keys[0], name, colour, told_apart=told_apart)
        for place, name in enumerate(names)
    ]


def _fronts(sweep: Sweep) -> list[Figure]:
    done = sweep.complete()
    has = {name for trial in done for name in trial.metrics}
    pairs = [(_PRECISION, name, "Coverage against precision") for name in _COVERAGE if {name, _PRECISION} <= has][:1]
    names = _objectives(sweep)
    if len(names) > 1 and set(names[:2]) not in [set(pair[:2]) for pair in pairs]:
        pairs.append((names[0], names[1], "The first two objectives"))
    figures = (front_figure(f"front-{place}", sweep, *pair) for place, pair in enumerate(pairs))
    return [figure for figure in figures if figure is not None]


def _importance_view(found: Importance, place: int) -> dict[str, Any]:
    picture = importance_figure(f"importance-{place}", found.shares, found.metric) if found.shares else None
    return {"figure": picture, "notes": found.notes}


def _best_files(sweep: Sweep, verb: str) -> list[dict[str, str]]:
    """The run files that the sweep wrote of its best trials, with what they set."""
    names = {number: f"best-{number}.yaml" for number in sweep.best} if len(sweep.objectives) > 1 else {}
    names = names or dict.fromkeys(sweep.best[:1], "best.yaml")
    there = {number: sweep.folder / name for number, name in names.items() if (sweep.folder / name).is_file()}
    return [
        {
            "command": f"amidkd {verb} {shlex.quote(os.path.relpath(path))}",
            "params": params_text(sweep, sweep.trial(number)),
        }
        for number, path in there.items()
    ]


def _standing_json(found: Standing) -> dict[str, Any]:
    objective: Objective = found.objective
    return {
        "metric": objective.metric,
        "direction": objective.direction,
        "best": found.best.number,
        "noise": {"over": found.over, "paired": found.paired, "units": found.units},
        "trials": [
            {
                "number": each.number,
                "difference": each.difference.to_json(),
                "margin": each.margin,
                "verdict": verdicts(found)[each.number],
            }
            for each in found.comparisons
        ],
    }
