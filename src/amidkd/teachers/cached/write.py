"""Writing a cache: file by file, on one process or several; what a kill costs is the file under way.

Rows and batches are the same ones after a restart, so the files of a killed call that went on are, byte for byte, those
of an uninterrupted one.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amidkd.data import Example, Sequences, collate
from amidkd.errors import SettingError, TeacherError
from amidkd.record import atomic_folder, versions
from amidkd.signals import Hidden, Logits, TopK
from amidkd.teachers.base import Teacher
from amidkd.teachers.cached.entries import Entry, hash_entries
from amidkd.teachers.cached.head import HEAD, write_head
from amidkd.teachers.cached.layout import Layout, layout_of
from amidkd.teachers.cached.manifest import (
    MANIFEST,
    Manifest,
    check_same,
    read_manifest,
    shard_name,
    write_manifest,
)
from amidkd.teachers.cached.shards import ROW_BYTES, ShardWriter, new_shard
from amidkd.teachers.vocabulary import vocabulary_fingerprint

__all__ = ["TOKENIZER", "CacheSettings", "Plan", "plan_cache", "write_cache"]

TOKENIZER = "tokenizer"
"""In a cache: the teacher's tokenizer, which proves the vocabulary where the teacher is not."""

_SECONDS_BETWEEN_LOOKS = 0.2
# Batches of one length each are made from this many batches of rows.
_WINDOW = 8

Progress = Callable[[int, int, int], None]
"""Told the rows, the tokens and the bytes that were written; rows found on disk come without tokens."""


@dataclass(frozen=True)
class CacheSettings:
    """What a cache is made of, and how.

    Args:
        format: ``top_k``, ``hidden`` or ``samples``.
        top_k: K of ``top_k`` and ``samples``.
        batch_size: Rows of a batch.
        shard_rows: Rows of a file; a cache that was begun keeps its own.
        tokenizer: The teacher's tokenizer.
        templates: How rows became text, by name.
        name: What the teacher is called, for information.
        pad_id: What fills batches.
        device: Where batches go.
        draws: Draws of ``samples``.
    """

    format: str
    top_k: int
    batch_size: int
    shard_rows: int
    tokenizer: Any
    templates: dict[str, str | None]
    name: str
    pad_id: int
    device: Any
    draws: int = 0


