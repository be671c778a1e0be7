"""From the run file's ``training`` section to ``transformers.TrainingArguments``, checked before work starts."""

import atexit
import dataclasses
import difflib
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from amidkd.config import RunConfig, TrainingConfig
from amidkd.errors import SettingError

if TYPE_CHECKING:
    from transformers import TrainingArguments

_log = logging.getLogger("amidkd")

__all__ = ["check_training_settings", "steps_of", "training_arguments", "warmup_of"]

_FOLDER = "the run folder is `output.folder`"
_EVALUATION = "evaluation has a section of its own; set evaluation.after_training"
_HUB = "upload the run's student/ folder when it is good"
_BATCHES = "rows come in an order that exact resume needs, each once an epoch"
_LOSS = "the loss is chosen in `objective`"
_COUNTS = "the loss always divides by the supervised tokens of the whole optimizer step, over all processes"
_HEAD = "the loss reads the hidden states before the head, which this would hide"
_SHARDED = "this version trains with plain data parallelism"
_RESUME = "checkpoints always hold all that exact resume needs"

_OWNED: Mapping[str, str] = {
    "output_dir": _FOLDER,
    "logging_dir": _FOLDER,
    "overwrite_output_dir": _FOLDER,
    "do_train": "the verb decides: distill or sft",
    "do_eval": _EVALUATION,
    "do_predict": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "eval_steps": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "eval_delay": _EVALUATION,
    "per_device_eval_batch_size": "set evaluation.batch_size",
    "load_best_model_at_end": _EVALUATION,
    "metric_for_best_model": _EVALUATION,
    "greater_is_better": _EVALUATION,
    "remove_unused_columns": "batches are made by `data`",
    "label_names": "batches are made by `data`",
    "train_sampling_strategy": _BATCHES,
    "group_by_length": _BATCHES,
    "length_column_name": _BATCHES,
    "accelerator_config": _BATCHES,
    "split_batches": _BATCHES,
    "dataloader_drop_last": _BATCHES,
    "ignore_data_skip": _BATCHES,
    "auto_find_batch_size": _BATCHES,
    "label_smoothing_factor": _LOSS,
    "use_liger_kernel": _HEAD,
    "liger_kernel_config": _HEAD,
    "torch_compile": _HEAD,
    "torch_compile_backend": _HEAD,
    "torch_compile_mode": _HEAD,
    "average_tokens_across_devices": _COUNTS,
    "include_num_input_tokens_seen": "metrics.jsonl counts supervised tokens",
    "include_tokens_per_second": "metrics.jsonl has tokens_per_second",
    "logging_strategy": "set logging_steps",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "save_only_model": _RESUME,
    "enable_jit_checkpoint": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    "push_to_hub": _HUB,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "deepspeed": _SHARDED,
    "parallelism_config": _SHARDED,
    "warmup_ratio": "set warmup_steps below 1: a fraction of all steps",
}
"""Fields of ``TrainingArguments`` that a run file may not set, and what to do instead."""

_LETTING_GO = 0.2
"""Seconds; the thread needs microseconds once it gets the interpreter."""

_OURS = {"resume_from_checkpoint", "warmup_steps"}


def check_training_settings(config: RunConfig) -> None:
    """Check the ``training`` section before anything is loaded.

    Args:
        config: The run.

    Raises:
        SettingError: An unknown field (with a suggestion), a field that the run decides itself, or a value that
            ``TrainingArguments`` refuses.
    """
    from transformers import TrainingArguments

    given = config.training.model_dump()
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    lines = []
    for key in config.training.model_extra or {}:
        if key in _OWNED:
            lines.append(f"training.{key}: not yours to set here: {_OWNED[key]}")
        elif key not in known:
            allowed = (known | set(TrainingConfig.model_fields)) - set(_OWNED)
            near = difflib.get_close_matches(key, sorted(allowed), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"training.{key}: neither a setting here nor a field of TrainingArguments{hint}")
        else:
            lines += _wrong_type(key, given[key])
    if given["max_steps"] == 0 or given["max_steps"] < -1:
        lines.append(f"training.max_steps: must be above 0, or -1 for all epochs; got {given['max_steps']}")
    if str(given.get("save_strategy", "steps")) not in ("steps", "epoch", "no"):
        lines.append(f"training.save_strategy: must be steps, epoch or no; got {given['save_strategy']!r}")
    if lines:
        raise SettingError("\n".join(lines))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # Names and values alone: what this machine can do is checked when the run starts.
        _build({**_fields(given), "use_cpu": True, "bf16": False, "fp16": False, "tf32": None}, Path("unused"))


