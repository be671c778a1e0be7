"""What a run says of itself while it is under way, for whoever watches: how far it is, and its warnings."""

import logging
import time
from collections.abc import Callable
from typing import Any, final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amidkd.record import RunFolder, now, write_json

__all__ = ["Notices", "Presence"]

_log = logging.getLogger("amidkd")

_SECONDS_BETWEEN_WRITES = 2.0
"""Log lines may be minutes apart; the step is written at most this often between them."""


class Presence(TrainerCallback):
    """Keeps ``progress.json`` of a stage: the step that it is at, of how many, and since when.

    Args:
        folder: The stage's folder.
        name: What the stage is called.
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._entry: dict[str, Any] = {}
        self._written = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that the stage begins, or goes on."""
        self._entry = {"stage": self._name, "first": state.global_step, "since": now()}
        self._write(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say which step is done, now and then."""
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self._write(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say how far it came."""
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            step = {"step": state.global_step, "steps": state.max_steps, "updated": now()}
            write_json(self._folder.progress_file, {**self._entry, **step})
            self._written = time.monotonic()


@final
class Notices(logging.Handler):
    """Keeps the warnings of a run for its record, also those from before there is one; use it in a ``with`` block."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._entries: list[dict[str, str]] = []
        self._note: Callable[..., None] | None = None

    def __enter__(self) -> "Notices":
        _log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        _log.removeHandler(self)

    def keep(self, note: Callable[..., None], earlier: list[dict[str, str]]) -> None:
        """From now on the record is there.

        Args:
            note: Writes entries to the record.
            earlier: Warnings of the sessions before this one.
        """
        known = {entry["text"] for entry in self._entries}
        self._entries = [*(entry for entry in earlier if entry["text"] not in known), *self._entries]
        self._note = note
        if self._entries:
            note(warnings=self._entries)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning, once."""
        text = record.getMessage().removeprefix("warning: ")
        if any(entry["text"] == text for entry in self._entries):
            return
        self._entries.append({"at": now(), "text": text})
        if self._note is not None:
            self._note(warnings=self._entries)
