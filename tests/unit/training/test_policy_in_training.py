"""A policy chooses the rows before tokens are counted, and what it remembers goes with the checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_step import rows
from tiny import VOCABULARY, byte_tokenizer, tiny_gpt2

from amidkd.config import parse
from amidkd.data import Example
from amidkd.generation import GenerationError
from amidkd.policies import StepPlan
from amidkd.record import RunFolder, read_json_lines
from amidkd.training import DistillationTrainer, LossSettings, training_arguments
from amidkd.training.batches import EpochBatches
from amidkd.training.choosing import Chooser


class Thinning:
    """Leaves each forward pass with one supervised token more than the last, at most four; remembers what it saw."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples, self.calls, self.seen = examples, 0, torch.zeros(VOCABULARY)
        self.fails_at: int | None = None

    def choose(self, plan: StepPlan) -> list[list[Example]]:
        if plan.number == self.fails_at:
            self.calls += 1
            raise GenerationError("nobody writes today")
        return [
            [self._thinned(self.examples[place]) for place in self._counted(part)] for part in plan.places(plan.number)
        ]

    def _counted(self, places: list[int]) -> list[int]:
        self.calls += 1
        self._left = 1 + self.calls % 4
        return places

    def _thinned(self, example: Example) -> Example:
        targets = []
        for token, target in zip(example.tokens, example.targets, strict=True):
            targets.append(target and self._left > 0)
            self._left -= targets[-1]
            self.seen[token] += targets[-1]
        return replace(example, targets=tuple(targets))

    def report(self) -> dict[str, float]:
        return {"calls": float(self.calls)}

    def state(self):
        return {"calls": self.calls, "seen": self.seen.clone()}

    def load_state(self, state):
        self.calls, self.seen = state["calls"], state["seen"].clone()


def trained(
    folder: Path, checkpoint: Path | None = None, *, fails_at: int | None = None
) -> tuple[Thinning, list[dict]]:
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
    policy = Thinning(rows())
    policy.fails_at = fails_at
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


def test_where_text_cannot_be_written_the_run_is_saved_and_stops(tmp_path) -> None:
    _, expected = trained(tmp_path / "whole")
    broken = tmp_path / "broken"
    with pytest.raises(GenerationError) as caught:
        trained(broken, fails_at=4)
    text = str(caught.value)
    assert "nobody writes today\nThe run stopped before step 5; checkpoint-4 in" in text
    assert text.endswith("Go on with training.resume_from_checkpoint=true")
    assert [path.name for path in RunFolder(broken).checkpoints()] == ["checkpoint-3", "checkpoint-4"]
    # What the failed step did to the policy is undone, and the run goes on as if it had never failed.
    policy, lines = trained(broken, broken / "checkpoint-4")
    assert policy.calls == 10
    for line, other in zip(lines, expected, strict=True):
        assert [line[key] for key in ("step", "loss", "tokens", "calls")] == [
            other[key] for key in ("step", "loss", "tokens", "calls")
        ]


def test_before_the_first_step_there_is_nothing_to_save(tmp_path) -> None:
    with pytest.raises(GenerationError, match="before step 1; no step had been made"):
        trained(tmp_path, fails_at=0)
    assert RunFolder(tmp_path).checkpoints() == []


def test_a_failure_on_one_rank_is_a_failure_on_all() -> None:
    """The others take back what they drew, so that all are at the same step."""
    examples = rows(4)
    policy = Thinning(examples)
    told = []

    def add_up(values: list[float]) -> list[float]:
        told.append(values)
        return [value + 1 for value in values]

    batches = EpochBatches(4, batch_size=2, seed=0, world=2)
    chooser = Chooser(policy, batches, passes=1, total=3, validate=lambda: 0.0, add_up=add_up, eos_ids=frozenset({1}))
    with pytest.raises(GenerationError, match="another process could not"):
        chooser.rows(0)
    assert told == [[0.0]]
    assert policy.calls == 0
    assert not policy.seen.any()
