"""The model writes in this process, with its live weights."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, final

import torch

from amidkd.config import SamplingConfig
from amidkd.config.policy import TransformersEngine
from amidkd.generation.base import Prompts
from amidkd.models import generate

__all__ = ["TransformersGenerator"]


@final
class TransformersGenerator:
    """Writes with a transformers model as it stands, in evaluation mode, hence without gradient checkpointing.

    Args:
        config: How it is sampled; its ``seed`` and ``max_new_tokens`` are the caller's to put into the prompts. With
            ``engine.continuous_batching``, streams do not name the random numbers: a sampled answer then depends on
            what else is written at the time.
        model: The causal model, not wrapped for distribution, with or without adapters; it keeps its mode and settings.
        eos_ids: Ids that end an answer.
        pad_id: Id that fills the left of short prompts.
        vocab_size: Ids from here on never come.
        autocast: Compute in this dtype, as mixed-precision training does. Not with continuous batching, which
            computes in the model's own.
    """

    def __init__(
        self,
        config: SamplingConfig,
        *,
        model: Any,
        eos_ids: Sequence[int],
        pad_id: int,
        vocab_size: int | None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._config, self._model = config, model
        self._eos_ids, self._pad_id, self._vocab_size = tuple(eos_ids), pad_id, vocab_size
        self._autocast = autocast

    def __call__(self, prompts: Prompts, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
        """Ids of each answer, in the prompts' order."""
        config = self._config
        if isinstance(config.engine, TransformersEngine) and config.engine.continuous_batching:
            from amidkd.generation.continuous import generate_continuously

            return generate_continuously(
                self._model,
                prompts,
                config,
                eos_ids=self._eos_ids,
                pad_id=self._pad_id,
                vocab_size=self._vocab_size,
                progress=progress,
            )
        device = next(self._model.parameters()).device.type
        with nullcontext() if self._autocast is None else torch.autocast(device, dtype=self._autocast):
            return generate(
                self._model,
                prompts.tokens,
                eos_ids=self._eos_ids,
                pad_id=self._pad_id,
                max_new_tokens=prompts.limits,
                temperature=config.temperature,
                top_p=config.top_p,
                top_k=config.top_k,
                batch_size=config.batch_size,
                seed=prompts.seed,
                streams=prompts.streams,
                vocab_size=self._vocab_size,
                progress=progress,
            )

    def update_weights(self, version: int) -> None:
        """Nothing to do: the model is the live one."""

    def close(self) -> None:
        """Nothing to let go of."""
