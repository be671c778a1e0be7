"""``amidkd sweep``: checks first, then trials in this process or several, then what they say."""

import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import yaml

from amidkd.config import RunConfig, WarmupPolicy, dump_yaml, final_config, load
from amidkd.errors import SettingError
from amidkd.record import RunFolder, write_atomic
from amidkd.sweep.goals import goals_of
from amidkd.sweep.progress import Progress, counts_line
from amidkd.sweep.sharing import read_shared, share
from amidkd.sweep.snapshot import write_snapshot
from amidkd.sweep.space import check_space
from amidkd.sweep.storage import require_optuna
from amidkd.sweep.study import SweepStudy
from amidkd.sweep.trial import Shared
from amidkd.sweep.work import tidy, work
from amidkd.sweep.workers import SESSION, end_with_parent, run_workers

__all__ = ["run_sweep"]

_LOG = "sweep.log"
_log = logging.getLogger("amidkd")


def run_sweep(config: RunConfig) -> int:
    """Try the settings of ``sweep.space`` and write what came out; the same call goes on after a kill.

    Args:
        config: The sweep's run file; ``output.folder`` is the sweep's folder.

    Returns:
        0 where trials are complete; 1 where none is, or the same failure came ``sweep.same_failures`` times; 130
        after an interrupt.

    Raises:
        SettingError: Whatever cannot be used, before work starts.
    """
    if config.sweep is None:
        raise SettingError(
            "the run file has no `sweep` section, which says what to try; the shortest is sweep: {space: alpha, "
            "sampler: grid}, or on the command line 'sweep={space: alpha, sampler: grid}'"
        )
    require_optuna()
    if config.sweep.ray is not None:
        from amidkd.sweep.ray import require_ray

        require_ray(config.sweep.ray)
    session = os.environ.get(SESSION)
    if session is not None:
        return _as_worker(config, float(session))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("amidkd sweep starts its own processes: set sweep.workers, and do not use a launcher")
    folder, tree = Path(config.output.folder), yaml.safe_load(dump_yaml(config))
    _check_folder(folder)
    check_space(config, tree, config.sweep.space)
    goals = goals_of(config)
    _check_pruner(config)
    study = SweepStudy(config, goals, time.time())
    write_atomic(RunFolder(folder).run_file, dump_yaml(config))
    try:
        if study.look():
            _try_all(study, tree, share(config))
    except KeyboardInterrupt:
        found = write_snapshot(study)
        _say(f"Interrupted: {counts_line(found)}. To go on: amidkd sweep {_shown(folder)}")
        return 130
    return _finish(study)


def _as_worker(config: RunConfig, session: float) -> int:
    """A process of a sweep that another one shows: everything was checked."""
    end_with_parent()
    folder = Path(config.output.folder)
    study = SweepStudy(config, goals_of(config), session)
    work(study, yaml.safe_load(dump_yaml(config)), read_shared(folder))
    return 0


def _try_all(study: SweepStudy, tree: Mapping[str, Any], shared: Shared) -> None:
    sweep, folder = study.sweep, study.folder
    found = write_snapshot(study)
    number = "trials" if found["expected_trials"] is None else f"{found['expected_trials']} trials"
    _say(f"{study.optuna.study_name}: {number}, {sweep.sampler.kind}, over {', '.join(sweep.space)}")
    where = _shown(folder)
    log = _LOG if sweep.workers == 1 or sweep.ray is not None else "worker-*.log"
    _say(f"What they say goes to {where}/{log}. Stop at any time; amidkd sweep {where} goes on.")
    if sweep.ray is not None:
        from amidkd.sweep.ray import work_on_ray

        with Progress(folder, sweep.workers), _into_log(folder):
            work_on_ray(study, tree, shared)
    elif sweep.workers > 1:
        with Progress(folder, sweep.workers):
            run_workers(folder, sweep.workers, study.session)
    else:
        # In this order: the table goes to the screen, and what trials say to the log.
        with Progress(folder, 1), _into_log(folder):
            work(study, tree, shared)


@contextmanager
def _into_log(folder: Path) -> Iterator[None]:
    """What trials say while they train, to ``sweep.log``."""
    with (folder / _LOG).open("a", encoding="utf-8", buffering=1) as file, redirect_stderr(file):
        yield


def _finish(study: SweepStudy) -> int:
    from amidkd.report.words import verb_of
    from amidkd.sweep.results import write_results

    study.look()
    found = write_snapshot(study)
    tidy(study, found)
    _say(f"{counts_line(found)}. Stopped: {(study.stopped or 'trials are left').rstrip('.')}.")
    if not found["best"]:
        _say(f"No trial is complete, so there is nothing to compare. What the trials said: {study.folder / _LOG}")
        return 1
    results = write_results(study.config, read_shared(study.folder))
    _say(results.sentence)
    _say(f"Report: {results.page}")
    for path in results.best:
        _say(
            f"Best:   amidkd {verb_of(load(path))} {_shown(path)}    trains with these settings in a folder of its own"
        )
    for trial in (trial for trial in found["trials"] if trial["number"] in found["best"]):
        for run in trial["runs"]:
            student = RunFolder(study.folder / run["folder"]).student
            if student.is_dir():
                _say(f"        {_shown(student)}    is the student of trial {trial['number']}, seed {run['seed']}")
    return 1 if study.failed_alike else 0


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"output.folder: {folder} is a file; name a folder")
    if (folder / "record.json").is_file():
        raise SettingError(f"output.folder: {folder} holds a run; name another folder for the sweep")


def _check_pruner(config: RunConfig) -> None:
    assert config.sweep is not None
    if config.sweep.pruner.kind == "none":
        return
    final = final_config(config)
    if final.data.validation is None and final.data.validation_rows is None:
        raise SettingError(
            f"sweep.pruner: {config.sweep.pruner.kind} watches the validation loss; name rows in data.validation, or "
            "hold some out with data.validation_rows"
        )
    if isinstance(final.policy, WarmupPolicy) and final.policy.loss == "dpo":
        raise SettingError("sweep.pruner: policy.loss: dpo trains without validation; use sweep.pruner: none")


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _shown(path: Path) -> str:
    try:
        return shlex.quote(str(path.relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(path))
