"""What a sweep leaves at its end: the best run file, ready to be used, and the page."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from amidkd.config import RunConfig, dump_yaml, parse
from amidkd.record import RunFolder, write_atomic
from amidkd.report.sweep import describe_sweep, write_sweep_report
from amidkd.report.sweep.record import Sweep, Trial, read_sweep
from amidkd.report.words import verb_of
from amidkd.sweep.trial import Shared, trial_tree
from amidkd.training.sharing import link

__all__ = ["Results", "write_best", "write_results"]


@dataclass(frozen=True)
class Results:
    """What the end of a sweep has written and found.

    Args:
        best: Run files of the best trial, or of the Pareto front; empty where no trial is complete.
        page: The report.
        sentence: What was tried and what to use.
    """

    best: tuple[Path, ...]
    page: Path
    sentence: str


def write_results(config: RunConfig, shared: Shared | None = None) -> Results:
    """Write the best run files and the page from ``sweep.json``.

    Args:
        config: The sweep's run file.
        shared: What the trials had in common.

    Raises:
        SettingError: There is no ``sweep.json`` in the sweep's folder.
    """
    folder = Path(config.output.folder)
    best = write_best(config, shared)
    return Results(tuple(best), write_sweep_report(folder), describe_sweep(folder))


def write_best(config: RunConfig, shared: Shared | None = None) -> list[Path]:
    """Write a run file for the best trial, ``best.yaml``, or for each of the Pareto front, ``best-<number>.yaml``.

    It is resolved, without ``sweep``, and has an output folder of its own in the sweep's. Files of an earlier best that
    is none any more are removed.

    Args:
        config: The sweep's run file.
        shared: What the trials had in common; the text and the cache that were made for them serve the best run too.

    Returns:
        The files.
    """
    folder = Path(config.output.folder)
    sweep = read_sweep(folder)
    several = len(sweep.objectives) > 1
    written = []
    for number in sweep.best if several else sweep.best[:1]:
        path = folder / (f"best-{number}.yaml" if several else "best.yaml")
        trial = sweep.trial(number)
        best = _best_config(config, trial, path, shared)
        write_atomic(path, _heading(sweep, trial, f"amidkd {verb_of(best)} {path.name}") + dump_yaml(best))
        written.append(path)
        own = RunFolder(Path(best.output.folder)).generated
        if shared is not None and shared.text is not None and not own.exists():
            link(own, shared.text)
    for path in folder.glob("best*.yaml"):
        if path not in written and re.fullmatch(r"best(-\d+)?\.yaml", path.name):
            path.unlink(missing_ok=True)
    return written


def _best_config(config: RunConfig, trial: Trial, path: Path, shared: Shared | None) -> RunConfig:
    assert config.sweep is not None
    tree: dict[str, Any] = trial_tree(yaml.safe_load(dump_yaml(config)), trial.params)
    tree["output"] = {**tree["output"], "folder": str(path.with_suffix(""))}
    tree["training"] = {**tree["training"], "seed": config.sweep.seeds[0]}
    if shared is not None and shared.cache is not None:
        tree["teacher"] = {**tree["teacher"], "folder": str(shared.cache)}
    return parse(tree, where=f"{path.name} of trial {trial.number}")


def _heading(sweep: Sweep, trial: Trial, command: str) -> str:
    """Comments: which trial it was, what it reached, and what else was as good."""
    settings = ", ".join(f"{key} = {value}" for key, value in trial.params.items())
    lines = [f"Trial {trial.number} of the sweep {sweep.name}: {settings}."]
    for objective in sweep.objectives:
        found = trial.estimate(objective.metric)
        if found is None:
            continue
        errors = "".join(f" ± {error.value:.3g} over {error.n} {error.over}" for error in found.errors)
        lines.append(f"{objective.metric}: {found.value:.6g}{errors}; {objective.direction}d.")
    lines.append(describe_sweep(sweep.folder))
    lines.append(f"Train with it: {command}. The trial's own runs are in trials/{trial.folder.name}.")
    # A value may have line breaks, as prompt templates do.
    return "".join(f"# {line}\n" for line in (r"\n".join(line.splitlines()) for line in lines))
