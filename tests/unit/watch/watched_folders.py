"""Run folders in any state, written as a run writes them."""

import math
import os
import platform
from pathlib import Path
from typing import Any

from amidkd.config import dump_yaml, parse
from amidkd.record import RunFolder, append_json_line, now, this_process, write_atomic, write_json

GONE = {"host": platform.node(), "pid": 2**22 + 1, "created": 1.0}
"""A process that cannot be: its number is beyond the largest."""

ELSEWHERE = {"host": "another-machine", "pid": 7, "created": 1.0}

TREE: dict[str, Any] = {
    "student": {"model": "./student"},
    "teacher": {"model": "./teacher"},
    "data": {"train": "train.jsonl"},
    "objective": {"alpha": -0.5, "lam": 0.1},
    "training": {"max_steps": 40},
}


def log_line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 2 * math.exp(-step / 20),
        "kl_teacher_student": 0.5,
        "tokens_per_second": 1234.0,
        "peak_memory_mb": 321.0,
        "seconds": 0.5 * step,
        **more,
    }


def begin(path: Path, *, process: Any = None, **sections: Any) -> RunFolder:
    """A folder whose run has just begun."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    config = parse({**TREE, **sections, "output": str(path)})
    write_atomic(folder.run_file, dump_yaml(config))
    folder.update_record(
        verb="distill",
        started=now(),
        finished=None,
        process=this_process() if process is None else process,
        data={"labelled": 24},
        models={"student": {"parameters": 1000}, "teacher": {"parameters": 4000}},
    )
    return folder


def log(path: Path, steps: range, *, total: int = 40, **more: Any) -> None:
    """Log lines and the progress of a stage."""
    path.mkdir(exist_ok=True)
    folder = RunFolder(path)
    for step in steps:
        append_json_line(folder.metrics_file, log_line(step, **more))
    entry = {"stage": "distill", "first": 0, "since": now(), "updated": now(), "step": steps[-1], "steps": total}
    write_json(folder.progress_file, entry)


def finish(folder: RunFolder, **results: Any) -> None:
    stage = {"steps": 40, "tokens": 4000, "seconds": 20.0, "tokens_per_second": 200.0, "peak_memory_mb": 321.0}
    folder.update_record(stages={"distill": stage}, finished=now(), results=results)


def age(path: Path, seconds: float) -> None:
    """Make all files of a folder older."""
    for file in path.rglob("*"):
        status = file.stat()
        os.utime(file, (status.st_atime - seconds, status.st_mtime - seconds))


def write_sweep(path: Path, trials: list[dict[str, Any]], **more: Any) -> None:
    """The ``sweep.json`` of a sweep over α."""
    entry = {
        "name": path.name,
        "space": {"objective.alpha": {"choices": [-3.0, -1.0, 1.0]}},
        "objective": [{"metric": "nll", "direction": "minimize"}],
        "sampler": {"kind": "grid"},
        "pruner": {"kind": "none"},
        "seeds": [42],
        "expected_trials": 3,
        "trials": trials,
        "best": [],
        "stopped": None,
        "started": now(),
        "updated": now(),
    }
    write_json(path / "sweep.json", {**entry, **more})


def trial(number: int, state: str, alpha: float, **more: Any) -> dict[str, Any]:
    return {
        "number": number,
        "state": state,
        "params": {"objective.alpha": alpha},
        "folder": f"trials/{number:04d}",
        "values": {},
        "metrics": {},
        "seconds": 0.0,
        "tokens": 0,
        "steps": 0,
        "error": None,
        "runs": [],
        **more,
    }
