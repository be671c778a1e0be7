"""What decides a run's numbers, as flat settings; a checkpoint goes on only in a run with the same ones."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig
from amidkd.data import Example
from amidkd.errors import SettingError
from amidkd.teachers.live import hash_files

__all__ = ["check_same_run", "hash_examples", "hash_student", "run_settings"]

# Where results go, how they are reported and computed, and paths whose contents are compared instead.
_FREE_SECTIONS = ("output.", "evaluation.", "kernels.", "serve.", "sweep.")
_FREE = {
    "sweep",
    "data.train",
    "data.train_split",
    "data.validation",
    "data.validation_split",
    "data.generation.batch_size",
    "data.corpus.source",
    "data.corpus.split",
    "policy.folder",
    "teacher.model",
    "teacher.device",
    "teacher.adapter",
    "teacher.folder",
    "teacher.name",
    "teacher.url",
    "teacher.served_name",
    "teacher.source",
    "teacher.teachers",
    "teacher.batch_size",
    "teacher.batch_rows",
    "teacher.shard_rows",
    "teacher.connections",
    "teacher.timeout",
    "teacher.retries",
    "teacher.token_variable",
    "student.model",
    "student.tokenizer",
    "training.resume_from_checkpoint",
    "training.report_to",
    "training.run_name",
    "training.project",
    "training.disable_tqdm",
    "training.save_steps",
    "training.save_strategy",
    "training.save_total_limit",
    "training.skip_memory_metrics",
    "training.ddp_timeout",
    "training.torch_empty_cache_steps",
}
# Where an engine is and how it is reached; which one it is decides the random numbers.
_FREE |= {
    f"{section}.generation.engine.{name}"
    for section in ("data", "policy")
    for name in ("url", "token_variable", "timeout", "retries", "weight_push", "weight_folder", "memory_fraction")
}
_FREE_PREFIXES = ("teacher.source.", "training.logging_", "training.log_", "training.dataloader_", "training.trackio_")
_SHOWN = 8


def run_settings(config: RunConfig, **contents: Any) -> dict[str, Any]:
    """The settings that decide a run's numbers, by dotted name.

    Args:
        config: The run.
        contents: Further facts by name, such as hashes of data and teacher.
    """
    flat = _flatten(config.model_dump(mode="json"))
    kept = {
        key: value
        for key, value in flat.items()
        if key not in _FREE and not key.startswith((*_FREE_SECTIONS, *_FREE_PREFIXES))
    }
    return {**kept, **contents}


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> None:
    """Refuse to go on with another run's state.

    Args:
        saved: The settings that it was made with.
        now: Those of this run; what only one side knows yet is not compared where the value is None.
        where: What holds the saved ones.

    Raises:
        SettingError: With the settings that differ, then and now.
    """
    missing = object()
    differing = []
    for key in sorted({*saved, *now}):
        then, here = saved.get(key, missing), now.get(key, missing)
        if then != here:
            differing.append(f"  {key}: {_shown(then, missing)} there, {_shown(here, missing)} now")
    if differing:
        more = f"\n  and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise SettingError(
            f"training.resume_from_checkpoint: {where} belongs to a run with other settings:\n"
            + "\n".join(differing[:_SHOWN])
            + more
            + "\nSet them back, or start another run in another output.folder."
        )


def hash_examples(examples: Sequence[Example]) -> str:
    """SHA-256 of tokens, targets and origins, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(struct.pack(f"<{len(example.tokens) + 1}q", len(example.tokens), *example.tokens))
        digest.update(bytes(example.targets))
        digest.update(example.origin.encode())
    return digest.hexdigest()


def hash_student(config: RunConfig) -> str | None:
    """What a pretrained student starts from: SHA-256 of its folder's weights, or its hub name; None for another.

    Args:
        config: The run.
    """
    if config.student.kind != "pretrained":
        return None
    source = config.student.model
    if not Path(source).is_dir():
        return source
    digest = hashlib.sha256()
    hash_files(digest, Path(source))
    return digest.hexdigest()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any, missing: object) -> str:
    if value is missing:
        return "not given"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