@dataclass(frozen=True)
class Plan:
    """A cache that is about to be written.

    Args:
        entries: Its sequences, in order.
        made_with: What decides it, field by field.
        layout: How signals are stored.
        head: A signal with the head, where that is stored; None: it is not.
    """

    entries: list[Entry]
    made_with: dict[str, Any]
    layout: Layout
    head: Hidden | None

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return sum(entry.token_count() for entry in self.entries)

    @property
    def size(self) -> int:
        """Bytes that the cache will take at most, about: signals are compressed."""
        bits = sum(-(-len(entry.targets) // 8) for entry in self.entries)
        size = self.tokens * self.layout.token_bytes + len(self.entries) * ROW_BYTES + bits
        return size if self.head is None else size + self.head.weight.numel() * self.head.weight.element_size()


def plan_cache(entries: Sequence[Entry], *, teacher: Teacher, settings: CacheSettings) -> Plan:
    """Ask a teacher about one sequence, and say what its cache will be.

    Args:
        entries: What is to be cached.
        teacher: Who is asked.
        settings: How.

    Raises:
        SettingError: Nothing to cache, or a teacher that cannot say what the format needs.
        TeacherError: It cannot answer.
    """
    if not entries:
        raise SettingError("there is nothing to cache: no row has a supervised token")
    shortest = min(entries, key=lambda entry: len(entry.tokens))
    probe = _asked(teacher, _batch([shortest], settings), settings.device)
    layout = layout_of(settings.format, settings.top_k, probe, vocab_size=teacher.vocab_size, draws=settings.draws)
    made_with = {
        "teacher": teacher.fingerprint(),
        "tokenizer": vocabulary_fingerprint(settings.tokenizer),
        **settings.templates,
        "data": hash_entries(entries),
        "vocab_size": layout.vocab_size,
        "temperature": 1.0,
        "format": layout.format,
        "top_k": layout.top_k,
        **({} if layout.draws is None else {"draws": layout.draws}),
        "storage": layout.storage(),
    }
    head = probe if isinstance(probe, Hidden) and layout.format == "hidden" else None
    return Plan(list(entries), made_with, layout, head)


def write_cache(
    plan: Plan,
    *,
    teacher: Teacher,
    settings: CacheSettings,
    folder: Path,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Write a cache, going on after what a killed call finished. Every process returns when all are done.

    Args:
        plan: What is written.
        teacher: Who is asked.
        settings: How.
        folder: The folder to make.
        rank: Number of this process, from 0.
        world: Number of processes; they share the files.
        progress: Called after each part of a file of this process.

    Returns:
        The manifest of the complete cache.

    Raises:
        SettingError: A folder that holds something else, or a cache that was made with other settings.
        TeacherError: The teacher cannot answer; files that were finished stay.
    """
    manifest = _opened(folder, plan, settings, first=rank == 0)
    if rank == 0 and plan.head is not None and not (folder / HEAD).is_file():
        write_head(folder, plan.head)
    paths = [folder / shard_name(number) for number in range(manifest.shards)]
    for number in range(rank, manifest.shards, world):
        entries = plan.entries[number * manifest.shard_rows : (number + 1) * manifest.shard_rows]
        if not paths[number].is_file():
            with new_shard(paths[number], plan.layout) as shard:
                _fill(shard, entries, plan.layout, teacher, settings, progress)
        elif progress is not None:
            progress(len(entries), 0, 0)
    return _finish(folder, manifest, paths, first=rank == 0)


def _opened(folder: Path, plan: Plan, settings: CacheSettings, *, first: bool) -> Manifest:
    """The manifest of the folder, begun by the first process where there is none."""
    if first and not (folder / MANIFEST).is_file():
        leftover = {f".{TOKENIZER}.tmp", TOKENIZER}
        if folder.exists() and (not folder.is_dir() or any(path.name not in leftover for path in folder.iterdir())):
            raise SettingError(
                f"teacher.folder: {folder} holds something else than a teacher cache; remove it, or name another folder"
            )
        with atomic_folder(folder / TOKENIZER) as inside:
            settings.tokenizer.save_pretrained(inside)
        write_manifest(folder, _begun(plan, settings))
    _wait_for(folder / MANIFEST)
    manifest = read_manifest(folder)
    fix = "Set these back, or remove the folder to have the cache made anew, or name another teacher.folder."
    check_same(manifest.made_with, plan.made_with, folder, fix=fix)
    return manifest


def _begun(plan: Plan, settings: CacheSettings) -> Manifest:
    return Manifest(
        made_with=plan.made_with,
        information={"teacher": settings.name, "versions": versions()},
        rows=len(plan.entries),
        tokens=plan.tokens,
        shards=-(-len(plan.entries) // settings.shard_rows),
        shard_rows=settings.shard_rows,
        width=plan.layout.width,
        complete=False,
    )


def _fill(
    shard: ShardWriter,
    entries: Sequence[Entry],
    layout: Layout,
    teacher: Teacher,
    settings: CacheSettings,
    progress: Progress | None,
) -> None:
    """Write rows in order, asked for in batches of like length."""
    size = settings.batch_size
    windows = [entries[start : start + size * _WINDOW] for start in range(0, len(entries), size * _WINDOW)]
    plans = [_batches(window, size) for window in windows]
    coming = [
        _batch([window[place] for place in batch], settings)
        for window, plan in zip(windows, plans, strict=True)
        for batch in plan
    ]
    asked = before = 0
    for window, plan in zip(windows, plans, strict=True):
        made: dict[int, list[np.ndarray]] = {}
        for batch in plan:
            teacher.expect(coming[asked : asked + _WINDOW])
            seed = _seed([window[place] for place in batch])
            columns = layout.encode(_asked(teacher, coming[asked], settings.device), seed=seed)
            made |= zip(batch, _by_row(columns, [window[place] for place in batch]), strict=True)
            asked += 1
        for place, entry in enumerate(window):
            shard.add(entry, made[place])
        if progress is not None:
            tokens = sum(entry.token_count() for entry in window)
            progress(len(window), tokens, shard.written - before)
            before = shard.written


def _seed(entries: Sequence[Entry]) -> int:
    """What the draws of a batch hang on: its sequences alone, so that a restart draws the same."""
    digest = hashlib.blake2b(b"".join(entry.key for entry in entries), digest_size=7)
    return int.from_bytes(digest.digest(), "little")


def _batches(window: Sequence[Entry], size: int) -> list[list[int]]:
    order = sorted(range(len(window)), key=lambda place: len(window[place].tokens))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _by_row(columns: Sequence[np.ndarray], entries: Sequence[Entry]) -> Iterator[list[np.ndarray]]:
    counts = [entry.token_count() for entry in entries]
    if any(len(column) != sum(counts) for column in columns):
        raise TeacherError(f"the teacher gave {len(columns[0])} rows for {sum(counts)} supervised tokens")
    ends = np.cumsum(counts)
    for end, count in zip(ends, counts, strict=True):
        yield [column[end - count : end] for column in columns]


def _batch(entries: Sequence[Entry], settings: CacheSettings) -> Sequences:
    examples = [Example(tuple(entry.tokens.tolist()), tuple(entry.targets.tolist()), entry.row) for entry in entries]
    return collate(examples, pad_id=settings.pad_id)


def _asked(teacher: Teacher, sequences: Sequences, device: Any) -> Hidden | Logits | TopK:
    with torch.no_grad():
        said = teacher.signal(sequences.to(device))
    if not isinstance(said, Hidden | Logits | TopK):
        raise SettingError("several teachers at once cannot be one cache; cache each of them")
    return said


def _finish(folder: Path, manifest: Manifest, paths: Sequence[Path], *, first: bool) -> Manifest:
    """Wait for the other processes' files, and say last that the cache is complete."""
    for path in paths:
        _wait_for(path)
    if first and not manifest.complete:
        write_manifest(folder, replace(manifest, complete=True))
    while not (found := read_manifest(folder)).complete:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return found


def _wait_for(path: Path) -> None:
    # No time-out of the process group holds here: a cache can take hours.
    while not path.is_file():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
