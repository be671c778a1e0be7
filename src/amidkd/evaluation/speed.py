"""How fast and how large a model is: greedy tokens a second, parameters, bytes, work a token."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from amidkd.models import generate
from amidkd.models.facts import base_of

__all__ = ["measure_speed", "sizes"]

_ROWS, _TOKENS, _ROUNDS, _BUDGET = 16, 32, 3, 30.0


def sizes(model: Any) -> dict[str, Any]:
    """What a model takes.

    Args:
        model: A causal model.

    Returns:
        ``parameters``; ``weights_bytes``; ``work_per_token``: floating-point operations of a forward pass for one
        token, 2 for each weight that is multiplied (attention over earlier tokens comes on top).
    """
    parameters = list(model.parameters())
    base = base_of(model)
    table, head = base.get_input_embeddings(), base.get_output_embeddings()
    count = sum(parameter.numel() for parameter in parameters)
    # Embeddings are looked up; where the head is the same tensor, that one is multiplied.
    tied = head is not None and table is not None and head.weight is table.weight
    looked_up = 0 if table is None or tied else table.weight.numel()
    return {
        "parameters": count,
        "weights_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "work_per_token": 2 * (count - looked_up),
    }


def measure_speed(
    models: Mapping[str, Any], prompts: Sequence[Sequence[int]], *, pad_id: int, vocab_size: int, max_new_tokens: int
) -> dict[str, Any]:
    """Time greedy answers of a fixed length, the models taking turns, so that what else the machine does hits all.

    Args:
        models: Models by side: ``student``, ``teacher``.
        prompts: Token ids of prompts; the first 16 are used, in one batch.
        pad_id: Id that fills a batch.
        vocab_size: Ids from here on never come.
        max_new_tokens: Longest answer; 32 tokens are timed at most.

    Returns:
        ``batch_size``, ``new_tokens``, ``rounds``, ``device``, and for each side its :func:`sizes`, the median
        ``tokens_per_second`` and, on a GPU, ``peak_bytes``; with both sides ``speedup``, student over teacher.
    """
    chosen, length = [list(prompt) for prompt in prompts[:_ROWS]], min(_TOKENS, max_new_tokens)
    rates: dict[str, list[float]] = {side: [] for side in models}
    found: dict[str, Any] = {side: sizes(model) for side, model in models.items()}
    started = time.perf_counter()
    for number in range(_ROUNDS + 1):
        for side, model in models.items():
            rate, peak = _round(model, chosen, length, pad_id=pad_id, vocab_size=vocab_size)
            if number > 0:
                rates[side].append(rate)
            if peak is not None:
                found[side]["peak_bytes"] = peak
        # The first round warms up; a slow machine gives one round after it.
        if number > 0 and time.perf_counter() - started > _BUDGET:
            break
    for side, several in rates.items():
        found[side]["tokens_per_second"] = statistics.median(several)
    entry = {"batch_size": len(chosen), "new_tokens": length, "rounds": number, "device": _device(models), **found}
    if {"student", "teacher"} <= set(models):
        entry["speedup"] = found["student"]["tokens_per_second"] / found["teacher"]["tokens_per_second"]
    return entry


def _round(
    model: Any, prompts: list[list[int]], length: int, *, pad_id: int, vocab_size: int
) -> tuple[float, int | None]:
    """Tokens a second of one batch, and the most memory of a GPU that it took."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    answers = generate(
        model,
        prompts,
        eos_ids=(),
        pad_id=pad_id,
        max_new_tokens=length,
        temperature=0.0,
        batch_size=len(prompts),
        seed=0,
        vocab_size=vocab_size,
    )
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return sum(map(len, answers)) / seconds, peak


def _device(models: Mapping[str, Any]) -> str:
    device = next(next(iter(models.values())).parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
