"""The Triton row kernel in triton's interpreter: `triton_cases`, in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amidkd.kernels.triton_rows import triton_missing

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton (pip install triton)")
def test_every_case_under_the_interpreter():
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    path = os.pathsep.join([str(HERE.parents[1] / "laws"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "triton_cases.py"],
        cwd=HERE,
        env=own | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_reason_is_in_words(monkeypatch):
    from amidkd.kernels import triton_rows

    triton_rows._not_installed.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in triton_missing()
    triton_rows._not_installed.cache_clear()
