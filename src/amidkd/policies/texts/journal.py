"""The answers of a shard that is not finished: one line for each batch, on disk before the next one is made."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import final

__all__ = ["Journal"]

Key = tuple[int, int]


@final
class Journal:
    """Keeps answers by row and sample as JSON lines; a line that a kill or a full disk cut off counts as not there.

    Args:
        path: The file; it is made by the first batch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._good = 0

    def read(self) -> dict[Key, list[int]]:
        """Ids of the answers saved so far, by row and sample."""
        found: dict[Key, list[int]] = {}
        self._good = 0
        for line in self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []:
            try:
                batch = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                batch = None
            if batch is None:
                break
            found |= {(row, sample): ids for row, sample, ids in batch}
            self._good += len(line)
        return found

    def append(self, answers: Mapping[Key, list[int]]) -> None:
        """Add a batch, in place of what stood after the last whole line, and flush it to disk.

        Args:
            answers: Ids by row and sample.
        """
        line = json.dumps([[row, sample, ids] for (row, sample), ids in answers.items()], separators=(",", ":"))
        data = f"{line}\n".encode()
        with self._path.open("r+b" if self._path.is_file() else "wb") as file:
            file.truncate(self._good)
            file.seek(self._good)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._good += len(data)

    def remove(self) -> None:
        """Delete the file, once the shard is there."""
        self._path.unlink(missing_ok=True)
