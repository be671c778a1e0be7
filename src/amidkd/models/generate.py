"""Answers of a causal model to many prompts: batched by length, with a key-value cache.

A loop of its own rather than ``model.generate``: each row has its own random numbers, rows that are done leave
the batch, nothing of the model's generation settings leaks in, and small models are not slowed by set-up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amidkd.errors import SettingError
from amidkd.models.cache import growing_cache
from amidkd.models.facts import base_of, forward_parameters, text_config
from amidkd.models.modes import evaluating
from amidkd.models.packed import packed_weights
from amidkd.models.repeats import Repeats
from amidkd.models.sampling import Sampling, random_numbers, wide_dtype

__all__ = ["answer_limits", "generate"]

# Rows that are done stay in the batch until they are a fifth of it.
_CROWD = 0.8


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int | Sequence[int],
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int,
    seed: int,
    streams: Sequence[int] | None = None,
    vocab_size: int | None = None,
    no_repeat_ngram_size: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Answer prompts.

    Neither depends on the global random generators nor disturbs them; an answer depends on the seed, its stream, the
    prompt and the weights, not on the batch it is made in (beyond the rounding of the logits). The model keeps its
    mode and settings.

    Args:
        model: A causal model, not wrapped for distribution.
        prompts: Token ids of each prompt, at least one each.
        eos_ids: Ids that end an answer.
        pad_id: Id that fills the left of short prompts; masked, so any valid id will do.
        max_new_tokens: Longest answer, EOS included; one number, or one for each prompt. Where prompt and answer
            together would pass the model's ``max_position_embeddings``, the answer is cut there.
        temperature: 0 is greedy.
        top_p: Nucleus, in (0, 1].
        top_k: Sample among the k likeliest tokens; 0 is all.
        batch_size: Prompts in a forward pass.
        seed: Seed of the sampling.
        streams: Names the random numbers of each answer; default the prompts' indices.
        vocab_size: Ids from here on never come (padded rows of the head).
        no_repeat_ngram_size: No run of so many tokens comes twice in prompt and answer; 0: no such rule.
        progress: Called after each batch with the prompts answered and the tokens made in it.

    Returns:
        Token ids of each answer, in the prompts' order; EOS is there where it came, and nothing after it.

    Raises:
        SettingError: An empty prompt; a prompt that fills the model's whole context; a value outside its
            domain; logits that are NaN or infinite.

    Example:
        >>> generate(model, [[1, 5, 6]], eos_ids=[2], pad_id=0, max_new_tokens=8, temperature=0,
        ...          batch_size=1, seed=0)  # doctest: +SKIP
        [[7, 9, 2]]
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    longest = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    names = list(range(len(prompts)) if streams is None else streams)
    _check(len(prompts), max_new_tokens, longest, names, batch_size, vocab_size)
    if no_repeat_ngram_size < 0:
        raise SettingError(f"no_repeat_ngram_size must be 0 (no rule) or above; got {no_repeat_ngram_size}")
    limits = answer_limits(model, prompts, longest)
    decoder = _Decoder(model, sampling, frozenset(eos_ids), pad_id, vocab_size, no_repeat_ngram_size)
    answers: list[list[int]] = [[] for _ in prompts]
    batches = list(_batches([len(prompt) for prompt in prompts], batch_size, mixed=decoder.caches))
    devices = [decoder.device] if decoder.device.type == "cuda" else []
    with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=devices), ExitStack() as stack:
        torch.manual_seed(seed)
        if batches:
            stack.enter_context(packed_weights(model, max(map(len, batches))))
        for rows in batches:
            made = decoder.run(
                [prompts[row] for row in rows], [limits[row] for row in rows], [names[row] for row in rows], seed
            )
            for row, answer in zip(rows, made, strict=True):
                answers[row] = answer
            if progress is not None:
                progress(len(rows), sum(map(len, made)))
    return answers


@dataclass(frozen=True)
class _Decoder:
    model: Any
    sampling: Sampling
    eos_ids: frozenset[int]
    pad_id: int
    vocab_size: int | None
    no_repeat_ngram_size: int

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def caches(self) -> bool:
        """Whether the model has a key-value cache; recurrent ones have a state, which padding would enter."""
        takes = "past_key_values" in forward_parameters(self.model)
        return takes and not getattr(base_of(self.model), "_is_stateful", False)

    def run(self, prompts: list[Sequence[int]], limits: list[int], streams: list[int], seed: int) -> list[list[int]]:
        """Answer one batch."""
        steps = max(limits)
        uniform_BS = random_numbers(seed, streams, steps if self.sampling.temperature else 1)
        uniform_BS = uniform_BS.to(self.device, wide_dtype(self.device))
        answers: list[list[int]] = [[] for _ in prompts]
        forward = _Forward(self.model, prompts, self.pad_id, steps, caches=self.caches)
        places, done = list(range(len(prompts))), [False] * len(prompts)
        repeats = Repeats(prompts, self.no_repeat_ngram_size) if self.no_repeat_ngram_size else None
        for step in range(steps):
            logits = forward.next_logits()[:, : self.vocab_size]
            if repeats is not None:
                logits = repeats.ruled_out(logits, places)
            chosen = self.sampling.choose(logits, uniform_BS[:, step if self.sampling.temperature else 0])
            # The one place in a step that waits for the device.
            for place, token in zip(places, chosen.tolist(), strict=True):
                if not done[place]:
                    if token < 0:
                        raise SettingError("the model's logits are NaN or infinite; check its weights and dtype")
                    answers[place].append(token)
                    if repeats is not None:
                        repeats.add(place, token)
                    done[place] = token in self.eos_ids or len(answers[place]) >= limits[place]
            keep = [index for index, place in enumerate(places) if not done[place]]
            if not keep:
                break
            forward.extend(chosen)
            # Leaving copies the cache, so rows leave in groups; but none may outgrow the model's positions.
            full = any(step + 1 >= limits[place] for place in places)
            if forward.can_drop and len(keep) < len(places) and (full or len(keep) <= _CROWD * len(places)):
                kept = torch.tensor(keep, device=self.device)
                forward.keep(kept)
                uniform_BS = uniform_BS[kept]
                places = [places[index] for index in keep]
        return answers


class _Forward:
    """The rows being answered: what the model is to read next, and its cache of what it has read.

    A model without a key-value cache (a recurrent one) reads everything again for each token.
    """

    def __init__(self, model: Any, prompts: list[Sequence[int]], pad_id: int, steps: int, *, caches: bool) -> None:
        parameters = forward_parameters(model)
        device = next(model.parameters()).device
        self._model, self._caches = model, caches
        self._takes_positions = "position_ids" in parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._unread_BT, self._attention_BT = _left_padded(prompts, pad_id, device)
        self._positions_BT = (self._attention_BT.cumsum(dim=1) - 1).clamp(min=0)
        self._width = self._unread_BT.shape[1]
        # Where nothing is padded the model needs no mask, and spares itself the work on one.
        self._padded = min(map(len, prompts)) < self._width
        self._attention_BT = nn.functional.pad(self._attention_BT, (0, steps), value=1)
        self._cache: Any = growing_cache(base_of(model)) if caches else None

    @property
    def can_drop(self) -> bool:
        """Whether rows can leave; the states of some hybrid models have no way to."""
        layers = getattr(self._cache, "layers", ())
        return all(hasattr(layer, "batch_select_indices") for layer in layers)

    def next_logits(self) -> Tensor:
        """Logits [B, V] of the next token of each row."""
        inputs: dict[str, Any] = {"input_ids": self._unread_BT, "use_cache": self._caches}
        if self._padded:
            inputs["attention_mask"] = self._attention_BT[:, : self._width]
        if self._takes_positions:
            inputs["position_ids"] = self._positions_BT
        if self._caches:
            inputs["past_key_values"] = self._cache
        output = self._model(**inputs, **self._last_only)
        if self._caches:
            self._cache = output.past_key_values
        return output.logits[:, -1]

    def extend(self, chosen_B: Tensor) -> None:
        """Append the chosen tokens."""
        chosen, following = chosen_B[:, None], self._positions_BT[:, -1:] + 1
        self._width += 1
        if self._caches:
            self._unread_BT, self._positions_BT = chosen, following
        else:
            self._unread_BT = torch.cat([self._unread_BT, chosen], dim=1)
            self._positions_BT = torch.cat([self._positions_BT, following], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self._attention_BT, self._unread_BT = self._attention_BT[rows], self._unread_BT[rows]
        self._positions_BT = self._positions_BT[rows]
        if self._cache is not None:
            self._cache.batch_select_indices(rows)


def _batches(lengths: list[int], size: int, *, mixed: bool) -> Iterator[list[int]]:
    """Cut prompts, sorted by length, into batches; of one length each unless ``mixed``."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == size or not (mixed or lengths[row] == lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _left_padded(prompts: list[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    tokens = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    attention = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(attention, device=device)


