"""A teacher on disk: what one said of every row, read back while the student learns."""

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, final

import numpy as np
import torch

from amidkd.config import CachedTeacher as CachedTeacherConfig
from amidkd.config import live_teacher
from amidkd.data import Example, Sequences
from amidkd.errors import SettingError
from amidkd.models import load_tokenizer
from amidkd.signals import Hidden, TopK
from amidkd.teachers.cached.entries import key_of
from amidkd.teachers.cached.manifest import Manifest, check_same, read_manifest
from amidkd.teachers.cached.read import CacheReader, Wanted
from amidkd.teachers.cached.write import TOKENIZER
from amidkd.teachers.live import fingerprint_of
from amidkd.teachers.vocabulary import prove_same_vocabulary

__all__ = ["FOLDER", "CachedTeacher", "cache_folder", "open_cache", "tokenizer_folder"]

FOLDER = "teacher-cache"
"""The cache in a run folder."""

# Batches that are read ahead at most.
_AHEAD = 16
_Key = tuple[tuple[bytes, bytes], ...]


@final
class CachedTeacher:
    """What a teacher said of every row, from disk; a thread reads the batches that come next.

    Args:
        folder: The cache.
        manifest: Its manifest.
        tokenizer: The teacher's tokenizer.
    """

    def __init__(self, folder: Path, manifest: Manifest, tokenizer: Any) -> None:
        self.folder, self.manifest, self.tokenizer = folder, manifest, tokenizer
        self.vocab_size: int = manifest.layout.vocab_size
        self._reader = CacheReader(folder, manifest)
        self._reading = Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-cache")
        self._coming: deque[tuple[_Key, list[Wanted]]] = deque()
        self._under_way: dict[_Key, Future[Hidden | TopK]] = {}
        self._heads: dict[torch.device, dict[str, Any]] = {}

    @property
    def in_process(self) -> bool:
        """No: files may fail, and reading ahead hides the reading."""
        return False

    def signal(self, sequences: Sequences) -> Hidden | TopK:
        """What the teacher said at the supervised positions.

        Args:
            sequences: A batch, on any device, to which the signal goes.

        Returns:
            ``TopK`` with log-probabilities in float32, or ``Hidden`` in the type of the teacher's weights.

        Raises:
            SettingError: A row or a position that is not in the cache.
            TeacherError: A file cannot be read.
        """
        wanted = _wanted(sequences)
        key = _key(wanted)
        future = self._under_way.pop(key, None)
        self._coming = deque(each for each in self._coming if each[0] != key)
        self._begin()
        found = self._read(wanted) if future is None else future.result()
        return self._moved(found, sequences.tokens_BT.device)

    def expect(self, batches: Sequence[Sequences]) -> None:
        """Begin to read the batches that come next; those that were announced before and are not among them are let
        go of.
        """
        coming = [(_key(wanted), wanted) for wanted in map(_wanted, batches)]
        keys = {key for key, _ in coming}
        for key in [key for key in self._under_way if key not in keys]:
            self._under_way.pop(key).cancel()
        self._coming = deque(each for each in coming if each[0] not in self._under_way)
        self._begin()

    def begin_step(self, step: int) -> None:
        """Nothing hangs on the step."""

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the cache."""
        return hashlib.sha256(json.dumps(self.manifest.made_with, sort_keys=True).encode()).hexdigest()

    def close(self) -> None:
        """End the thread and close the files."""
        self._coming.clear()
        self._under_way.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def check(self, examples: Sequence[Example], *, templates: Mapping[str, Any], places: Sequence[str]) -> None:
        """Refuse rows that are not in the cache, before work starts.

        Args:
            examples: What will be asked for.
            templates: How rows became text, by name, as the manifest says it.
            places: File and line by ``Row.index``.

        Raises:
            SettingError: With the first such row, and the templates that differ.
        """
        found = (Wanted(key_of(each.tokens), np.asarray(each.targets, dtype=bool), each.row) for each in examples)
        missing = self._reader.missing(found)
        if missing is None:
            return
        fix = "Set these back, or make a cache of this run with `amidkd cache RUN` in another teacher.folder."
        check_same(self.manifest.made_with, templates, self.folder, fix=fix)
        raise SettingError(
            f"{places[missing.row]}: the row, or a supervised token of it, is not in the cache {self.folder}, which "
            "was made of other rows or with another data.max_length; set these back, or make a cache of this run with "
            "`amidkd cache RUN` in another teacher.folder"
        )

    def _begin(self) -> None:
        while self._coming and len(self._under_way) < _AHEAD:
            key, wanted = self._coming.popleft()
            if key not in self._under_way:
                self._under_way[key] = self._pool.submit(self._read, wanted)

    def _read(self, wanted: Sequence[Wanted]) -> Hidden | TopK:
        with self._reading:
            return self._reader.signal(wanted)

    def _moved(self, signal: Hidden | TopK, device: torch.device) -> Hidden | TopK:
        if isinstance(signal, TopK):
            assert signal.log_tail is not None
            return TopK(signal.ids.to(device), signal.log_probs.to(device), signal.log_tail.to(device))
        if device not in self._heads:
            assert self._reader.head is not None
            self._heads[device] = {
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in self._reader.head.items()
            }
        return Hidden(signal.states.to(device), **self._heads[device])


def cache_folder(config: CachedTeacherConfig, folder: Path) -> Path:
    """Where a run's cache is.

    Args:
        config: The run file's ``teacher``.
        folder: The run folder.
    """
    return folder / FOLDER if config.folder is None else Path(config.folder)


def tokenizer_folder(config: CachedTeacherConfig, folder: Path) -> Path:
    """The teacher's tokenizer, which the cache holds.

    Args:
        config: The run file's ``teacher``.
        folder: The run folder.

    Raises:
        SettingError: There is no cache, or its tokenizer is missing.
    """
    path = cache_folder(config, folder)
    read_manifest(path)
    if not (path / TOKENIZER).is_dir():
        raise SettingError(f"{path}: its folder `{TOKENIZER}` is missing; make the cache anew with `amidkd cache RUN`")
    return path / TOKENIZER


def open_cache(
    config: CachedTeacherConfig, *, student_tokenizer: Any, folder: Path, device: Any = None
) -> CachedTeacher:
    """Open a run's cache; no weights are loaded.

    Args:
        config: The run file's ``teacher``.
        student_tokenizer: What the sequences are made with.
        folder: The run folder, where the cache is unless its section names another place.
        device: The student's device, on which signals arrive with their sequences anyway.

    Raises:
        SettingError: No complete cache; a cache of another teacher, format or vocabulary, the field being named.
    """
    path = cache_folder(config, folder)
    manifest = read_manifest(path)
    if not manifest.complete:
        raise SettingError(
            f"teacher.folder: the cache {path} is not complete; run `amidkd cache RUN` again: it goes on"
        )
    tokenizer = load_tokenizer(str(tokenizer_folder(config, folder)), trust_remote_code=config.trust_remote_code)
    shared = prove_same_vocabulary(teacher=tokenizer, student=student_tokenizer)
    expected: dict[str, Any] = {"vocab_size": shared, "format": config.format}
    if config.format != "hidden":
        expected["top_k"] = min(config.top_k, shared)
    if config.format == "samples":
        expected["draws"] = config.draws
    live = live_teacher(config)
    teacher = None if live is None else fingerprint_of(live, vocab_size=shared)
    if teacher is not None:
        expected["teacher"] = teacher
    fix = "Set these back, name another teacher.folder, or make a cache of this run with `amidkd cache RUN`."
    check_same(manifest.made_with, expected, path, fix=fix)
    return CachedTeacher(path, manifest, tokenizer)


def _wanted(sequences: Sequences) -> list[Wanted]:
    tokens = sequences.tokens_BT.cpu().numpy()
    there = sequences.attention_BT.cpu().numpy() != 0
    targets = sequences.targets_BT.cpu().numpy().copy()
    targets[:, 0] = False
    rows = sequences.rows_B.tolist()
    return [
        Wanted(key_of(tokens[place][there[place]]), targets[place][there[place]], row) for place, row in enumerate(rows)
    ]


def _key(wanted: Sequence[Wanted]) -> _Key:
    return tuple((each.key, each.targets.tobytes()) for each in wanted)
