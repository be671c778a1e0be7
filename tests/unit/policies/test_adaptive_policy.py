"""DistiLLM's schedule: when φ rises, what is replayed, and what the buffer holds."""

from dataclasses import replace

import numpy as np
import pytest
from plans import Scribe, examples, plan, room

from amidkd.config import AdaptivePolicy as Settings
from amidkd.errors import SettingError
from amidkd.policies import make_policy
from amidkd.policies.adaptive import ReplayBuffer


def test_the_threshold_rises_with_the_validation_loss() -> None:
    losses = [2.0, 9, 2.05, 9, 2.2, 9, 2.3, 9, 2.1, 9, 3.0, 9]
    policy = make_policy(Settings(initial_threshold=0.85, tolerance=0.1, validation_steps=2), room())
    found = []
    for step in range(12):
        policy.choose(plan(step, losses=losses))
        found.append(round(policy.report()["threshold"], 10))
    # 2.05 is within the tolerance; 2.2 is above 2.05 by more; 2.3 above 2.2 is not by *more* than 0.1 … up to 1.
    assert found[::2] == [0.85, 0.85, 0.95, 0.95, 0.95, 1.0]
    assert policy.report()["validation_loss"] == 3.0


def test_validation_comes_once_an_epoch_by_default() -> None:
    asked = []
    policy = make_policy(Settings(), room())
    for step in range(9):
        policy.choose(replace(plan(step), validate=lambda step=step: asked.append(step) or 1.0))
    assert asked == [0, 3, 6]


@pytest.mark.parametrize(
    ("ratio", "early", "late"), [("increasing", 0.0, 1.0), ("decreasing", 1.0, 0.0), ("constant", 0.5, 0.5)]
)
def test_the_part_that_is_replayed(ratio, early, late) -> None:
    total, scribe = 400, Scribe()
    settings = Settings(initial_threshold=1.0, capacity=4, replay_ratio=ratio, validation_steps=1000)
    policy = make_policy(settings, room(scribe))
    replayed = []
    for step in range(total):
        before = len(scribe.asked)
        policy.choose(plan(step, total=total, losses=[0.0] * total))
        replayed.append(len(scribe.asked) == before)
    assert np.mean(replayed[4:60]) == pytest.approx(early, abs=0.16)
    assert np.mean(replayed[-56:]) == pytest.approx(late, abs=0.16)


def test_replayed_rows_are_old_text_of_this_process() -> None:
    settings = Settings(initial_threshold=1.0, capacity=16, replay_ratio="decreasing", validation_steps=1000)
    scribe = Scribe()
    policy = make_policy(settings, room(scribe, world=2, rank=1))
    written, replayed = [], 0
    for step in range(40):
        before = len(scribe.asked)
        rows = [row for part in policy.choose(plan(step, total=200, losses=[0.0] * 200)) for row in part]
        if len(scribe.asked) > before:
            written += rows
        else:
            replayed += 1
            assert len(set(map(repr, rows))) == len(rows), "no row twice in a step"
            # Capacity counts all processes.
            assert {repr(row) for row in rows} <= {repr(row) for row in written[-8:]}
    assert replayed > 10


def test_nothing_is_replayed_before_the_buffer_is_full() -> None:
    scribe = Scribe()
    settings = Settings(initial_threshold=1.0, capacity=12, replay_ratio="decreasing", validation_steps=1000)
    policy = make_policy(settings, room(scribe))
    for step in range(4):
        policy.choose(plan(step, total=10_000, losses=[0.0]))
    # An epoch of ten rows in steps of 4, 4 and 2: the fourth step fills it.
    assert [len(prompts.tokens) for prompts in scribe.asked] == [4, 4, 2, 4]
    assert policy.report()["buffer"] == 12


def test_nothing_is_replayed_before_every_process_is_full() -> None:
    """One that replays while another writes would leave it alone at the barrier before new weights."""
    scribe = Scribe()
    settings = Settings(initial_threshold=1.0, capacity=4, replay_ratio="decreasing", validation_steps=1000)
    policy = make_policy(settings, room(scribe))
    for step in range(5):
        policy.choose(plan(step, total=10_000, losses=[0.0], others=False))
    assert len(scribe.asked) == 5
    policy.choose(plan(5, total=10_000))
    assert len(scribe.asked) == 5


def test_the_oldest_rows_leave() -> None:
    buffer, rows = ReplayBuffer(3), examples(5)
    buffer.add(rows[:2])
    assert not buffer.full
    buffer.add(rows[2:])
    assert buffer.full
    assert buffer.state() == rows[2:]
    assert sorted(row.row for row in buffer.sample(3, np.random.default_rng(0))) == [2, 3, 4]


def test_a_buffer_smaller_than_a_batch() -> None:
    with pytest.raises(
        SettingError, match=r"policy.capacity.*holds 3 sequences, fewer than the 4.*raise policy.capacity"
    ):
        make_policy(Settings(capacity=6), room(world=2))
