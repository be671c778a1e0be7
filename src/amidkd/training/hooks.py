"""What happens at the seams of the trainer's loop: the journal with its progress bar, and the step's hooks."""

import logging
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amidkd.record import RunFolder, append_json_line
from amidkd.training.presence import Presence

if TYPE_CHECKING:
    from amidkd.training.trainer import DistillationTrainer

__all__ = ["Counter", "Journal", "StepHooks"]

_log = logging.getLogger("amidkd")

_SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal, progress comes as lines, at most this often."""


class StepHooks(TrainerCallback):
    """Calls the trainer where ``Trainer`` has no method to override.

    Args:
        trainer: Whose steps they are.
    """

    def __init__(self, trainer: "DistillationTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logging and saving follow this run's settings, not those that a checkpoint was made with."""
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the order of the rows."""
        self._trainer.choose_epoch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add up the loss, and stop where it is not finite."""
        self._trainer.finish_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """The last step gets a log line, whatever logging_steps says."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control


class Journal(TrainerCallback):
    """Writes ``metrics.jsonl`` and ``progress.json`` and shows progress; on the first process alone.

    Args:
        folder: The stage's folder.
        name: What the progress bar calls the stage.
        show: Whether to show progress.
    """

    def __init__(self, folder: RunFolder, *, name: str, show: bool) -> None:
        self._folder, self._name, self._show = folder, name, show
        self._presence = Presence(folder, name)
        self._bar: Any = None
        self._began = self._told = 0.0
        self._first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar."""
        self._presence.on_train_begin(args, state, control)
        self._began = self._told = time.monotonic()
        self._first = state.global_step
        if self._show and state.is_world_process_zero and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self._name, unit="step", dynamic_ncols=True
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        self._presence.on_step_end(args, state, control)
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        # JSON has no infinities: null says that there is no number.
        fields = {key: value if _is_number(value) else None for key, value in logs.items()}
        append_json_line(self._folder.metrics_file, {"step": state.global_step, "epoch": state.epoch, **fields})
        speed = f"{logs['tokens_per_second']:,.0f}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {logs['loss']:.4g}, {speed} tokens/s")
        elif self._show and time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            done = state.global_step - self._first
            left = (self._told - self._began) / max(1, done) * (state.max_steps - state.global_step)
            _log.info(
                "%s: step %d of %d, loss %.4g, %s tokens/s, about %.0f s left",
                *(self._name, state.global_step, state.max_steps, logs["loss"], speed, left),
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self._presence.on_train_end(args, state, control)
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _is_number(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class Counter:
    """Shows how far text that is being written is: a bar on a terminal, a line now and then elsewhere.

    Called with the answers and the tokens of each batch; use it in a ``with`` block.

    Args:
        total: How many answers there will be.
        name: What is counted.
    """

    def __init__(self, total: int, *, name: str) -> None:
        self._total, self._name, self._done, self._made, self._tokens, self._size = total, name, 0, 0, 0, 0
        self._began = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Counter":
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, desc=self._name, unit="row", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, answers: int, tokens: int, size: int = 0) -> None:
        """Count a batch; one without tokens was on disk already. ``size``: bytes that it takes there."""
        self._done += answers
        self._made += answers if tokens else 0
        self._tokens += tokens
        self._size += size
        now = time.monotonic()
        speed = f"{self._tokens / max(now - self._began, 1e-9):,.0f} tokens/s"
        if self._size and self._tokens:
            speed += f", {self._size / self._tokens:,.0f} bytes/token"
        if self._bar is not None:
            self._bar.update(answers)
            self._bar.set_postfix_str(speed)
        elif now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            left = (now - self._began) / max(1, self._made) * (self._total - self._done)
            _log.info("%s: %d of %d, %s, about %.0f s left", self._name, self._done, self._total, speed, left)