def _check(
    count: int,
    max_new_tokens: int | Sequence[int],
    longest: list[int],
    streams: list[int],
    batch_size: int,
    vocab_size: int | None,
) -> None:
    if not len(longest) == len(streams) == count:
        raise SettingError(
            f"max_new_tokens and streams must have one value for each of {count} prompts; "
            f"got {len(longest)} and {len(streams)}"
        )
    least = max_new_tokens if isinstance(max_new_tokens, int) else min(longest, default=1)
    if least < 1 or batch_size < 1:
        raise SettingError(f"max_new_tokens and batch_size must be above 0; got {least} and {batch_size}")
    if vocab_size is not None and vocab_size < 1:
        raise SettingError(f"vocab_size must be above 0; got {vocab_size}")


def answer_limits(model: Any, prompts: Sequence[Sequence[int]], longest: list[int]) -> list[int]:
    """Longest answer to each prompt that the model's context has room for."""
    context = getattr(text_config(model), "max_position_embeddings", None)
    limits = []
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise SettingError(f"prompt {index} is empty; give it at least one token, such as BOS")
        room = longest[index] if context is None else min(longest[index], int(context) - len(prompt))
        if room < 1:
            raise SettingError(
                f"prompt {index} has {len(prompt)} tokens, which leaves no room for an answer in the model's "
                f"context of {context} tokens; shorten it (data.max_prompt_length)"
            )
        limits.append(room)
    return limits
