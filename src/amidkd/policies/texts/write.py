"""Writing text to prompts: shard by shard, each batch safe on disk before the next, on one process or several.

A kill costs one batch. Random numbers hang on seed, row and sample, and batches are the same ones after a restart, so
the shards of a killed call that went on are, byte for byte, those of an uninterrupted one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from warnings import warn

from amidkd.data import Row
from amidkd.errors import SettingError, SettingWarning
from amidkd.generation import Generator, Prompts
from amidkd.policies.texts.answers import Answer, write_shard
from amidkd.policies.texts.journal import Journal
from amidkd.policies.texts.manifest import (
    Manifest,
    TextSettings,
    check_same,
    information,
    made_with,
    read_manifest,
    write_manifest,
)
from amidkd.record import TEXT_MANIFEST, text_shard

__all__ = ["SHARD_SIZE", "write_answers"]

SHARD_SIZE = 1024
"""Answers of a shard: what one process writes at a time."""

# Streams of different samples of a prompt; rows have room below.
_SAMPLE_STRIDE = 1 << 40
_SECONDS_BETWEEN_LOOKS = 0.2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Task:
    row: Row
    tokens: list[int]
    sample: int

    @property
    def key(self) -> tuple[int, int]:
        return self.row.index, self.sample


def write_answers(
    rows: Sequence[Row],
    *,
    settings: TextSettings,
    generator: Callable[[], Generator],
    folder: Path,
    rank: int = 0,
    world: int = 1,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> int:
    """Answer prompts into a folder, going on after what a killed call finished.

    A complete folder made with the same settings is left as it is. Every process returns when all are done.

    Args:
        rows: Rows to answer; a label that a row has is not looked at. Rows whose prompt ``data.long_prompts``
            drops get no answer.
        settings: Who writes, and how.
        generator: Makes the engine; called only where there is something to write.
        folder: The folder to make.
        rank: Number of this process, from 0.
        world: Number of processes; they share the shards.
        shard_size: Answers of a shard; a folder that was begun keeps its own.
        progress: Called after each batch of this process with the answers and the tokens made in it; answers found
            finished come with 0 tokens.

    Returns:
        The number of answers in the folder.

    Raises:
        SettingError: No prompt to answer; a prompt that cannot be used (its file and line are named); a folder
            that was made with other settings.
        GenerationError: The engine is gone; what was saved stays.
    """
    tasks = _tasks(rows, settings)
    fields = made_with(((task.row, task.tokens) for task in tasks if task.sample == 0), settings)
    manifest = _opened(folder, fields, len(tasks), shard_size, settings, first=rank == 0)
    shards = [tasks[start : start + manifest.shard_size] for start in range(0, len(tasks), manifest.shard_size)]
    paths = [folder / text_shard(number) for number in range(len(shards))]
    if all(path.is_file() for path in paths):
        if progress is not None:
            progress(sum(map(len, shards[rank::world])), 0)
    else:
        engine = generator()
        try:
            engine.update_weights(0)
            for number in range(rank, len(shards), world):
                _write(shards[number], paths[number], engine, settings, progress)
        finally:
            engine.close()
    _finish(folder, manifest, paths, first=rank == 0)
    return len(tasks)


def _tasks(rows: Sequence[Row], settings: TextSettings) -> list[_Task]:
    config, context = settings.config, settings.context
    samples = config.samples_per_prompt
    if samples > 1 and config.temperature == 0:
        warn(
            f"data.generation.samples_per_prompt = {samples} has no effect at temperature 0, where all answers to a "
            "prompt are one; making one each",
            SettingWarning,
            stacklevel=3,
        )
        samples = 1
    if not rows:
        raise SettingError("there is no prompt to answer")
    tasks = []
    for row, tokens in zip(rows, settings.encoder.prompts_tokens(rows), strict=True):
        if tokens is None:
            continue
        if context is not None and len(tokens) >= context:
            raise SettingError(
                f"{row.where}: the prompt has {len(tokens)} tokens, which leaves no room for an answer in the "
                f"{settings.origin}'s context of {context}; lower data.max_prompt_length"
            )
        tasks += [_Task(row, tokens, sample) for sample in range(samples)]
    if not tasks:
        raise SettingError("every prompt is over data.max_prompt_length, so there is none to answer; raise it")
    return tasks


def _opened(
    folder: Path, fields: dict[str, object], answers: int, shard_size: int, settings: TextSettings, *, first: bool
) -> Manifest:
    """The folder's manifest, begun by the first process where there is none."""
    if first and not (folder / TEXT_MANIFEST).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SettingError(f"{folder} holds something else than written text; remove it, or name another folder")
        shards = -(-answers // shard_size)
        write_manifest(folder, Manifest(fields, information(settings), answers, shards, shard_size, complete=False))
    _wait_for(folder / TEXT_MANIFEST)
    manifest = read_manifest(folder)
    fix = "Set these back, or remove the folder to have the text written anew, or choose another output.folder."
    check_same(manifest.made_with, fields, folder, fix=fix)
    return manifest


def _write(
    tasks: Sequence[_Task], path: Path, engine: Generator, settings: TextSettings, progress: Progress | None
) -> None:
    """Make one shard, or go on with it."""
    journal = Journal(path.with_name(f".{path.stem}.jsonl"))
    if path.is_file():
        journal.remove()
        if progress is not None:
            progress(len(tasks), 0)
        return
    made = journal.read()
    if made and progress is not None:
        progress(len(made), 0)
    missing = sorted((task for task in tasks if task.key not in made), key=lambda task: len(task.tokens))
    size = settings.config.batch_size
    for batch in (missing[start : start + size] for start in range(0, len(missing), size)):
        answers = engine(_prompts(batch, settings))
        fresh = {task.key: list(ids) for task, ids in zip(batch, answers, strict=True)}
        journal.append(fresh)
        made |= fresh
        if progress is not None:
            progress(len(batch), sum(map(len, answers)))
    write_shard(path, [_answer(task, made[task.key], settings) for task in tasks])
    journal.remove()


def _prompts(tasks: Sequence[_Task], settings: TextSettings) -> Prompts:
    most, context = settings.config.max_new_tokens, settings.context
    return Prompts(
        tokens=[task.tokens for task in tasks],
        limits=[most if context is None else min(most, context - len(task.tokens)) for task in tasks],
        streams=[task.sample * _SAMPLE_STRIDE + task.row.index for task in tasks],
        seed=settings.config.seed,
    )


def _answer(task: _Task, ids: list[int], settings: TextSettings) -> Answer:
    finished = bool(ids) and ids[-1] in settings.eos_ids
    bare = task.row.prompt
    return Answer(
        row=task.row.index,
        where=task.row.where,
        sample=task.sample,
        prompt=settings.tokenizer.decode(task.tokens, clean_up_tokenization_spaces=False) if bare is None else bare,
        completion=settings.encoder.completion_text(ids[:-1] if finished else ids),
        prompt_tokens=tuple(task.tokens),
        completion_tokens=tuple(ids),
        length=len(ids),
        finished=finished,
        origin=settings.origin,
    )


def _finish(folder: Path, manifest: Manifest, paths: Sequence[Path], *, first: bool) -> None:
    """Wait for the other processes' shards, and say last that the folder is complete."""
    for path in paths:
        _wait_for(path)
    if first and not manifest.complete:
        write_manifest(folder, replace(manifest, complete=True))
    while not read_manifest(folder).complete:
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _wait_for(path: Path) -> None:
    # No time-out of the process group holds here: answers can take hours.
    while not path.is_file():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
