"""Runs that kill themselves with SIGKILL, on one process or on two, and what is left of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from amidkd.record import RunFolder, read_json_lines
from amidkd.training.metrics import TIME_FIELDS

SCRIPT = Path(__file__).with_name("killed_run.py")
RESUME = "training.resume_from_checkpoint=true"
_TWO = [
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--main_process_port",
    "0",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


def killed(run_file: Path, when: str, step: int, *overrides: str, processes: int = 1) -> None:
    """Run until the process kills itself: WHEN is ``step``, ``saved`` or ``saving`` (see ``killed_run.py``)."""
    words = [str(SCRIPT), str(run_file), when, str(step), *overrides]
    if processes == 2:
        words = ["-m", "accelerate.commands.launch", *_TWO, *words]
    done = _run(words)
    assert done.returncode != 0
    assert processes == 2 or done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def launched(*words: str) -> None:
    """``amidkd`` on two processes of the CPU, to its end."""
    done = _run(["-m", "accelerate.commands.launch", *_TWO, "-m", "amidkd", *words])
    assert done.returncode == 0, done.stderr[-3000:]


def lines_of(folder: RunFolder) -> list[dict]:
    """The run's log lines without what differs from one day to the next."""
    lines = read_json_lines(folder.metrics_file)
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
