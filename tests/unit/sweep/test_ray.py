"""Trials on a Ray cluster: a local one of two workers, and what its driver does with what trials say."""

import importlib.util
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amidkd.errors import SettingError
from amidkd.sweep import ray as on_ray
from amidkd.sweep import run_sweep
from amidkd.sweep.goals import Goal
from amidkd.sweep.study import SweepStudy

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray Tune: pip install 'amidkd[ray]'"
)


def study_of(config) -> SweepStudy:
    return SweepStudy(config, [Goal("nll", "minimize")], time.time())


def states(folder: Path) -> list[str]:
    return [trial["state"] for trial in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["trials"]]


@pytest.fixture
def two_workers(monkeypatch) -> Iterator[None]:
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=2, object_store_memory=100 * 1024**2, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_two_workers_run_a_sweep_and_a_failure_is_recorded(sweep_config, two_workers, capsys) -> None:
    config = sweep_config(
        sweep={"space": {"training.learning_rate": [0.01, 1e38], "objective.alpha": [-1.0]}, "ray": {}}
    )
    assert run_sweep(config) == 0
    folder = Path(config.output.folder)
    found = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    by_rate = {trial["params"]["training.learning_rate"]: trial for trial in found["trials"]}
    assert by_rate[0.01]["state"] == "complete"
    assert by_rate[0.01]["values"]["nll"] == pytest.approx(by_rate[0.01]["metrics"]["nll"]["value"])
    assert (folder / by_rate[0.01]["folder"] / "seed-42" / "record.json").is_file()
    assert by_rate[1e38]["state"] == "failed"
    assert by_rate[1e38]["error"].startswith("LossError: the loss or its gradient is not finite")
    error = (folder / by_rate[1e38]["folder"] / "error.txt").read_text(encoding="utf-8")
    assert "stopping.py" in error, "the traceback of the worker"
    assert (folder / "best.yaml").is_file()
    assert not (folder / "ray").exists()
    assert "1 failed" in capsys.readouterr().out


def test_a_trial_that_falls_behind_is_stopped_and_one_that_says_nothing_has_died(sweep_config) -> None:
    pruner = {"kind": "median", "every": 1, "startup_trials": 1}
    space = {"objective.alpha": [-1.0, 0.0, 0.5, 1.0]}
    config = sweep_config(sweep={"space": space, "sampler": "grid", "pruner": pruner})
    trials = on_ray._Trials(study_of(config), room=2)
    assert trials.next("a") == {
        "number": 0,
        "task": json.dumps({"params": {"objective.alpha": -1.0}, "folder": str(trials.claims["a"][0].folder)}),
    }
    assert trials.next("b") is not None
    assert trials.next("c") is None
    assert not trials.over, "no room for a third"
    result = {"metrics": {"nll": {"value": 1.0, "errors": []}}, "seconds": 1.0, "tokens": 5, "steps": 2, "runs": []}
    assert not trials.told("a", {"step": 1, "validation_loss": 1.0})
    assert not trials.told("a", {"outcome": json.dumps({"result": result})})
    trials.ended("a")
    assert trials.told("b", {"step": 1, "validation_loss": 5.0}), "worse than the median"
    assert trials.told("b", {"step": 2, "validation_loss": 5.0}), "and not told twice"
    assert trials.next("c") is not None
    trials.ended("c")
    assert trials.next("d") is not None
    trials.let_go()
    assert states(trials.study.folder)[:3] == ["complete", "pruned", "failed"]
    errors = [entry["error"] for entry in json.loads((trials.study.folder / "sweep.json").read_text())["trials"]]
    assert errors[2] == "RuntimeError: its Ray worker died 3 times (killed, or out of memory)"
    # Another session takes up the last one where it was.
    claim = study_of(config).claim()
    assert claim is not None
    assert (claim.number, claim.resumed) == (3, True)


def test_a_full_disk_is_no_trials_fault(sweep_config) -> None:
    trials = on_ray._Trials(study_of(sweep_config()), room=1)
    assert trials.next("a") is not None
    trials.told("a", {"outcome": json.dumps({"full": [28, "No space left on device"]})})
    assert isinstance(trials.full, OSError)
    assert trials.next("b") is None
    assert trials.over
    assert states(trials.study.folder) == ["running"]


@pytest.mark.parametrize(
    ("given", "there", "workers", "expected"),
    [
        ({}, {"CPU": 8.0}, 1, 8),
        ({"cpus": 3}, {"CPU": 8.0}, 1, 2),
        ({"gpus": 0.5}, {"CPU": 8.0, "GPU": 1.0}, 1, 2),
        ({}, {"CPU": 8.0}, 3, 3),
        ({"address": "auto", "gpus": 1}, {"CPU": 8.0}, 1, 1),
    ],
)
def test_as_many_trials_as_there_is_room_for(sweep_config, given, there, workers, expected) -> None:
    settings = sweep_config(sweep={"ray": given}).sweep.ray
    assert on_ray._room(settings, there, workers) == expected


def test_a_machine_without_what_a_trial_asks_for_is_refused(sweep_config) -> None:
    settings = sweep_config(sweep={"ray": {"gpus": 1}}).sweep.ray
    with pytest.raises(SettingError, match=r"sweep\.ray\.gpus: a trial asks for 1, and this machine has 0"):
        on_ray._room(settings, {"CPU": 2.0}, 1)


def test_without_ray_the_extra_is_named(sweep_config, monkeypatch) -> None:
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install \"amidkd\[ray\]\""):
        on_ray.require_ray(sweep_config(sweep={"ray": {}}).sweep.ray)


@needs_ray
def test_an_address_where_nothing_answers_is_refused_at_once(sweep_config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = sweep_config(sweep={"ray": {"address": address}}).sweep.ray
        with pytest.raises(SettingError, match=rf"sweep\.ray\.address: no Ray cluster at {address}: "):
            on_ray.require_ray(settings)
