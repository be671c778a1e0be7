"""Steps and rows to ask policies about, and a writer whose text says what it was asked."""

from collections.abc import Callable, Sequence
from typing import Any

from amidkd.data import Example
from amidkd.generation import GenerationError, Prompts
from amidkd.policies import PolicyRoom, StepPlan
from amidkd.training.batches import EpochBatches

ROWS = 10


def examples(count: int = ROWS) -> list[Example]:
    """Row n: prompt (100 + n, 7), completion (3, 1)."""
    return [Example((100 + n, 7, 3, 1), (False, False, True, True), n) for n in range(count)]


class Scribe:
    """A generator that answers with the version of the weights, the stream and EOS."""

    def __init__(self) -> None:
        self.version = -1
        self.asked: list[Prompts] = []
        self.fails = False

    def __call__(self, prompts: Prompts, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
        if self.fails:
            raise GenerationError("the scribe is ill")
        self.asked.append(prompts)
        return [
            [200 + self.version, 300 + stream, 1][-limit:]
            for stream, limit in zip(prompts.streams, prompts.limits, strict=True)
        ]

    def update_weights(self, version: int) -> None:
        self.version = version

    def close(self) -> None:
        pass


def plan(
    step: int,
    *,
    total: int = 12,
    batch: int = 2,
    passes: int = 2,
    rank: int = 0,
    world: int = 1,
    losses: Sequence[float] = (),
    count: int = ROWS,
    others: bool = True,
) -> StepPlan:
    """A step of a run over ``count`` rows; its validation loss is that of ``losses`` at its number.

    ``others`` is what the other processes say to whatever is asked of all.
    """
    batches = EpochBatches(count, batch_size=batch, seed=3, rank=rank, world=world)

    def validate() -> float:
        return losses[step]

    return StepPlan(
        number=step,
        total=total,
        per_epoch=batches.steps_per_epoch(passes),
        places=lambda n: batches.of_step(n, passes),
        validate=validate,
        everywhere=lambda holds: holds and others,
    )


def room(scribe: Any = None, **changes: Any) -> PolicyRoom:
    """What a policy over :func:`examples` works with."""
    rows = examples(changes.pop("count", ROWS))
    settings = {
        "examples": rows,
        "prompts": {row.row: row.tokens[:2] for row in rows},
        "max_length": 16,
        "generator": lambda config: Scribe() if scribe is None else scribe,
        "seed": 11,
        "rows_per_step": 4,
        **changes,
    }
    return PolicyRoom(**settings)
