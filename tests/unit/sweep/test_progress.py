"""What is shown while a sweep runs: lines in a pipe, a table on a terminal."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amidkd.sweep.progress import Progress, best_line, counts_line, remaining


def trial(number: int, state: str, nll: float | None = None, **more: Any) -> dict[str, Any]:
    metrics = {} if nll is None else {"nll": {"value": nll, "errors": [{"over": "prompts", "stderr": 0.01, "n": 9}]}}
    return {
        "number": number,
        "state": state,
        "params": {"objective.alpha": -0.5 * number},
        "folder": f"trials/{number:04d}",
        "values": {} if nll is None else {"nll": nll},
        "metrics": metrics,
        "elapsed": None if state == "running" else 10.0,
        "resumed": 0,
        "error": "ValueError: odd\nmore" if state == "failed" else None,
        "steps": 40,
        "runs": [],
        **more,
    }


def sweep(*trials: dict[str, Any], best: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "name": "one",
        "space": {"objective.alpha": {"choices": [0.0, -0.5]}},
        "objective": [{"metric": "nll", "direction": "minimize"}],
        "expected_trials": 5,
        "trials": list(trials),
        "best": list(best),
    }


FOUND = sweep(
    trial(0, "complete", 0.5), trial(1, "pruned"), trial(2, "failed"), trial(3, "running", resumed=1), best=(0,)
)


def test_counts_the_best_and_the_time_that_is_left() -> None:
    assert counts_line(FOUND) == "3 of 5 trials done, 1 running, 1 pruned, 1 failed"
    assert best_line(FOUND) == "Best so far: trial 0, objective.alpha = -0: nll 0.500 ± 0.010 over prompts"
    # Two of five are left, at 10 s each, two at a time.
    assert remaining(FOUND, 2) == pytest.approx(10.0)
    assert remaining({**FOUND, "expected_trials": None}, 1) is None
    assert remaining(sweep(trial(0, "running")), 1) is None


def test_a_pipe_gets_a_line_for_each_event(tmp_path: Path) -> None:
    text = io.StringIO()
    (tmp_path / "sweep.json").write_text(json.dumps(sweep(trial(0, "complete", 0.5), best=(0,))))
    with Progress(tmp_path, 1, Console(file=text, width=200)):
        (tmp_path / "sweep.json").write_text(json.dumps(FOUND))
    said = text.getvalue().splitlines()
    assert said[0].startswith("Going on: 1 of 5 trials done. Best so far: trial 0")
    events = [line for line in said[1:] if line.startswith("Trial")]
    assert events == [
        "Trial 1 begins: objective.alpha = -0.5",
        "Trial 1 given up at step 40, 10 s",
        "Trial 2 begins: objective.alpha = -1",
        "Trial 2 failed: ValueError: odd; all of it in trials/0002/error.txt",
        "Trial 3 goes on: objective.alpha = -1.5",
    ]


def test_a_terminal_gets_a_table_with_the_step_of_what_runs(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(FOUND))
    run = tmp_path / "trials" / "0003" / "seed-42"
    run.mkdir(parents=True)
    (run / "progress.json").write_text(json.dumps({"stage": "distill", "step": 20, "steps": 80}))
    (run / "metrics.jsonl").write_text('{"step": 10, "loss": 1.5}\n{"step": 20, "loss": 1.25}\n{"step"')
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=140, color_system=None)
    with Progress(tmp_path, 1, console):
        pass
    screen = text.getvalue()
    assert "seed-42, distill 20/80, loss 1.25" in screen
    assert "0 ★" in screen
    assert "Trial 2 failed: ValueError: odd" in screen
    assert "about 20 s left" in screen
