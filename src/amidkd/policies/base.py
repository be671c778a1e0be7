"""What a policy is told of an optimizer step, and what it answers with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from amidkd.data import Example
from amidkd.errors import SettingError

__all__ = ["Policy", "StepPlan", "check_state", "draw"]


@dataclass(frozen=True)
class StepPlan:
    """An optimizer step, before anything is computed for it.

    Args:
        number: Optimizer steps already made.
        total: Optimizer steps of the stage.
        per_epoch: Optimizer steps of an epoch.
        places: Places of this process's rows in any step, one list for each forward pass; −1−i stands where the process
            is left without a row: row i with nothing supervised.
        validate: Measures the validation loss, nats per token; every process must call it at the same steps.
        everywhere: Whether something holds on every process; every process must ask at the same steps.
    """

    number: int
    total: int
    per_epoch: int
    places: Callable[[int], list[list[int]]]
    validate: Callable[[], float]
    everywhere: Callable[[bool], bool]

    @property
    def progress(self) -> float:
        """The part of the stage that is over, in [0, 1)."""
        return self.number / self.total

    def epoch_end(self) -> int:
        """The first step of the next epoch, or the end of the stage."""
        return min(self.total, (self.number // self.per_epoch + 1) * self.per_epoch)


@runtime_checkable
class Policy(Protocol):
    """Chooses the text that an optimizer step learns from.

    It is asked before supervised tokens are counted, so what it writes is counted. All processes ask for the same
    steps in the same order; whatever is drawn for a step as a whole must be drawn alike on all of them.
    """

    def choose(self, plan: StepPlan) -> Sequence[Sequence[Example]] | None:
        """The rows of each forward pass of a step; None: those of the data set.

        Raises:
            GenerationError: Text could not be written.
        """

    def report(self) -> dict[str, float]:
        """What a log line says of the policy, alike on all processes."""

    def state(self) -> dict[str, Any]:
        """Everything that an exact resume needs, such as a replay buffer: JSON values, tensors, examples.

        Cheap: it is taken before each step, to go back to where a step cannot be had. What it gives must not change.
        """

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the state that :meth:`state` gave.

        Raises:
            SettingError: It is another policy's.
        """


def check_state(state: dict[str, Any], known: Sequence[str] = ()) -> None:
    """Refuse a state with other entries than a policy knows.

    Args:
        state: As saved.
        known: Entries that the policy has.

    Raises:
        SettingError: The state is another policy's.
    """
    if sorted(state) != sorted(known):
        raise SettingError(
            "policy: the checkpoint holds the state of another policy (entries: "
            f"{', '.join(sorted(state)) or 'none'}); resume with the run file that it was made with"
        )


def draw(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """Random numbers that hang on seed, step and stream alone, so that processes and resumed runs agree on them.

    Args:
        seed: Of the run.
        step: Optimizer steps made.
        stream: Tells draws of one step apart.
    """
    return np.random.default_rng((seed, step, stream))
