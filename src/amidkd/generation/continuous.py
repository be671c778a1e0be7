"""Writing by transformers' continuous batching: prompts enter as others end, and the cache is paged."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from amidkd.config import SamplingConfig
from amidkd.errors import SettingError
from amidkd.generation.base import GenerationError, Prompts
from amidkd.models.facts import base_of
from amidkd.models.generate import answer_limits
from amidkd.models.modes import evaluating

__all__ = ["generate_continuously"]

# Part of the device's free memory for the cache: training needs the rest again after the generation.
_MEMORY = 0.5
# Tokens in a forward pass; a mask of this times the cache's tokens is made for each.
_BATCH_TOKENS = 2048
_NAME = "generation.engine.continuous_batching"


def generate_continuously(
    model: Any,
    prompts: Prompts,
    config: SamplingConfig,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    vocab_size: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Answer prompts; greedy answers are those of ``amidkd.models.generate``.

    The random numbers are transformers' own, started from ``prompts.seed``: sampled answers have the same distribution,
    but depend on what else is written at the time, so streams do not name them. The model keeps its mode and settings,
    and so do the global random generators.

    Args:
        model: A causal model with attention in every layer, not wrapped for distribution.
        prompts: What to continue.
        config: Temperature, top-p, top-k and the largest batch.
        eos_ids: Ids that end an answer.
        pad_id: Any valid id.
        vocab_size: Ids from here on never come.
        progress: Called after each answer with 1 and its tokens.

    Raises:
        SettingError: A prompt that is empty or fills the context; a model or version that cannot do it.
        GenerationError: Its thread ended early.
    """
    base, limits = base_of(model), answer_limits(model, prompts.tokens, list(prompts.limits))
    if not prompts.tokens:
        return []
    # −1 is no token, so nothing ends an answer where there is no EOS.
    ends = list(eos_ids) or [-1]
    settings = _settings(base, config, ends, pad_id, vocab_size)
    batching = _batching(config, prompts.tokens, limits, prompts.seed)
    answers: list[list[int]] = [[] for _ in prompts.tokens]
    device = next(base.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=devices):
        try:
            session = base.continuous_batching_context_manager(
                generation_config=settings, continuous_batching_config=batching, warmup=False
            )
            with session as manager:
                for index, (tokens, limit) in enumerate(zip(prompts.tokens, limits, strict=True)):
                    manager.add_request(list(tokens), request_id=str(index), max_new_tokens=limit, eos_token_id=ends)
                for _ in answers:
                    index, answer = _next_answer(manager)
                    answers[index] = answer
                    if progress is not None:
                        progress(1, len(answer))
        except MemoryError as error:
            raise SettingError(
                f"generation.batch_size {config.batch_size}: no room for so many answers at once ({error}); lower it"
            ) from None
        except (AttributeError, ValueError, NotImplementedError) as error:
            raise SettingError(
                f"{_NAME}: transformers cannot do it with {type(base).__name__} ({error}); set it to false"
            ) from error
    return answers


def _settings(base: Any, config: SamplingConfig, ends: list[int], pad_id: int, vocab_size: int | None) -> Any:
    """Settings of the sampling, with nothing of the model's own."""
    from transformers import GenerationConfig

    sampled = config.temperature > 0
    width = base.get_output_embeddings().weight.shape[0]
    return GenerationConfig(
        do_sample=sampled,
        temperature=config.temperature if sampled else 1.0,
        top_p=config.top_p if sampled else 1.0,
        top_k=config.top_k if sampled else None,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_id,
        suppress_tokens=list(range(vocab_size, width)) if vocab_size is not None and vocab_size < width else None,
    )


def _batching(config: SamplingConfig, tokens: Sequence[Sequence[int]], limits: list[int], seed: int) -> Any:
    """Settings of the batching: a cache with room for the batch, rather than all the memory there is."""
    longest = sorted((len(prompt) + limit for prompt, limit in zip(tokens, limits, strict=True)), reverse=True)
    try:
        from transformers import ContinuousBatchingConfig

        page = ContinuousBatchingConfig().page_size
        return ContinuousBatchingConfig(
            num_blocks=sum(length // page + 2 for length in longest[: config.batch_size]),
            max_batch_tokens=max(config.batch_size, min(sum(map(len, tokens)), _BATCH_TOKENS)),
            max_requests_per_batch=config.batch_size,
            max_memory_percent=_MEMORY,
            seed=seed % 2**32,
            auto_switch_to_flash=False,
            use_cuda_graph=False,
        )
    except (ImportError, TypeError, AttributeError):
        raise SettingError(f"{_NAME} needs transformers 5.23 or newer; upgrade it, or set {_NAME} to false") from None


def _next_answer(manager: Any) -> tuple[int, list[int]]:
    while True:
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise GenerationError("transformers' continuous batching ended early; its log says why")
        if result is not None and result.is_finished():
            if result.error is not None:
                raise GenerationError(f"transformers' continuous batching failed: {result.error}")
            return int(result.request_id), list(result.generated_tokens)
