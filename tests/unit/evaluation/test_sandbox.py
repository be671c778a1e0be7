"""Programs that go wrong in every way, in the sandbox."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amidkd.evaluation.sandbox import Limits, run_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs Linux or macOS")

SMALL = Limits(seconds=8, memory_mb=256, file_mb=1)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="held by the kernel of Linux alone")


def need_guard(name: str, value: object) -> None:
    found = run_program("").guards
    if found.get(name) != value:
        pytest.skip(f"this kernel does not hold it here: {found}")


def test_a_program_passes_where_it_comes_to_its_end() -> None:
    outcome = run_program("print('done')\nassert 1 + 1 == 2", SMALL)
    assert outcome.passed
    assert outcome.why == ""
    assert outcome.output == "done\n"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (
            "def f():\n    return 1\nassert f() == 2, 'not two'",
            "AssertionError: not two at `assert f() == 2, 'not two'`",
        ),
        ("def f(:", "SyntaxError: invalid syntax (answer.py, line 1)"),
        ("import sys\nsys.exit(0)", "SystemExit: 0 at `sys.exit(0)`"),
        ("import os\nos._exit(0)", "ended itself with status 0"),
        ("import ctypes\nctypes.string_at(0)", "ended by SIGSEGV"),
        ("input()", "EOFError: EOF when reading a line at `input()`"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded at `def f(): f()`"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy' at `import numpy`"),
    ],
)
def test_whatever_ends_a_program_early_is_named(program: str, why: str) -> None:
    outcome = run_program(program, SMALL)
    assert not outcome.passed
    assert outcome.why == why


def test_an_endless_loop_ends_with_its_time_whatever_it_catches() -> None:
    program = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException: pass
"""
    started = time.monotonic()
    outcome = run_program(program, Limits(seconds=1))
    assert outcome.why == "time: over 1 s"
    assert time.monotonic() - started < 4


@linux
def test_memory_and_files_have_limits() -> None:
    assert run_program("x = []\nwhile True: x.append('a' * 2**20)", SMALL).why.startswith("MemoryError")
    program = "f = open('big', 'wb')\nfor _ in range(64): f.write(b'x' * 2**16)\nf.close()"
    assert "File too large" in run_program(program, SMALL).why
    assert run_program("open('small', 'w').write('x' * 1000)", SMALL).passed


def test_of_much_output_the_beginning_is_kept_and_the_program_goes_on() -> None:
    outcome = run_program("for number in range(50_000): print('line', number)", SMALL)
    assert outcome.passed
    assert outcome.output.startswith("line 0\nline 1\n")
    assert len(outcome.output) == 16 * 1024


def test_a_fork_bomb_is_refused() -> None:
    need_guard("processes", True)
    started = time.monotonic()
    outcome = run_program("import os\nwhile True: os.fork()", SMALL)
    assert outcome.why.startswith("BlockingIOError")
    assert time.monotonic() - started < 5
    assert (
        "can't start new thread" in run_program("import threading\nthreading.Thread(target=print).start()", SMALL).why
    )


def test_what_a_program_leaves_behind_ends_with_it() -> None:
    need_guard("network", "none")
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
time.sleep(60)
"""
    outcome = run_program(program, Limits(seconds=1, processes=4))
    assert outcome.why == "time: over 1 s"
    # The kernel ends them; on a busy machine that takes a moment.
    patience = time.monotonic() + 5
    while _left_behind() and time.monotonic() < patience:
        time.sleep(0.05)
    assert _left_behind() == []


def _left_behind() -> list[str]:
    return [
        folder.name
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and b"confined.py" in _command(folder) and _parent(folder) in (1, os.getpid())
    ]


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


def _parent(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return -1


def test_nothing_of_ours_is_in_its_environment_or_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    program = "import os\nprint(sorted(os.environ), os.listdir('.'))\nopen('mine', 'w').write('x')"
    outcome = run_program(program, SMALL)
    assert outcome.passed
    names, files = outcome.output.split("] [")
    assert "SECRET_KEY" not in names
    assert files.strip() == "]"
    assert run_program("import os\nassert os.listdir('.') == []", SMALL).passed


@linux
def test_it_cannot_write_or_read_elsewhere(tmp_path: Path) -> None:
    need_guard("files", True)
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    os.chmod(tmp_path, 0o777)
    assert run_program(f"print(open({str(secret)!r}).read())", SMALL).why.startswith("PermissionError")
    assert run_program(f"open({str(tmp_path / 'new')!r}, 'w')", SMALL).why.startswith("PermissionError")
    assert run_program(f"import os\nos.remove({str(secret)!r})", SMALL).why.startswith("PermissionError")
    assert secret.read_text() == "hunter2"


@linux
def test_it_has_no_network() -> None:
    need_guard("network", "none")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        assert "Error" in run_program(program, SMALL).why


def test_a_program_cannot_say_that_it_passed() -> None:
    program = """
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b'{"proof": "0"}\\n')
    except OSError:
        pass
os._exit(0)
"""
    assert not run_program(program, SMALL).passed


SAY = "import os\nfor place in range(3, 64):\n    try: os.write(place, {line!r})\n    except OSError: pass\n"


def test_a_program_cannot_say_whom_to_end() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        line = json.dumps({"pid": bystander.pid}).encode() + b"\n"
        run_program(SAY.format(line=line) + "while True: pass", Limits(seconds=1))
        run_program(SAY.format(line=line), SMALL)
        assert bystander.poll() is None
        bystander.communicate(b"\n")


@pytest.mark.parametrize("line", [b"5\n", b'{"pid": "abc"}\n', b"[1]\n", b"[" * 5000 + b"\n"])
def test_whatever_a_program_says_the_evaluation_goes_on(line: bytes) -> None:
    assert run_program(SAY.format(line=line) + "assert False", SMALL).why.startswith("AssertionError")
