"""``accelerate launch -m amidkd distill`` on two processes: all stages, and resume."""

import shutil

import pytest
import yaml
from killing import launched, lines_of

from amidkd.config import load
from amidkd.record import RunFolder
from amidkd.training import distill


def test_two_processes_make_one_run_and_resume_it_exactly(run_tree, tmp_path) -> None:
    run_tree["data"]["label_fraction"] = 0.5
    run_tree["student"]["warm_start"] = {"max_steps": 2}
    run_tree["training"] |= {"per_device_train_batch_size": 1, "max_steps": 8, "logging_steps": 3, "save_steps": 2}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_tree))
    launched("distill", str(path), f"output={tmp_path / 'two'}")
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
    launched("distill", str(path), f"output={two.path}", "training.resume_from_checkpoint=true")
    assert lines_of(two) == expected
    assert (two.student / "model.safetensors").read_bytes() == weights
