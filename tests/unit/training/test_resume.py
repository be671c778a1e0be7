"""A run that was killed and resumed ends where the uninterrupted run ends, to the last bit."""

from pathlib import Path

import pytest
import yaml
from killing import RESUME, killed, lines_of

from amidkd.config import load
from amidkd.errors import SettingError
from amidkd.record import RunFolder
from amidkd.training import distill


@pytest.fixture
def run_file(run_tree, world, tmp_path) -> Path:
    """Dropout, accumulation, a corpus, schedules (one that follows the loss), a warm start.

    Steps 4 and 8 of 12 are saved; neither is a step that is logged, and both lie within an epoch.
    """
    run_tree["student"]["config"] |= {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    run_tree["student"]["warm_start"] = {"max_steps": 3}
    run_tree["data"]["corpus"] = {"source": str(world / "corpus.jsonl"), "max_length": 24, "batch_size": 3}
    run_tree["objective"] = {
        "alpha": {"kind": "linear", "start": 1.0, "end": -2.0},
        "lam": {"kind": "adaptive", "start": 0.2, "rate": 0.2},
        "cross_entropy_weight": 0.1,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_tree))
    return path


def test_killed_and_resumed_is_identical(run_file, tmp_path) -> None:
    whole = distill(load(run_file, [f"output={tmp_path / 'whole'}"]))
    broken = RunFolder(tmp_path / "run")

    # After a log line that the last checkpoint knows nothing of.
    killed(run_file, "step", 7)
    assert [path.name for path in broken.checkpoints()] == ["checkpoint-4"]
    assert [line["step"] for line in lines_of(broken)] == [3, 6]
    # Right after a checkpoint, then in the middle of writing the last one.
    killed(run_file, "saved", 8, RESUME)
    assert [path.name for path in broken.checkpoints()] == ["checkpoint-4", "checkpoint-8"]
    killed(run_file, "saving", 12, RESUME)
    assert [path.name for path in broken.checkpoints()] == ["checkpoint-4", "checkpoint-8"]
    assert (broken.path / ".checkpoint-12.tmp").is_dir()
    distill(load(run_file, [RESUME]))

    assert [line["step"] for line in lines_of(whole)] == [3, 6, 9, 12]
    assert lines_of(broken) == lines_of(whole)
    for name in ("student", "warm_start/student"):
        weights = [(folder.path / name / "model.safetensors").read_bytes() for folder in (broken, whole)]
        assert weights[0] == weights[1]
    assert not list(broken.path.glob(".checkpoint-*"))
    stage, expected = (folder.record()["stages"]["distill"] for folder in (broken, whole))
    assert (stage["steps"], stage["tokens"], stage["loss"]) == (12, expected["tokens"], expected["loss"])
    assert broken.record()["finished"]


def test_killed_before_the_first_checkpoint_starts_afresh(run_file, tmp_path) -> None:
    killed(run_file, "step", 2)
    whole = distill(load(run_file, [f"output={tmp_path / 'whole'}"]))
    resumed = distill(load(run_file, [RESUME]))
    assert lines_of(resumed) == lines_of(whole)
    assert (resumed.student / "model.safetensors").read_bytes() == (whole.student / "model.safetensors").read_bytes()


def test_full_disk_in_mid_save_leaves_the_last_checkpoint(run_file, tmp_path, monkeypatch) -> None:
    import torch

    write, folder = torch.save, RunFolder(tmp_path / "run")

    def full(value, path, *rest, **options):
        if "checkpoint-8" in str(path) and str(path).endswith("scheduler.pt"):
            raise OSError(28, "No space left on device", str(path))
        write(value, path, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        distill(load(run_file))
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-4"]
    assert not list(folder.path.glob(".checkpoint-*")), "what was half written takes room on a full disk"
    monkeypatch.undo()
    whole = distill(load(run_file, [f"output={tmp_path / 'whole'}"]))
    distill(load(run_file, [RESUME]))
    assert lines_of(folder) == lines_of(whole)


def test_another_run_is_never_overwritten_or_mixed(run_file, tmp_path) -> None:
    folder = distill(load(run_file, ["training.max_steps=4"]))
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    with pytest.raises(SettingError, match=r"holds a finished run.*resume_from_checkpoint=true"):
        distill(load(run_file, ["training.max_steps=4"]))
    with pytest.raises(SettingError) as caught:
        distill(load(run_file, [RESUME, "training.max_steps=4", "objective.cross_entropy_weight=0.5"]))
    assert "objective.cross_entropy_weight: 0.1 there, 0.5 now" in str(caught.value)
    data = tmp_path / "other.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 30)
    with pytest.raises(SettingError, match=r"contents\.data"):
        distill(load(run_file, [RESUME, "training.max_steps=4", f"data.train={data}"]))
    # Reporting may differ; a finished run has nothing left to do.
    distill(load(run_file, [RESUME, "training.max_steps=4", "training.logging_steps=1"]))
    with pytest.raises(SettingError, match="is no checkpoint of the run folder"):
        distill(load(run_file, ["training.resume_from_checkpoint=elsewhere/checkpoint-3", "training.max_steps=4"]))
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_finished_training_without_a_student_is_only_saved(run_file, tmp_path) -> None:
    import shutil

    folder = distill(load(run_file, ["training.max_steps=4"]))
    weights = (folder.student / "model.safetensors").read_bytes()
    shutil.rmtree(folder.student)
    folder.update_record(finished=None)
    again = distill(load(run_file, ["training.max_steps=4", RESUME]))
    assert (again.student / "model.safetensors").read_bytes() == weights
    assert again.record()["stages"]["distill"]["steps"] == 4