def _wrong_type(key: str, value: Any) -> list[str]:
    """A complaint where a field's value is of another type; ``TrainingArguments`` itself takes anything."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from transformers import TrainingArguments

    kind = get_type_hints(TrainingArguments)[key]
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        return [f"training.{key}: {error.errors()[0]['msg']}; got {value!r}"]
    return []


def training_arguments(
    config: RunConfig, folder: Path, *, kind: type["TrainingArguments"] | None = None, **differing: Any
) -> "TrainingArguments":
    """Make the arguments of the trainer; starts the process group where there are several processes.

    Args:
        config: The run.
        folder: Where checkpoints go.
        kind: Another trainer's arguments, which have more fields; default: ``TrainingArguments``.
        differing: Fields that differ from the run file's in this stage.

    Raises:
        SettingError: A value that ``TrainingArguments`` refuses, on this machine.
    """
    arguments = _build({**_fields(config.training.model_dump()), **differing}, folder, kind)
    if arguments.n_gpu > 1:
        _log.info("Using one of %d GPUs; for all of them: accelerate launch -m amidkd ...", arguments.n_gpu)
        # One process must not spread over several devices by nn.DataParallel: the loss is computed outside the model.
        arguments._n_gpu = 1
    if arguments.world_size > 1:
        atexit.register(_leave_process_group)
    return arguments


def _leave_process_group() -> None:
    """Leave the process group before Python shuts down.

    A thread of gloo lets go of the tensors of the last collective a moment after everybody has the result, and needs
    the interpreter for it; where that is shutting down already, the process aborts with all its work done. The moment
    of sleep gives the interpreter to that thread.
    """
    import torch.distributed

    if torch.distributed.is_initialized():
        slow_to_let_go = torch.distributed.get_backend() == "gloo"
        torch.distributed.destroy_process_group()
        if slow_to_let_go:
            time.sleep(_LETTING_GO)


def steps_of(arguments: "TrainingArguments", examples: int) -> int:
    """Optimizer steps of a stage: ``max_steps``, or epochs × ⌈batches of an epoch / accumulation steps⌉.

    Args:
        arguments: The stage's arguments.
        examples: Rows in one pass.
    """
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batches = math.ceil(examples / (arguments.per_device_train_batch_size * arguments.world_size))
    return math.ceil(arguments.num_train_epochs * math.ceil(batches / arguments.gradient_accumulation_steps))


def warmup_of(warmup: float, steps: int) -> int:
    """Steps of warm-up: the number itself, or below 1 that part of all steps, rounded up.

    Args:
        warmup: ``training.warmup_steps``.
        steps: All steps of the stage.
    """
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields to hand on; those of ours, and what must not have transformers' default."""
    fields = {key: value for key, value in given.items() if key not in _OURS}
    if given["gradient_checkpointing"]:
        # The older kind loses the gradient under frozen embeddings (adapters).
        fields.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    return {
        **fields,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
    }


def _build(fields: dict[str, Any], folder: Path, kind: type["TrainingArguments"] | None = None) -> "TrainingArguments":
    import warnings

    from transformers import TrainingArguments

    with warnings.catch_warnings():
        # gradient_checkpointing is renamed in later versions of transformers; the run file's name stays.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return (kind or TrainingArguments)(output_dir=str(folder), **fields)
        except (ValueError, TypeError, ImportError, RuntimeError, NotImplementedError) as error:
            raise SettingError(f"training: {' '.join(str(error).split())}") from error
