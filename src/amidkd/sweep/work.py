"""One process's part of a sweep: claim a trial, run it, record it, until there is none left."""

import errno
import gc
import logging
import shutil
import time
from collections.abc import Mapping
from typing import Any

from amidkd.record import RunFolder, read_json_lines
from amidkd.sweep.snapshot import write_snapshot
from amidkd.sweep.study import Claim, SweepStudy
from amidkd.sweep.trial import Pruned, Shared, run_trial, seed_folder

__all__ = ["run_claimed", "so_far", "tidy", "work"]

_log = logging.getLogger("amidkd")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def work(study: SweepStudy, tree: Mapping[str, Any], shared: Shared) -> None:
    """Run trials until there is none for this process.

    Args:
        study: The sweep.
        tree: Its run file, resolved.
        shared: What the trials have in common.

    Raises:
        KeyboardInterrupt: The trial that was under way can go on.
        OSError: The disk is full: no trial's fault.
    """
    while (claim := study.claim()) is not None:
        write_snapshot(study)
        run_claimed(study, claim, tree, shared)
        tidy(study, write_snapshot(study))
        _let_go()
    write_snapshot(study)


def run_claimed(study: SweepStudy, claim: Claim, tree: Mapping[str, Any], shared: Shared) -> None:
    """Run one trial and record what came of it.

    Args:
        study: The sweep.
        claim: The trial.
        tree: The sweep's run file, resolved.
        shared: What the trials have in common.

    Raises:
        KeyboardInterrupt: The trial can go on.
        OSError: The disk is full.
    """
    began = time.monotonic()
    shown = ", ".join(f"{key} = {value}" for key, value in claim.params.items())
    _log.info("Trial %d%s: %s", claim.number, " goes on" if claim.resumed else "", shown)

    def elapsed() -> float:
        return round(time.monotonic() - began, 3)

    def report(step: int, loss: float) -> bool:
        return study.report(claim, step, loss)

    pruned = study.sweep.pruner.kind != "none"
    try:
        result = run_trial(
            tree,
            claim.params,
            seeds=study.sweep.seeds,
            folder=claim.folder,
            shared=shared,
            report=report if pruned else None,
        )
    except KeyboardInterrupt:
        study.interrupted(claim)
        raise
    except Pruned as outcome:
        study.prune(claim, outcome, so_far(study, claim), elapsed=elapsed())
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            study.interrupted(claim)
            raise
        study.fail(claim, error, so_far(study, claim), elapsed=elapsed())
    else:
        study.complete(claim, result, elapsed=elapsed())


def so_far(study: SweepStudy, claim: Claim) -> dict[str, Any]:
    """What a trial took that did not come to its end, from the records and log lines of its runs.

    Args:
        study: The sweep.
        claim: The trial.
    """
    total = {"seconds": 0.0, "tokens": 0, "steps": 0}
    for seed in study.sweep.seeds:
        folder = RunFolder(seed_folder(claim.folder, seed))
        stages = [stage for stage in folder.record().get("stages", {}).values() if not stage.get("reused")]
        lines = read_json_lines(folder.metrics_file)
        done = folder.record().get("finished") is not None
        for entry in [*stages, *([] if done else lines[-1:])]:
            total["seconds"] += entry.get("seconds") or 0.0
            total["tokens"] += entry.get("tokens") or 0
            total["steps"] += entry.get("steps", entry.get("step", 0))
    return total


def tidy(study: SweepStudy, found: Mapping[str, Any]) -> None:
    """Remove checkpoints of trials that are over, and the students that ``sweep.keep_students`` does not keep.

    Args:
        study: The sweep.
        found: What ``sweep.json`` holds.
    """
    keep = study.sweep.keep_students
    for trial in found["trials"]:
        folder = study.folder / trial["folder"]
        if trial["state"] == "running" or not folder.is_dir():
            continue
        names = ["checkpoint-*"]
        best = keep == "best" and trial["number"] in found["best"]
        if keep != "all" and not best:
            names.append("student")
        for name in names:
            for path in [path for path in folder.rglob(name) if path.is_dir() and not path.is_symlink()]:
                shutil.rmtree(path, ignore_errors=True)


def _let_go() -> None:
    """Free a trial's models before the next one's are made."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
