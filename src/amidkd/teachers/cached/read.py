"""Reading a cache: an index of keys in memory, everything else from files when it is asked for."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from amidkd.errors import SettingError, TeacherError
from amidkd.signals import Hidden, TopK
from amidkd.teachers.cached.head import read_head
from amidkd.teachers.cached.manifest import Manifest, shard_name
from amidkd.teachers.cached.shards import open_shard, read_keys, read_rows, read_supervised

__all__ = ["CacheReader", "Wanted"]

# Files that are open at once: a file of 1024 rows has an index of about a megabyte.
_OPEN = 32
_FIX = (
    "The cache was made of other rows, templates, tokenizer or data.max_length; set these back, or make a cache of "
    "this run with `amidkd cache RUN` (in another teacher.folder, or after this one is removed)."
)


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """A sequence whose signal is asked for.

    Args:
        key: What it is found by.
        targets: Its supervised positions [T].
        row: ``Row.index``, for messages.
    """

    key: bytes
    targets: np.ndarray
    row: int


@final
class CacheReader:
    """The files of a complete cache. Not for several threads at once.

    Args:
        folder: The cache.
        manifest: Its manifest.

    Raises:
        SettingError: A file is missing, or is none of ours.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._layout = folder, manifest.layout
        self._shards: OrderedDict[int, Any] = OrderedDict()
        missing = [n for n in range(manifest.shards) if not (folder / shard_name(n)).is_file()]
        if missing:
            raise SettingError(
                f"{folder}: {shard_name(missing[0])} is missing, {len(missing)} of {manifest.shards} files in all; "
                "make them with `amidkd cache RUN`"
            )
        self.head = read_head(folder) if self._layout.format == "hidden" else None
        self._keys, self._places = self._indexed(manifest)

    def find(self, key: bytes) -> tuple[int, int, int] | None:
        """File, row group and place in it of a sequence; None: it is not here."""
        place = int(np.searchsorted(self._keys, np.void(key)))
        if place == len(self._keys) or self._keys[place].tobytes() != key:
            return None
        shard, group, row = self._places[place]
        return int(shard), int(group), int(row)

    def signal(self, wanted: Sequence[Wanted]) -> Hidden | TopK:
        """The signals of some sequences, one after the other, on the CPU.

        Args:
            wanted: Sequences with their supervised positions.

        Raises:
            SettingError: A sequence or a position that is not in the cache; the row is named.
            TeacherError: A file that cannot be read.
        """
        by_shard: dict[int, list[tuple[int, tuple[int, int]]]] = {}
        for number, each in enumerate(wanted):
            if each.targets.any():
                shard, *at = self._found(each)
                by_shard.setdefault(shard, []).append((number, (at[0], at[1])))
        empty = [np.zeros((0, size), dtype=np.uint8) for _, size in self._layout.columns]
        made: list[list[np.ndarray]] = [empty] * len(wanted)
        for shard, rows in by_shard.items():
            found = self._rows(shard, [at for _, at in rows])
            for (number, _), (key, stored, columns) in zip(rows, found, strict=True):
                made[number] = self._chosen(wanted[number], key, stored, columns)
        columns = [np.concatenate(parts) for parts in zip(*made, strict=True)] if made else empty
        return self._layout.decode(columns, self.head)

    def missing(self, wanted: Iterable[Wanted]) -> Wanted | None:
        """A sequence that is not here with all of its supervised positions, or None."""
        by_shard: dict[int, list[tuple[int, int, Wanted]]] = {}
        for each in wanted:
            if not each.targets.any():
                continue
            at = self.find(each.key)
            if at is None:
                return each
            by_shard.setdefault(at[0], []).append((at[1], at[2], each))
        for shard, rows in sorted(by_shard.items()):
            stored, starts = self._supervised(shard)
            for group, place, each in rows:
                if (each.targets & ~stored[starts[group] + place]).any():
                    return each
        return None

    def close(self) -> None:
        """Close the files."""
        while self._shards:
            self._shards.popitem()[1].close()

    def _indexed(self, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
        keys, places = [], []
        for number in range(manifest.shards):
            found, groups, rows = read_keys(self._open(number))
            keys.append(found)
            places.append(np.stack([np.full(len(found), number, np.int32), groups, rows], axis=1))
        flat = np.ascontiguousarray(np.concatenate(keys))
        if len(flat) != manifest.rows:
            raise SettingError(
                f"{self._folder}: it holds {len(flat)} rows, and should hold {manifest.rows}; remove it and make it "
                "anew with `amidkd cache RUN`"
            )
        whole = flat.view(np.dtype((np.void, flat.shape[1])))[:, 0]
        order = np.argsort(whole, kind="stable")
        return whole[order], np.concatenate(places)[order]

    def _found(self, wanted: Wanted) -> tuple[int, int, int]:
        at = self.find(wanted.key)
        if at is None:
            raise SettingError(f"{self._folder}: data row {wanted.row} is not in the cache of the teacher.\n{_FIX}")
        return at

    def _chosen(self, wanted: Wanted, key: bytes, stored: np.ndarray, columns: list[np.ndarray]) -> list[np.ndarray]:
        """The rows of the supervised positions that are asked for, of those that are stored."""
        if key != wanted.key or any(len(column) != stored.sum() for column in columns):
            raise TeacherError(f"{self._folder}: the files changed while they were read, or are damaged")
        if np.array_equal(stored, wanted.targets):
            return columns
        if not bool((stored | ~wanted.targets).all()):
            place = int((wanted.targets & ~stored).argmax())
            raise SettingError(
                f"{self._folder}: the cache has data row {wanted.row}, but not its token {place}, which is supervised "
                f"now.\n{_FIX}"
            )
        keep = wanted.targets[stored]
        return [column[keep] for column in columns]

    def _rows(self, shard: int, rows: Sequence[tuple[int, int]]) -> list[tuple[bytes, np.ndarray, list[np.ndarray]]]:
        with self._readable(shard):
            return read_rows(self._open(shard), self._layout, rows)

    def _supervised(self, shard: int) -> tuple[list[np.ndarray], np.ndarray]:
        with self._readable(shard):
            return read_supervised(self._open(shard))

    @contextmanager
    def _readable(self, shard: int) -> Iterator[None]:
        """Say which file it was that could not be read."""
        import pyarrow

        try:
            yield
        except SettingError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            path = self._folder / shard_name(shard)
            raise TeacherError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error

    def _open(self, shard: int) -> Any:
        if shard in self._shards:
            self._shards.move_to_end(shard)
            return self._shards[shard]
        while len(self._shards) >= _OPEN:
            self._shards.popitem(last=False)[1].close()
        opened = self._shards[shard] = open_shard(self._folder / shard_name(shard), self._layout)
        return opened
