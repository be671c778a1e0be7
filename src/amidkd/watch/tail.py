"""Files that another process is writing: what is new in them, and how old it is."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

__all__ = ["JsonFile", "Tail", "age_of"]


@final
class Tail:
    """Rows of a file of JSON lines as they come; a line is read once, when its end is there.

    A file that became shorter, or was replaced, is read anew (another of its ``versions``): a run that goes on from a
    checkpoint cuts what came after it.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.unreadable = 0
        self.versions = 0
        self._offset = 0
        self._file: tuple[int, int] | None = None

    def read(self) -> bool:
        """Take up what is new.

        Returns:
            Whether ``rows`` changed.
        """
        try:
            with self.path.open("rb") as file:
                status = self.path.stat()
                found = (status.st_dev, status.st_ino)
                fresh = found != self._file or status.st_size < self._offset
                if fresh:
                    self._file = found
                    self._start_anew()
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            gone = bool(self.rows)
            self._file = None
            self._start_anew()
            return gone
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._take(whole.splitlines())
        return fresh or bool(whole)

    def _start_anew(self) -> None:
        self._offset, self.rows, self.unreadable = 0, [], 0
        self.versions += 1

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                self.rows.append(row)
            else:
                self.unreadable += 1


@final
class JsonFile:
    """A JSON object that is replaced as a whole now and then.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.value: dict[str, Any] = {}
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> bool:
        """Take up the newest version.

        Returns:
            Whether there was a new one.
        """
        try:
            status = self.path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return False
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            gone = self._seen is not None
            self.value, self._seen = {}, None
            return gone
        except ValueError:
            # Written by hand, or by something that does not rename into place: the next look may find it whole.
            return False
        self.value, self._seen = (value if isinstance(value, dict) else {}), seen
        return True


def age_of(paths: Iterable[Path]) -> float | None:
    """Seconds since the newest of some files was written; None where none is there.

    Args:
        paths: The files.
    """
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(0.0, time.time() - max(times)) if times else None
