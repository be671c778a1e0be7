"""A file of a cache: Parquet, one row a sequence, in row groups small enough that one row is read quickly."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from amidkd.errors import SettingError
from amidkd.teachers.cached.entries import KEY_BYTES, Entry
from amidkd.teachers.cached.layout import Layout

__all__ = ["ROW_BYTES", "ShardWriter", "new_shard", "open_shard", "read_keys", "read_rows", "read_supervised"]

# A row of a shuffled batch costs the reading of its group.
_GROUP_BYTES = 2**16
ROW_BYTES = KEY_BYTES + 64
"""Bytes of a row beside its signal and the bits of its supervised positions, about."""


class ShardWriter:
    """Writes rows to a file that is open.

    Args:
        file: Where to.
        layout: How signals are stored.
    """

    def __init__(self, file: Any, layout: Layout) -> None:
        import pyarrow.parquet

        self._layout, self._schema, self._target = layout, _schema(layout), file
        self._waiting: list[tuple[Entry, list[bytes]]] = []
        self._bytes = 0
        self._file = pyarrow.parquet.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )

    @property
    def written(self) -> int:
        """Bytes that the file has so far."""
        return int(self._target.tell())

    def add(self, entry: Entry, columns: Sequence[np.ndarray]) -> None:
        """Append a row.

        Args:
            entry: The sequence.
            columns: Its signal, from ``Layout.encode``.
        """
        self._waiting.append((entry, [column.tobytes() for column in columns]))
        self._bytes += entry.token_count() * self._layout.token_bytes
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is waiting, and the file's end."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow

        if not self._waiting:
            return
        entries = [entry for entry, _ in self._waiting]
        payload = zip(*(columns for _, columns in self._waiting), strict=True)
        values = [
            [entry.key for entry in entries],
            [len(entry.tokens) for entry in entries],
            [np.packbits(entry.targets).tobytes() for entry in entries],
            *map(list, payload),
        ]
        arrays = [pyarrow.array(each, type=field.type) for each, field in zip(values, self._schema, strict=True)]
        self._file.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self._waiting, self._bytes = [], 0


@contextmanager
def new_shard(path: Path, layout: Layout) -> Iterator[ShardWriter]:
    """A file to write rows to, which appears complete or not at all.

    Args:
        path: The file.
        layout: How signals are stored.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            writer = ShardWriter(file, layout)
            try:
                yield writer
            finally:
                writer.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_shard(path: Path, layout: Layout) -> Any:
    """A file to read from, mapped into memory.

    Args:
        path: The file.
        layout: How signals are stored.

    Raises:
        SettingError: It is none of ours.
        OSError: It cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        shard = pyarrow.parquet.ParquetFile(path, memory_map=True)
    except pyarrow.ArrowException as error:
        raise SettingError(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())})") from None
    if shard.schema_arrow.names != _schema(layout).names:
        shard.close()
        raise SettingError(f"{path}: not a file of this cache: its columns are {', '.join(shard.schema_arrow.names)}")
    return shard


def read_keys(shard: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a file's rows are.

    Args:
        shard: From :func:`open_shard`.

    Returns:
        Keys [R, 16], uint8; the row group of each [R]; its place in the group [R].
    """
    column = shard.read(columns=["key"], use_threads=False).column("key")
    keys = np.frombuffer(b"".join(column.to_pylist()), dtype=np.uint8).reshape(-1, KEY_BYTES)
    sizes = [shard.metadata.row_group(number).num_rows for number in range(shard.metadata.num_row_groups)]
    groups = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    places = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.zeros(0, np.int32)])
    return keys, groups, places


def read_supervised(shard: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Which positions a file's rows hold.

    Args:
        shard: From :func:`open_shard`.

    Returns:
        The supervised positions [T] of each row, in order; the first row of each row group.
    """
    table = shard.read(columns=["length", "supervised"], use_threads=False)
    rows = zip(table["length"].to_pylist(), table["supervised"].to_pylist(), strict=True)
    sizes = [shard.metadata.row_group(number).num_rows for number in range(shard.metadata.num_row_groups)]
    return [_targets(bits, length) for length, bits in rows], np.cumsum([0, *sizes[:-1]])


def read_rows(
    shard: Any, layout: Layout, rows: Sequence[tuple[int, int]]
) -> list[tuple[bytes, np.ndarray, list[np.ndarray]]]:
    """Some rows of a file.

    Args:
        shard: From :func:`open_shard`.
        layout: How signals are stored.
        rows: Row group and place of each.

    Returns:
        For each its key, its supervised positions [T], and its signal for ``Layout.decode``.
    """
    groups = sorted({group for group, _ in rows})
    table = shard.read_row_groups(groups, use_threads=False)
    starts, total = {}, 0
    for group in groups:
        starts[group] = total
        total += shard.metadata.row_group(group).num_rows
    columns = [table.column(name) for name in table.column_names]
    return [_row([column[starts[group] + place] for column in columns], layout) for group, place in rows]


def _row(values: Sequence[Any], layout: Layout) -> tuple[bytes, np.ndarray, list[np.ndarray]]:
    key, length, bits, *payload = values
    targets = _targets(bits.as_py(), length.as_py())
    sizes = [size for _, size in layout.columns]
    signal = [
        np.frombuffer(value.as_buffer(), dtype=np.uint8).reshape(-1, size)
        for value, size in zip(payload, sizes, strict=True)
    ]
    return key.as_py(), targets, signal


def _targets(bits: bytes, length: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=length).astype(bool)


def _schema(layout: Layout) -> Any:
    import pyarrow

    return pyarrow.schema(
        [
            ("key", pyarrow.binary(KEY_BYTES)),
            ("length", pyarrow.int32()),
            ("supervised", pyarrow.binary()),
            *((name, pyarrow.binary()) for name, _ in layout.columns),
        ]
    )
