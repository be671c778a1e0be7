"""Several processes that work on one sweep on this machine."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from amidkd.errors import SettingError

__all__ = ["SESSION", "end_with_parent", "run_workers"]

SESSION = "AMIDKD_SWEEP_SESSION"
"""Environment variable of a worker: when its session began."""

_MOST_RESTARTS = 10
_LAST_LINES = 12


def run_workers(folder: Path, count: int, session: float) -> None:
    """Start workers and wait until they have nothing left to do; one that is killed is started again.

    Args:
        folder: The sweep's folder, with its ``run.yaml``.
        count: How many.
        session: When the session began.

    Raises:
        SettingError: A worker could not do its work; with what it said last.
        KeyboardInterrupt: The workers have been interrupted too.
    """
    running = {number: _start(folder, number, count, session) for number in range(count)}
    restarts = 0
    try:
        while running:
            time.sleep(0.2)
            for number, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[number]
                # Killed, as for memory: its trial is taken up again, or given up when it dies again and again.
                if code < 0 and restarts < _MOST_RESTARTS:
                    restarts += 1
                    running[number] = _start(folder, number, count, session)
                elif code != 0:
                    raise SettingError(f"worker {number} of the sweep ended with code {code}:\n{_said(folder, number)}")
    finally:
        _stop(running)


def _stop(running: dict[int, subprocess.Popen[bytes]]) -> None:
    """Interrupt what still runs, and wait for it."""
    import signal

    for process in running.values():
        process.send_signal(signal.SIGINT)
    for process in running.values():
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(folder: Path, number: int, count: int, session: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, SESSION: repr(session)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    device = _device(number)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with _log_of(folder, number).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "amidkd", "sweep", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )


def _device(number: int) -> str | None:
    """The GPU of a worker, where there are several: a trial has one."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(each) for each in range(count)]
    return names[number % len(names)]


def _log_of(folder: Path, number: int) -> Path:
    return folder / f"worker-{number}.log"


def _said(folder: Path, number: int) -> str:
    lines = _log_of(folder, number).read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])


def end_with_parent() -> None:
    """End this worker when the process that started it is gone: nobody would see what it does.

    It ends at once, as by a kill, which loses no more than the steps since the last checkpoint.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
