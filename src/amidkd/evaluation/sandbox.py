"""Running a program that a model wrote: a process of its own, with limits, in a folder that goes away.

Limits, not a jail: they hold off what goes wrong by accident (endless loops, memory, forks, files, a stray
``rmtree``), and on Linux much of what is meant badly; a program that attacks the kernel is another matter. Where
answers may be hostile, run the evaluation in a container or a virtual machine.
"""

import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from amidkd.errors import SettingError

__all__ = ["Limits", "Outcome", "run_program"]

_OUTPUT = 16 * 1024
_PULSE = 0.02
_NOBODY = 65534
_INSIDE = Path(__file__).with_name("confined.py")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        seconds: Time, on the clock and of the processor.
        memory_mb: Address space, MiB.
        file_mb: Size of each file that it writes, MiB.
        processes: Processes and threads that it may start.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    file_mb: int = 16
    processes: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Args:
        passed: It came to its end: no exception, no exit of its own, no limit passed.
        why: What stopped it; empty where nothing did.
        output: The beginning of what it printed.
        seconds: Time it took, start of the interpreter included.
        guards: What holds here beside the limits: ``network`` ("none", "no TCP" or "open"), whether ``files`` outside
            its folder are out of reach, whether ``processes`` are limited.
    """

    passed: bool
    why: str
    output: str
    seconds: float
    guards: Mapping[str, Any] = field(default_factory=dict, compare=False)


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Run Python code in a sandbox: the standard library alone, no input, an environment with nothing of ours.

    Args:
        program: The code.
        limits: What it may use.

    Raises:
        SettingError: This system has no limits to set (Windows).

    Example:
        >>> run_program("assert 1 + 1 == 2").passed
        True
        >>> run_program("assert 1 + 1 == 3").why
        'AssertionError at `assert 1 + 1 == 3`'
    """
    if os.name != "posix":
        raise SettingError(
            "evaluation.code: programs are run with limits, which need Linux or macOS; leave it out here"
        )
    chosen = Limits() if limits is None else limits
    with tempfile.TemporaryDirectory(prefix="amidkd-", ignore_cleanup_errors=True) as folder:
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
        return _Watched(program, chosen, folder).run()


class _Watched:
    """One program under way, and what it has said so far."""

    def __init__(self, program: str, limits: Limits, folder: str) -> None:
        self._limits = limits
        self._proof = secrets.token_hex(16)
        self._output, self._said = bytearray(), bytearray()
        self._request = json.dumps(
            {
                "program": program,
                "proof": self._proof,
                "seconds": math.ceil(limits.seconds) + 1,
                "memory": limits.memory_mb << 20,
                "file": limits.file_mb << 20,
                "processes": limits.processes,
            }
        ).encode()
        reads, writes = os.pipe()
        self._control = reads
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_INSIDE), str(writes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"HOME": folder, "TMPDIR": folder, "PATH": os.defpath},
                start_new_session=True,
                pass_fds=[writes],
            )
        finally:
            os.close(writes)

    def run(self) -> Outcome:
        """Wait for the program, or end it; then end all that it has started."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                process.stdin.write(self._request)
                process.stdin.close()
            except OSError:
                process.poll()
            in_time = self._listen(process.stdout)
        finally:
            self._end()
            code = process.wait()
            self._drain(process.stdout)
            process.stdout.close()
            os.close(self._control)
        seconds = time.monotonic() - self._started
        said = self._messages()
        passed = in_time and said.get("proof") == self._proof
        why = "" if passed else self._why(said, code, in_time)
        return Outcome(passed, why, self._output.decode("utf-8", "replace"), seconds, said.get("guards", {}))

    def _listen(self, stdout: IO[bytes]) -> bool:
        """Take in what is said until the program ends; False where its time was over first."""
        with selectors.DefaultSelector() as selector:
            for descriptor, kept in self._ends(stdout):
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, kept)
            while self._process.poll() is None:
                left = self._started + self._limits.seconds - time.monotonic()
                if left <= 0:
                    return False
                if not selector.get_map():
                    time.sleep(min(left, _PULSE))
                for key, _ in selector.select(min(left, _PULSE)) if selector.get_map() else ():
                    if not _take(key.fd, key.data):
                        selector.unregister(key.fileobj)
        return True

    def _ends(self, stdout: IO[bytes]) -> tuple[tuple[int, bytearray], ...]:
        return (stdout.fileno(), self._output), (self._control, self._said)

    def _drain(self, stdout: IO[bytes]) -> None:
        for descriptor, kept in self._ends(stdout):
            # What a program has left behind could go on writing.
            for _ in range(64):
                if not _take(descriptor, kept):
                    break

    def _end(self) -> None:
        # In a tree of its own the program is the first process: without it, the kernel ends the rest. The line that
        # names it came before the program began; a program that wrote another is not to be believed.
        code = self._process.poll()
        first = next(iter(self._lines()), {}).get("pid") if code is None or code < 0 else None
        for end, number in ((os.kill, first), (os.killpg, self._process.pid)):
            if number is not None:
                try:
                    end(number, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue

    def _messages(self) -> dict[str, Any]:
        return {key: value for line in self._lines() for key, value in line.items()}

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        for line in bytes(self._said).split(b"\n"):
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                found.append(message)
        return found

    def _why(self, said: Mapping[str, Any], code: int, in_time: bool) -> str:
        if not in_time:
            return f"time: over {self._limits.seconds:g} s"
        if "why" in said:
            return str(said["why"])
        number = -code if code < 0 else code - 128
        if number in set(signal.Signals):
            return f"ended by {signal.Signals(number).name}"
        if code < 0:
            return f"ended by signal {number}"
        return f"ended itself with status {code}"


def _take(descriptor: int, kept: bytearray) -> bool:
    """Read what is there, keep the beginning; False where nothing more can come, or nothing is there."""
    try:
        chunk = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return False
    kept += chunk[: max(0, _OUTPUT - len(kept))]
    return bool(chunk)
