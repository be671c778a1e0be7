"""The engine that a run file asks for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amidkd.config import SamplingConfig
from amidkd.config.policy import TransformersEngine
from amidkd.generation.base import Generator

__all__ = ["make_generator"]


def make_generator(
    config: SamplingConfig,
    *,
    model: Any,
    tokenizer: Any,
    eos_ids: Sequence[int],
    pad_id: int,
    vocab_size: int | None,
    run_folder: Path,
    first: bool,
    rank: int,
    world: int,
    autocast: torch.dtype | None = None,
) -> Generator:
    """The engine of ``config.engine``, ready to write with a model.

    Args:
        config: How the model is sampled, and by what engine.
        model: The causal model, not wrapped for distribution.
        tokenizer: The model's.
        eos_ids: Ids that end an answer.
        pad_id: Id that fills the left of short prompts.
        vocab_size: Ids from here on never come (padded rows of the head).
        run_folder: Where an engine may keep files, such as weights that it hands to a server.
        first: Whether this process is the first of its machine's folder, which writes for all.
        rank: Number of this process, from 0.
        world: Number of processes.
        autocast: Compute in this dtype, as mixed-precision training does; engines in this process only.

    Raises:
        SettingError: What the engine needs is not there, or a setting that it cannot follow.
    """
    engine = config.engine
    if isinstance(engine, TransformersEngine):
        from amidkd.generation.transformers import TransformersGenerator

        return TransformersGenerator(
            config, model=model, eos_ids=eos_ids, pad_id=pad_id, vocab_size=vocab_size, autocast=autocast
        )
    known: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "eos_ids": eos_ids,
        "pad_id": pad_id,
        "vocab_size": vocab_size,
        "run_folder": run_folder,
        "first": first,
        "rank": rank,
        "world": world,
    }
    if engine.mode == "server":
        from amidkd.generation.vllm_server import VllmServerGenerator

        return VllmServerGenerator(config, **known)
    from amidkd.generation.vllm_colocated import VllmColocatedGenerator

    return VllmColocatedGenerator(config, **known)
