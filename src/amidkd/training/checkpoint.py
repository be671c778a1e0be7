"""Checkpoints that are whole or not there, and what of ours goes into them beside the trainer's own files."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amidkd.data import Example
from amidkd.errors import SettingError
from amidkd.record import RunFolder, read_json_lines, write_json, write_json_lines

__all__ = [
    "STATE_FILE",
    "chosen_checkpoint",
    "clear_leftovers",
    "cut_metrics",
    "keep_newest",
    "load_tensors",
    "new_checkpoint",
    "read_state",
    "save_tensors",
    "step_of",
    "write_state",
]

STATE_FILE = "amidkd_state.json"
_EXAMPLE = "an example"


@contextmanager
def new_checkpoint(folder: Path, step: int, *, first: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """Give a temporary folder in which ``checkpoint-N`` is written; it moves to its place when all of it is on disk.

    Every rank must enter. After a failure the temporary folder is removed; after a kill it stays under its own
    name, which nothing takes for a checkpoint, until the next run clears it.

    Args:
        folder: The stage's folder.
        step: N.
        first: Whether this is the first process, which moves and removes.
        wait: Waits for the other processes.
    """
    name = f"checkpoint-{step}"
    temporary = folder / f".{name}.tmp"
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    wait()
    try:
        yield temporary
        wait()
        if first:
            _flush(temporary)
            _replace(temporary / name, folder / name)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
    wait()


def _flush(folder: Path) -> None:
    """Make sure that files and their names are on disk before the folder gets its final name."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(source: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill in mid-save left behind."""
    for path in [*folder.glob(".checkpoint-*.tmp"), *folder.glob(".checkpoint-*.old")]:
        shutil.rmtree(path, ignore_errors=True)


def keep_newest(folder: Path, limit: int | None) -> None:
    """Remove all but the newest checkpoints.

    Args:
        folder: The stage's folder.
        limit: How many to keep; None keeps all.
    """
    found = RunFolder(folder).checkpoints()
    for path in [] if limit is None else found[: max(0, len(found) - limit)]:
        shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps that a checkpoint folder's name says."""
    return int(checkpoint.name.rsplit("-", 1)[-1])


def write_state(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Write what of ours belongs to a checkpoint."""
    write_json(checkpoint / STATE_FILE, state)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote.

    Raises:
        SettingError: The folder is no checkpoint of a run of this package.
    """
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise SettingError(
            f"training.resume_from_checkpoint: {checkpoint} is not a checkpoint of a run ({STATE_FILE} is missing); "
            "give a run's checkpoint-N folder, or true for the last one of the run folder"
        )
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def save_tensors(checkpoint: Path, rank: int, state: dict[str, Any]) -> None:
    """Write a rank's policy state, where there is any.

    Args:
        checkpoint: The folder.
        rank: Which process this is.
        state: JSON values, tensors and examples.
    """
    import torch

    if state:
        torch.save(_plain(state), checkpoint / f"policy_{rank}.pt")


def load_tensors(checkpoint: Path, rank: int) -> dict[str, Any]:
    """Read what :func:`save_tensors` wrote; empty where it wrote nothing."""
    import torch

    path = checkpoint / f"policy_{rank}.pt"
    return _revived(torch.load(path, weights_only=True)) if path.is_file() else {}


def _plain(value: Any) -> Any:
    """Examples as plain values, since a checkpoint must load without running anybody's code."""
    if isinstance(value, Example):
        return {_EXAMPLE: [list(value.tokens), list(value.targets), value.row, value.origin]}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _revived(value: Any) -> Any:
    if isinstance(value, dict) and _EXAMPLE in value:
        tokens, targets, row, origin = value[_EXAMPLE]
        return Example(tuple(tokens), tuple(targets), row, origin)
    if isinstance(value, dict):
        return {key: _revived(entry) for key, entry in value.items()}
    return [_revived(entry) for entry in value] if isinstance(value, list) else value


def chosen_checkpoint(folder: Path, resume: bool | str) -> Path | None:
    """The checkpoint to go on from, or None to begin.

    Args:
        folder: The stage's folder.
        resume: ``training.resume_from_checkpoint``.

    Raises:
        SettingError: A named checkpoint that is not there, or that is not one of this folder's.
    """
    if not resume:
        return None
    found = RunFolder(folder).checkpoints()
    if resume is True:
        return found[-1] if found else None
    named = Path(resume)
    if not any(path.resolve() == named.resolve() for path in found):
        known = ", ".join(path.name for path in found) or "none"
        raise SettingError(
            f"training.resume_from_checkpoint: {resume} is no checkpoint of the run folder {folder} (it has: {known})"
        )
    return named


def cut_metrics(folder: Path, step: int) -> None:
    """Leave only what belongs to a checkpoint: drop later log lines and later checkpoints.

    Args:
        folder: The stage's folder.
        step: The checkpoint's step; 0 drops everything.
    """
    run = RunFolder(folder)
    if run.metrics_file.exists():
        lines = read_json_lines(run.metrics_file)
        write_json_lines(run.metrics_file, [line for line in lines if line["step"] <= step])
    for path in run.checkpoints():
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)
