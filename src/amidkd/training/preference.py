"""Direct preference optimisation through TRL's trainer (extra ``dpo``): the corrected text over the student's own.

Its checkpoints are TRL's and transformers'; a run that was killed goes on from the last whole one, but identical
metrics are not promised, as they are for this package's trainer.

Source: Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290.
"""

import copy
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amidkd.config import RunConfig, WarmupPolicy
from amidkd.errors import SettingError
from amidkd.models import pad_id_of
from amidkd.record import RunFolder, append_json_line, read_json_lines
from amidkd.training.arguments import steps_of, training_arguments, warmup_of
from amidkd.training.checkpoint import STATE_FILE, chosen_checkpoint, cut_metrics, read_state, step_of, write_state
from amidkd.training.fingerprint import check_same_run
from amidkd.training.metrics import peak_memory_mb
from amidkd.training.presence import Presence
from amidkd.training.stages import StageResult

__all__ = ["Pair", "require_trl", "train_preference"]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Args:
        prompt: Ids of the prompt.
        chosen: Ids of the better answer.
        rejected: Ids of the worse one.
        texts: The three as text.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    texts: tuple[str, str, str]


def require_trl() -> None:
    """Refuse to start without TRL.

    Raises:
        SettingError: Naming the extra.
    """
    if importlib.util.find_spec("trl") is None:
        raise SettingError('policy.loss: dpo needs TRL, which is not installed: pip install "amidkd[dpo]"')


def train_preference(
    config: RunConfig, folder: Path, *, student: Any, tokenizer: Any, pairs: Sequence[Pair], settings: dict[str, Any]
) -> StageResult:
    """Train a student to prefer the chosen answers, with itself as it is now for reference.

    Args:
        config: The run, with ``policy.kind: warmup``.
        folder: Its folder.
        student: The model; it is trained in place.
        tokenizer: Its tokenizer.
        pairs: The answers, at least one pair.
        settings: What a checkpoint must have been made with.

    Raises:
        SettingError: A checkpoint of another run; a setting that TRL does not take.
    """
    from trl import DPOTrainer

    arguments = _arguments(config, folder, len(pairs))
    checkpoint = _checkpoint(config, folder, settings, arguments)
    before = _saved_settings(student)
    with _without_bars():
        trainer = DPOTrainer(
            model=student,
            # What adapters are trained on is the reference already.
            ref_model=None if hasattr(student, "peft_config") else copy.deepcopy(student),
            args=arguments,
            train_dataset=_dataset(pairs),
            processing_class=tokenizer,
            data_collator=_collator(pad_id_of(tokenizer)),
            callbacks=[_Journal(folder, settings), Presence(RunFolder(folder), config.policy.kind)],
        )
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    if checkpoint is not None and step_of(checkpoint) >= steps_of(arguments, len(pairs)):
        # The trainer itself would make one more step.
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    _restore(student, before)
    last = (read_json_lines(RunFolder(folder).metrics_file) or [{}])[-1]
    seconds, tokens = time.perf_counter() - began, int(last.get("num_tokens", 0))
    return StageResult(
        steps=last.get("step", 0),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        peak_memory_mb=peak_memory_mb(),
        backend="trl",
        loss=last.get("loss"),
    )


def _arguments(config: RunConfig, folder: Path, pairs: int) -> Any:
    from trl import DPOConfig

    policy = config.policy
    assert isinstance(policy, WarmupPolicy)
    arguments = training_arguments(config, folder, kind=DPOConfig, beta=policy.dpo_beta, max_length=None)
    arguments.warmup_steps = warmup_of(config.training.warmup_steps, steps_of(arguments, pairs))
    return arguments


def _checkpoint(config: RunConfig, folder: Path, settings: dict[str, Any], arguments: Any) -> Path | None:
    """The checkpoint to go on from. Without our mark it was cut off by a kill, and is removed."""
    resume, first = config.training.resume_from_checkpoint, arguments.process_index == 0
    if first:
        for path in RunFolder(folder).checkpoints():
            if not (path / STATE_FILE).is_file():
                shutil.rmtree(path)
    arguments.distributed_state.wait_for_everyone()
    found = chosen_checkpoint(folder, resume)
    if found is not None:
        check_same_run(read_state(found)["settings"], settings, where=str(found))
    if first:
        cut_metrics(folder, 0 if found is None else step_of(found))
    return found


def _dataset(pairs: Sequence[Pair]) -> Any:
    """TRL makes tokens of the text; what is learnt from are the ids beside it, which were really said."""
    from datasets import Dataset

    prompts, chosen, rejected = zip(*(pair.texts for pair in pairs), strict=True)
    return Dataset.from_dict(
        {
            "prompt": list(prompts),
            "chosen": list(chosen),
            "rejected": list(rejected),
            "said": [[list(pair.prompt), list(pair.chosen), list(pair.rejected)] for pair in pairs],
        }
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the data set's bars, of text that is not learnt from, off the screen."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _collator(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=pad_id)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")

    def said(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = collate([dict(zip(names, example["said"], strict=True)) for example in examples])
        return batch

    return said


class _Journal(TrainerCallback):
    """Writes ``metrics.jsonl``, and marks the checkpoints that are whole."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = RunFolder(folder), settings

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line."""
        if state.is_world_process_zero and logs is not None and "loss" in logs:
            append_json_line(self._folder.metrics_file, {"step": state.global_step, "epoch": state.epoch, **logs})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """The last step gets a log line, whatever logging_steps says."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint's last file."""
        if state.is_world_process_zero:
            write_state(self._folder.path / f"checkpoint-{state.global_step}", {"settings": self._settings})


def _saved_settings(student: Any) -> tuple[Any, ...]:
    """What TRL changes in a model and would be saved with it."""
    pads = [getattr(part, "pad_token_id", None) for part in (student.config, student.generation_config)]
    return (*pads, getattr(student.config, "use_cache", None))


def _restore(student: Any, before: tuple[Any, ...]) -> None:
    if "ref" in getattr(student, "peft_config", {}):
        student.delete_adapter("ref")
    student.config.pad_token_id, student.generation_config.pad_token_id, student.config.use_cache = before
