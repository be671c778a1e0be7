"""``accelerate launch -m amidkd distill`` on two processes: all stages, and resume."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from amidkd.config import load
from amidkd.record import RunFolder, read_json_lines
from amidkd.training import distill
from amidkd.training.metrics import TIME_FIELDS


def launch(*words: str) -> None:
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "amidkd", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def lines_of(folder: RunFolder) -> list[dict]:
    lines = read_json_lines(folder.metrics_file)
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


def test_two_processes_make_one_run_and_resume_it_exactly(run_tree, tmp_path) -> None:
    run_tree["data"]["label_fraction"] = 0.5
    run_tree["student"]["warm_start"] = {"max_steps": 2}
    run_tree["training"] |= {"per_device_train_batch_size": 1, "max_steps": 8, "logging_steps": 3, "save_steps": 2}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_tree))
    launch("distill", str(path), f"output={tmp_path / 'two'}")
    two = RunFolder(tmp_path / "two")
    assert two.record()["processes"] == 2
    assert list(two.record()["stages"]) == ["answers", "warm_start", "distill"]

    one = distill(load(path, [f"output={tmp_path / 'one'}", "training.per_device_train_batch_size=2"]))
    for mine, other in zip(lines_of(one), lines_of(two), strict=True):
        assert mine.keys() == other.keys()
        # Without the dropout of GPT-2's configuration the two would agree to rounding; here they share only the rows.
        assert (mine["step"], mine["tokens"], mine["alpha"]) == (other["step"], other["tokens"], other["alpha"])
        assert mine["entropy_teacher"] == pytest.approx(other["entropy_teacher"], rel=1e-5)

    expected, weights = lines_of(two), (two.student / "model.safetensors").read_bytes()
    shutil.rmtree(two.student)
    shutil.rmtree(two.path / "checkpoint-8")
    two.update_record(finished=None)
    launch("distill", str(path), f"output={two.path}", "training.resume_from_checkpoint=true")
    assert lines_of(two) == expected
    assert (two.student / "model.safetensors").read_bytes() == weights
