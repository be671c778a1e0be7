"""A run whose student writes, killed and resumed, ends as the uninterrupted one: metrics, text and weights."""

from pathlib import Path

import pytest
import torch
import yaml
from killing import RESUME, killed, launched, lines_of

from amidkd.config import load
from amidkd.record import RunFolder
from amidkd.training import distill

WRITING = {"generation": {"max_new_tokens": 6, "temperature": 0.9, "top_k": 40}}
POLICIES = {
    "adaptive": {
        "kind": "adaptive",
        "initial_threshold": 0.7,
        "tolerance": 0.0,
        "capacity": 8,
        "replay_ratio": "constant",
        "validation_steps": 2,
    },
    "on_policy": {"kind": "on_policy", "steps_per_generation": 3},
    "contrastive": {"kind": "contrastive", "adaptive_skew": True, "beta": {"kind": "linear", "start": 0.5, "end": 1.5}},
}


def write(run_tree: dict, path: Path, policy: str) -> Path:
    """Steps 4 and 8 of 12 are saved: between two writings, and within an epoch."""
    run_tree["policy"] = {**POLICIES[policy], **WRITING}
    run_tree["student"]["config"] |= {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    run_tree["data"] |= {"validation": run_tree["data"]["train"], "label_fraction": 0.5}
    if policy == "contrastive":
        del run_tree["objective"]
    else:
        run_tree["objective"]["weighting"] = {"by": "student_entropy", "student": 1.5}
    path.write_text(yaml.safe_dump(run_tree))
    return path


def assert_same(broken: RunFolder, whole: RunFolder, *, ranks: int = 1) -> None:
    assert [line["step"] for line in lines_of(whole)] == [3, 6, 9, 12]
    assert lines_of(broken) == lines_of(whole)
    assert (broken.student / "model.safetensors").read_bytes() == (whole.student / "model.safetensors").read_bytes()
    for rank in range(ranks):
        states = [
            torch.load(folder.checkpoints()[-1] / f"policy_{rank}.pt", weights_only=True) for folder in (broken, whole)
        ]
        assert states[0] == states[1]
        assert states[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_killed_and_resumed(policy, run_tree, tmp_path) -> None:
    run_file = write(run_tree, tmp_path / "run.yaml", policy)
    whole = distill(load(run_file, [f"output={tmp_path / 'whole'}"]))
    broken = RunFolder(tmp_path / "run")
    killed(run_file, "step", 7)
    assert [path.name for path in broken.checkpoints()] == ["checkpoint-4"]
    if policy == "adaptive":
        killed(run_file, "saving", 8, RESUME)
    distill(load(run_file, [RESUME]))
    assert_same(broken, whole)
    own = [line["student_text"] for line in lines_of(whole)]
    assert max(own) > 0
    if policy == "adaptive":
        assert lines_of(whole)[-1]["threshold"] > 0.7, "the validation loss rises somewhere, so φ did"
        assert lines_of(whole)[-1]["buffer"] == 8


def test_two_ranks_killed_and_resumed(run_tree, tmp_path) -> None:
    run_tree["training"]["per_device_train_batch_size"] = 1
    run_file = write(run_tree, tmp_path / "run.yaml", "adaptive")
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    launched("distill", str(run_file), f"output={whole.path}")
    killed(run_file, "step", 7, processes=2)
    assert [path.name for path in broken.checkpoints()] == ["checkpoint-4"]
    launched("distill", str(run_file), RESUME)
    assert_same(broken, whole, ranks=2)
    # Each rank has half of the capacity, of its own text.
    buffers = [
        torch.load(whole.checkpoints()[-1] / f"policy_{rank}.pt", weights_only=True)["buffer"] for rank in (0, 1)
    ]
    assert [len(buffer) for buffer in buffers] == [4, 4]
    assert buffers[0] != buffers[1]
