"""From the run file's ``policy`` to the policy."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeGuard

from amidkd import config as schema
from amidkd.config import PolicyConfig, StudentSampling
from amidkd.data import Example
from amidkd.generation import Generator
from amidkd.policies.adaptive import AdaptivePolicy
from amidkd.policies.base import Policy
from amidkd.policies.contrastive import ContrastivePolicy
from amidkd.policies.dataset import DatasetPolicy
from amidkd.policies.on_policy import OnPolicy
from amidkd.policies.writing import Progress, StudentWriter

__all__ = ["PolicyRoom", "make_policy", "writes_while_training"]


WritingPolicy = schema.OnPolicy | schema.MixedPolicy | schema.AdaptivePolicy | schema.ContrastivePolicy
"""Policies under which the student writes while it is trained."""


@dataclass(frozen=True)
class PolicyRoom:
    """What a policy works with.

    Args:
        examples: The rows, by place.
        prompts: Token ids of each prompt, by ``Example.row``.
        max_length: Longest row, prompt and answer together.
        generator: Makes what runs the student; called once, if the policy lets it write.
        seed: Of the draws.
        rank: Which process this is.
        world: How many there are.
        rows_per_step: Rows of one process in an optimizer step, at most.
        counter: Makes what is told of progress where many answers are written at once; None: nothing is.
    """

    examples: Sequence[Example]
    prompts: Mapping[int, Sequence[int]]
    max_length: int
    generator: Callable[[StudentSampling], Generator]
    seed: int
    rank: int = 0
    world: int = 1
    rows_per_step: int = 1
    counter: Callable[[int], AbstractContextManager[Progress]] | None = None


def writes_while_training(config: PolicyConfig) -> TypeGuard[WritingPolicy]:
    """Whether the student writes while it is trained.

    Args:
        config: The run file's ``policy``.
    """
    return isinstance(config, WritingPolicy)


def make_policy(config: PolicyConfig, room: PolicyRoom) -> Policy:
    """The policy that a run file's ``policy`` section asks for.

    Text that is written before training (``sequence_level``, ``warmup``) is the data set by now.

    Args:
        config: The run file's ``policy``.
        room: What it works with.

    Raises:
        SettingError: A row without a prompt or without room; a replay buffer smaller than a batch.
    """
    if not writes_while_training(config):
        return DatasetPolicy()
    writer = StudentWriter(
        room.generator(config.generation),
        config=config.generation,
        examples=room.examples,
        prompts=room.prompts,
        max_length=room.max_length,
        counter=room.counter,
    )
    if isinstance(config, schema.OnPolicy):
        return OnPolicy(writer, steps_per_generation=config.steps_per_generation, seed=room.seed)
    if isinstance(config, schema.MixedPolicy):
        return OnPolicy(
            writer,
            fraction=config.on_policy_fraction,
            steps_per_generation=config.steps_per_generation,
            seed=room.seed,
        )
    if isinstance(config, schema.ContrastivePolicy):
        return ContrastivePolicy(writer, refresh=config.refresh)
    return _adaptive(config, writer, room)


def _adaptive(config: schema.AdaptivePolicy, writer: StudentWriter, room: PolicyRoom) -> AdaptivePolicy:
    return AdaptivePolicy(
        writer,
        initial_threshold=config.initial_threshold,
        tolerance=config.tolerance,
        replay_ratio=config.replay_ratio,
        capacity=config.capacity // room.world,
        validation_steps=config.validation_steps,
        seed=room.seed,
        rank=room.rank,
        rows_per_step=room.rows_per_step,
    )
