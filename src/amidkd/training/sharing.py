"""What runs of one sweep have in common, made once: the fine-tuned student that they start from, and the text."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig
from amidkd.data import Encoder
from amidkd.locks import hold
from amidkd.record import write_json
from amidkd.training.answering import given_folder, student_writes, write_text
from amidkd.training.context import answering_of, begin
from amidkd.training.lessons import read_rows, rows_to_answer

__all__ = ["in_common", "link", "shared_stage", "write_shared_text"]

_RESULT = "result.json"


def in_common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings that decide a run's numbers, those that decide its warm start's: all but the objective.

    Args:
        settings: By dotted name.
    """
    return {key: value for key, value in settings.items() if not key.startswith("objective.")}


def shared_stage(shared: Path, own: Path, train: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Train a stage in a folder of its own for several runs, once, and let a run's folder lead to it.

    Args:
        shared: The stage's folder, for all of them. Processes that need it at the same time wait for the first.
        own: Where the run has it.
        train: Trains the stage in a folder and gives its entry of ``record.json``.

    Returns:
        The entry; ``reused`` says whether another run had trained it.
    """
    result = shared / _RESULT
    # Before it is trained, so that whoever watches the run sees it.
    shared.mkdir(parents=True, exist_ok=True)
    link(own, shared)
    with hold(shared.with_name(f"{shared.name}.lock")):
        made = not result.is_file()
        if made:
            write_json(result, train(shared))
    return {**json.loads(result.read_text(encoding="utf-8")), "reused": not made}


def link(own: Path, shared: Path) -> None:
    """Let a folder of a run lead to a shared one; relative, so that both can be moved together.

    Args:
        own: Where the run looks; what is there is replaced.
        shared: Where it is.
    """
    if own.is_symlink():
        own.unlink()
    elif own.is_dir():
        shutil.rmtree(own)
    own.parent.mkdir(parents=True, exist_ok=True)
    own.symlink_to(os.path.relpath(shared.resolve(), own.parent.resolve()), target_is_directory=True)


def write_shared_text(config: RunConfig) -> Path | None:
    """Have the text written that a run would have written before it trains, into its ``generated/``.

    Args:
        config: The run, without stages.

    Returns:
        The folder; None where the run learns from what its rows hold, or from text that a folder it names holds.

    Raises:
        SettingError: Nobody to write, or a folder made with other settings.
        GenerationError: The engine is gone; what was saved stays, and the same call goes on.
    """
    verb = "distill" if config.teacher is not None else "sft"
    if given_folder(config) is not None or (config.teacher is None and not student_writes(config)):
        return None
    run = begin(config, verb)
    try:
        encoder = Encoder(run.tokenizer, config.data)
        rows = rows_to_answer(config, read_rows(config, encoder), verb)
        if not rows:
            return None
        write_text(rows, answering_of(run, encoder))
        run.wait()
        return run.folder.generated
    finally:
        run.close()
