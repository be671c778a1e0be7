"""A policy changes the batch before tokens are counted, and what it remembers goes with the checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_step import rows
from tiny import VOCABULARY, byte_tokenizer, tiny_gpt2

from amidkd.config import parse
from amidkd.record import read_json_lines
from amidkd.training import DistillationTrainer, LossSettings, training_arguments


class Thinning:
    """Leaves each batch with one supervised token more than the last, at most four; remembers what it has seen."""

    def __init__(self) -> None:
        self.calls, self.seen = 0, torch.zeros(VOCABULARY)

    def __call__(self, sequences):
        self.calls += 1
        keep = 1 + self.calls % 4
        self.seen += torch.bincount(sequences.labels_N(), minlength=VOCABULARY)
        targets = sequences.targets_BT.clone()
        ranks = targets.flatten().cumsum(0).view_as(targets)
        return replace(sequences, targets_BT=targets & (ranks <= keep))

    def state(self):
        return {"calls": self.calls, "seen": self.seen}

    def load_state(self, state):
        self.calls, self.seen = state["calls"], state["seen"]


def trained(folder: Path, checkpoint: Path | None = None) -> tuple[Thinning, list[dict]]:
    config = parse(
        {
            "student": {"kind": "from_scratch", "config": {"model_type": "gpt2"}, "tokenizer": "unused"},
            "data": {"train": "unused"},
            "output": str(folder),
            "training": {
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "max_steps": 5,
                "logging_steps": 1,
                "save_steps": 3,
                "use_cpu": True,
            },
        }
    )
    policy = Thinning()
    trainer = DistillationTrainer(
        student=tiny_gpt2(2),
        tokenizer=byte_tokenizer(),
        arguments=training_arguments(config, folder),
        examples=rows(),
        loss=LossSettings(vocab_size=VOCABULARY),
        policy=policy,
    )
    trainer.fit(checkpoint)
    return policy, read_json_lines(folder / "metrics.jsonl")


def test_tokens_are_counted_after_the_policy_and_its_state_is_resumed(tmp_path) -> None:
    policy, lines = trained(tmp_path)
    totals = [line["tokens"] for line in lines]
    # Two batches a step, with 2, 3, 4, 1, 2, … tokens left.
    assert [total - before for total, before in zip(totals, [0, *totals], strict=False)] == [5, 5, 5, 5, 5]
    # The loss is the mean over those tokens, not over all that the rows had.
    assert lines[0]["loss"] == pytest.approx(lines[0]["cross_entropy"], rel=1e-5)
    resumed, again = trained(tmp_path, tmp_path / "checkpoint-3")
    assert resumed.calls == policy.calls == 10
    assert torch.equal(resumed.seen, policy.seen)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
