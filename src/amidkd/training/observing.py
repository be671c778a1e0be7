"""What a sweep sees of a run while it trains: its validation loss every so often, so that it may be given up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amidkd.data import Example
from amidkd.training.validation import validation_loss

if TYPE_CHECKING:
    from amidkd.training.trainer import DistillationTrainer

__all__ = ["Observer", "ObserverHook"]


@dataclass(frozen=True)
class Observer:
    """Follows the main stage of a run.

    Args:
        validated: Called on every process with optimizer steps made and validation loss (nats a token). What it
            raises stops the run and comes out of the verb.
        every: Optimizer steps between two validations.
        rows: Validation rows that are looked at, the first ones; None: all.
    """

    validated: Callable[[int, float], None]
    every: int = 50
    rows: int | None = None


class ObserverHook(TrainerCallback):
    """Validates for an observer.

    Args:
        trainer: Who trains.
        observer: Who is told.
        examples: Rows of the validation loss.
    """

    def __init__(self, trainer: "DistillationTrainer", observer: Observer, examples: Sequence[Example]) -> None:
        self._trainer, self._observer, self._examples = trainer, observer, examples

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate where it is time. The last step is left to the evaluation."""
        step = state.global_step
        if step % self._observer.every == 0 and step < state.max_steps:
            self._observer.validated(step, validation_loss(self._trainer, self._examples))
