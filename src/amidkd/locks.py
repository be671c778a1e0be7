"""Locks between processes that no kill leaves behind: the system lets go of them with the process.

Source: flock(2).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from amidkd.errors import SettingError

__all__ = ["Lock", "hold", "try_lock"]

_PAUSE = 0.05
_SAY_AFTER = 2.0


@dataclass(frozen=True)
class Lock:
    """A lock that is held until :meth:`release`, or until the process ends.

    Args:
        path: Its file, which stays: removing it would let two processes hold one lock.
        handle: The open file.
    """

    path: Path
    handle: int

    def release(self) -> None:
        """Let go of it."""
        os.close(self.handle)


def try_lock(path: Path) -> Lock | None:
    """Take a lock, or None where another process holds it.

    Args:
        path: The lock's file; made if absent.

    Raises:
        SettingError: The file cannot be opened, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise SettingError("sweeps need a system with POSIX file locks (Linux, macOS)") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SettingError(f"cannot lock {path}: {error.strerror}; make its folder writable") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise SettingError(f"cannot lock {path}: {error.strerror}; use a file system that has locks") from None
    return Lock(path, handle)


@contextmanager
def hold(path: Path, *, patience: float | None = None, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock for a block, waiting for whoever has it.

    Args:
        path: The lock's file; made if absent.
        patience: Seconds to wait; None waits on.
        waiting: Called once where it takes more than a moment.

    Raises:
        SettingError: It is still held after ``patience``, or cannot be taken.
    """
    began, said = time.monotonic(), False
    while (lock := try_lock(path)) is None:
        waited = time.monotonic() - began
        if patience is not None and waited > patience:
            raise SettingError(
                f"{path} is locked by another process, for {waited:.0f} s now; end that process (lsof {path} names "
                "it), or wait until it is done"
            )
        if waiting is not None and not said and waited > _SAY_AFTER:
            said = True
            waiting()
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        lock.release()
