"""Runs with stages: what each leaves behind, and that a kill anywhere changes nothing."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amidkd.config import load
from amidkd.errors import SettingError, SettingWarning
from amidkd.policies import read_answers
from amidkd.record import RunFolder, read_json_lines
from amidkd.training import distill, sft
from amidkd.training.metrics import TIME_FIELDS

SCRIPT = Path(__file__).with_name("killed_chain.py")
RESUME = "training.resume_from_checkpoint=true"


def write_run_file(world: Path, folder: Path) -> Path:
    """A warm-up of 4 steps on corrected text, then 4 steps of which half learn from the student's own."""
    writing = {"max_new_tokens": 6, "batch_size": 8}
    tree = {
        "student": str(world / "pretrained"),
        "teacher": str(world / "teacher"),
        "data": {"train": str(world / "train.jsonl"), "max_length": 32},
        "objective": {"alpha": -0.5, "lam": 0.3},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        "stages": [
            {
                "name": "warm",
                "policy": {"kind": "warmup", "reject_threshold": 0.02, "rounds": 2, "generation": writing},
            },
            {"name": "main", "policy": {"kind": "mixed", "generation": writing}},
        ],
        "output": str(folder / "run"),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def run_file(world, tmp_path) -> Path:
    return write_run_file(world, tmp_path)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> RunFolder:
    """The run, uninterrupted."""
    return distill(load(write_run_file(world, tmp_path_factory.mktemp("whole"))))


@pytest.fixture
def finished(whole, run_file, tmp_path) -> RunFolder:
    """A copy of it where the run file says."""
    shutil.copytree(whole.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def killed(run_file: Path, where: str, *overrides: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(run_file), where, *overrides],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def lines_of(folder: Path) -> list[dict]:
    lines = read_json_lines(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


def parts_of(folder: Path) -> dict[str, bytes]:
    """All that decides what a run is: weights and written text."""
    names = ("**/student/model.safetensors", "**/*.parquet")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.glob(name)}


def test_killed_anywhere_it_ends_the_same(whole, run_file, tmp_path) -> None:
    broken = tmp_path / "run"
    killed(run_file, "corrected:2")
    assert not (broken / "stages/warm/metrics.jsonl").exists()
    killed(run_file, "saved:warm", RESUME)
    assert not (broken / "metrics.jsonl").exists()
    # Only the run folder is named from here on: its run.yaml is the whole run file.
    killed(broken, "run:3", RESUME)
    assert lines_of(broken)[-1]["step"] == 2
    done = distill(load(broken, [RESUME]))

    assert parts_of(broken) == parts_of(whole.path)
    assert set(parts_of(broken)) > {"student/model.safetensors", "stages/warm/student/model.safetensors"}
    for part in (".", "stages/warm"):
        assert lines_of(broken / part) == lines_of(whole.path / part)
    for folder in (done, whole):
        chain = folder.record()["chain"]
        assert [(stage["name"], stage["folder"], stage["policy"], stage["steps"]) for stage in chain] == [
            ("warm", "stages/warm", "warmup", 4),
            ("main", ".", "mixed", 4),
        ]
        assert all(stage["seconds"] > 0 for stage in chain)
    counts = [RunFolder(f / "stages/warm").record()["stages"]["corrections"] for f in (broken, whole.path)]
    assert {**counts[0], "seconds": 0} == {**counts[1], "seconds": 0}


def test_the_warm_up_trains_on_the_corrected_text(whole) -> None:
    folder = RunFolder(whole.path / "stages/warm")
    drafts, texts = read_answers(folder.drafts), read_answers(folder.corrected)
    changed = [
        text for draft, text in zip(drafts, texts, strict=True) if text.completion_tokens != draft.completion_tokens
    ]
    counts = folder.record()["stages"]["corrections"]
    assert 0 < len(changed) <= counts["rejected"] <= counts["prompts"] == len(drafts) == 22
    assert {draft.origin for draft in drafts} == {"student"}
    assert {text.origin for text in texts} == {"teacher"}
    assert counts["tokens_in_all"] == sum(text.length for text in texts)
    assert 0 < counts["tokens_rewritten"] <= counts["tokens_in_all"]
    # One epoch of 11 batches of two rows, two to a step: 4 steps see 16 of the 22 texts.
    seen = folder.record()["stages"]["distill"]["tokens"]
    assert 16 <= seen <= 16 * 6
    assert "divergence" not in lines_of(folder.path)[-1], "cross-entropy alone"


def test_every_folder_is_a_run_of_its_own(whole) -> None:
    stage = whole.path / "stages/warm"
    alone = load(stage)
    assert (alone.output.folder, alone.policy.kind, alone.stages) == (str(stage), "warmup", None)
    assert len(load(whole.path).stages) == 2


def test_the_card_names_what_the_first_stage_started_from(whole) -> None:
    card = (whole.student / "README.md").read_text()
    assert "`pretrained`" in card
    assert "derives from the weights of `pretrained`" in card


def test_a_complete_stage_is_left_as_it_is_and_its_settings_hold(finished, run_file) -> None:
    folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.path.glob("stages/**/*") if path.is_file()}
    with pytest.raises(SettingError, match=r"stages/warm holds a finished run"):
        distill(load(run_file))
    with pytest.raises(SettingError, match=r"policy\.reject_threshold: 0\.02 there, 0\.3 now"):
        distill(load(run_file, [RESUME, "stages.warm.policy.reject_threshold=0.3"]))
    with pytest.raises(SettingError, match=r"lies in the folder of none of the stages"):
        distill(load(run_file, ["training.resume_from_checkpoint=elsewhere/checkpoint-2"]))
    distill(load(run_file, [RESUME]))
    named = folder.path / "checkpoint-2"
    weights = (folder.student / "model.safetensors").read_bytes()
    distill(load(run_file, [f"training.resume_from_checkpoint={named}"]))
    assert (folder.student / "model.safetensors").read_bytes() == weights
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_student_in_between_is_noticed(finished, run_file) -> None:
    student = finished.path / "stages/warm/student/model.safetensors"
    data = bytearray(student.read_bytes())
    data[-1] ^= 1
    student.write_bytes(bytes(data))
    with pytest.raises(SettingError, match=r"contents\.student"):
        distill(load(run_file, [RESUME]))


def test_stages_of_other_verbs_objectives_and_precision(run_file) -> None:
    overrides = [
        "stages=[{verb: sft, training: {bf16: true, max_steps: 2}}, {objective: {alpha: -1}, training: {max_steps: 2}}]"
    ]
    folder = distill(load(run_file, overrides))
    assert [stage["verb"] for stage in folder.record()["chain"]] == ["sft", "distill"]
    assert folder.record()["config"]["objective"]["alpha"] == -1
    assert (folder.path / "stages/1/student/README.md").is_file()


def test_bad_stages_stop_before_any_work(run_file, tmp_path) -> None:
    with pytest.raises(SettingError, match=r"stages\[2\] \(main\): training\.save_strategy"):
        distill(load(run_file, ["stages.main.training.save_strategy=sometimes"]))
    with pytest.raises(SettingError, match="run them with amidkd distill"):
        sft(load(run_file))
    assert not (tmp_path / "run").exists()


def test_a_warm_up_alone_and_as_fine_tuning(run_tree, world, tmp_path) -> None:
    run_tree["training"] |= {"max_steps": 2}
    run_tree["student"] = str(world / "pretrained")
    run_tree["policy"] = {"kind": "warmup", "reject_threshold": 0.02, "generation": {"max_new_tokens": 6}}
    path = tmp_path / "alone.yaml"
    path.write_text(yaml.safe_dump(run_tree))
    alone = distill(load(path))
    tuned = sft(load(path, [f"output={tmp_path / 'tuned'}"]))
    assert parts_of(alone.path) == parts_of(tuned.path)
    with pytest.raises(SettingError, match="warmup needs a `teacher`"):
        sft(load(path, ["teacher=null", f"output={tmp_path / 'nobody'}"]))


def test_nothing_to_correct_is_said(run_tree, world, tmp_path) -> None:
    run_tree["training"] |= {"max_steps": 1}
    run_tree["student"] = str(world / "pretrained")
    run_tree["policy"] = {"kind": "warmup", "reject_threshold": 1e-12, "generation": {"max_new_tokens": 4}}
    path = tmp_path / "likely.yaml"
    path.write_text(yaml.safe_dump(run_tree))
    with pytest.warns(SettingWarning, match="nothing was corrected; raise it"):
        folder = distill(load(path))
    counts = folder.record()["stages"]["corrections"]
    assert (counts["rejected"], counts["mean_position"], counts["tokens_rewritten"]) == (0, None, 0)
