"""A run in the terminal and in a pipe."""

import io
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console
from watched_folders import GONE, begin, finish, log, trial, write_sweep

from amidkd.watch.run import follow
from amidkd.watch.runs import RunFollower
from amidkd.watch.terminal import show_in_terminal, sparkline


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0], 20) == "█▁"
    assert sparkline([2.0, 2.0, 2.0], 20) == "▁▁▁"
    assert sparkline([], 20) == ""
    # Each mark is the mean of its neighbours: one outlier among many does not fill the line.
    many = sparkline([0.0] * 500 + [1.0] * 500, 10)
    assert many == "▁" * 5 + "█" * 5
    assert len(sparkline(list(range(7)), 5)) == 5


def shown(monkeypatch: pytest.MonkeyPatch, follower: Any, *, terminal: bool, sleep: Any, width: int = 120) -> str:
    """What is printed until the run is over."""
    made = Console

    def console(**_: Any) -> Console:
        return made(file=output, force_terminal=terminal, width=width, height=60, _environ={})

    output = io.StringIO()
    monkeypatch.setattr("rich.console.Console", console)
    show_in_terminal(follower, sleep=sleep)
    return output.getvalue()


def test_in_a_pipe_lines_come_until_the_run_is_done(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = begin(tmp_path / "run")
    log(folder.path, range(1, 11))
    folder.update_record(warnings=[{"at": "now", "text": "a [bold] warning"}])
    sleeps = []

    def sleep(_: float) -> None:
        sleeps.append(1)
        log(folder.path, range(10 + len(sleeps), 11 + len(sleeps)))
        if len(sleeps) == 5:
            finish(folder)

    lines = shown(monkeypatch, RunFollower(folder.path), terminal=False, sleep=sleep, width=30).splitlines()
    assert lines[0] == "warning: a [bold] warning"
    assert lines[1] == (
        "run: Under way (distill: step 10 of 40, about 15 s left). "
        "Loss 1.213, KL(teacher‖student) 0.5, 1.23 k tokens/s, 321 MiB."
    )
    # The lines in between are too soon after the first.
    assert lines[2] == "run: Done, in 20 s; not evaluated yet."
    assert lines[-1] == "Next: amidkd eval run"
    assert len(sleeps) == 5


def test_in_a_pipe_a_run_that_was_killed_is_the_end(tmp_path, monkeypatch) -> None:
    folder = begin(tmp_path / "run", process=GONE)
    log(folder.path, range(1, 11))
    printed = shown(monkeypatch, RunFollower(folder.path), terminal=False, sleep=lambda _: pytest.fail("it waits"))
    assert "its process has ended" in printed
    assert "training.resume_from_checkpoint=true" in printed


def test_on_a_terminal_there_are_bars_and_sparklines(tmp_path, monkeypatch) -> None:
    folder = begin(tmp_path / "run")
    log(folder.path, range(1, 11))
    printed = shown(monkeypatch, RunFollower(folder.path), terminal=True, sleep=lambda _: finish(folder))
    for part in ("running", "step 10 of 40", "━", "█", "▁", "Loss", "321 MiB", "done"):
        assert part in printed


def test_an_interrupt_ends_the_watching_alone(tmp_path, monkeypatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    printed = shown(monkeypatch, RunFollower(tmp_path / "run"), terminal=True, sleep=interrupt)
    assert "No longer watching; the run goes on." in printed


def test_a_long_sweep_shows_its_best_and_its_newest(tmp_path, monkeypatch) -> None:
    trials = [trial(n, "complete", float(n), values={"nll": 0.5 + n}) for n in range(40)]
    write_sweep(tmp_path, trials, best=[0], stopped="the budget is used")
    printed = shown(monkeypatch, follow(tmp_path), terminal=True, sleep=lambda _: None)
    assert "done, best" in printed
    assert "27 earlier trials are not shown" in printed


def test_the_command_in_a_pipe(tmp_path) -> None:
    folder = begin(tmp_path / "run", process=GONE)
    log(folder.path, range(1, 41))
    finish(folder)
    done = subprocess.run(
        [sys.executable, "-m", "amidkd", "watch", str(folder.path), "--tui"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("run: Done, in 20 s")
    assert "\x1b" not in done.stdout
