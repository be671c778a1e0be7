"""What a vLLM server and vLLM in this process have in common: how they are asked, and what an answer must be."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amidkd.config import SamplingConfig
from amidkd.errors import SettingError
from amidkd.generation.base import GenerationError, Prompts
from amidkd.models.facts import text_config

__all__ = ["Answer", "VllmSampling", "request_seed"]

# vLLM raises a temperature below this to it.
_LEAST_TEMPERATURE = 0.01
# Added to the logits of ids that must never come; vLLM allows no less.
_NEVER = -100.0


def request_seed(seed: int, stream: int) -> int:
    """The seed of one answer, in [0, 2⁶³): equal streams draw equal numbers, neighbours share none.

    Args:
        seed: Seed of the sampling.
        stream: Names the answer.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Answer:
    """One answer as an engine gives it; nothing in it is trusted.

    Args:
        ids: Ids of the answer.
        prompt: Ids of the prompt as the engine read it; None where it does not say.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The id that ended the answer; None where the engine does not say.
    """

    ids: Any
    prompt: Any
    finish_reason: Any
    stop_reason: Any


@dataclass(frozen=True)
class VllmSampling:
    """How vLLM is asked, so that a model's or a server's own sampling settings play no part.

    Args:
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus.
        top_k: Sample among the k likeliest; 0 is all.
        eos_ids: Ids that end an answer; no other does.
        vocab_size: Ids from here on never come.
        head_size: Rows of the model's head, at least ``vocab_size``.
        context: Positions that the model has; None: no limit is known.
    """

    temperature: float
    top_p: float
    top_k: int
    eos_ids: tuple[int, ...]
    vocab_size: int
    head_size: int
    context: int | None
    _bias: dict[int, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            raise SettingError(
                f"temperature {self.temperature} is below {_LEAST_TEMPERATURE}, the least that vLLM samples with; "
                "take 0 (greedy) or more"
            )
        wrong = [token for token in self.eos_ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise SettingError(f"EOS ids {wrong} are outside the vocabulary of {self.vocab_size} ids")
        # The rows that pad a head have had no training, yet an untrained row can be sampled.
        object.__setattr__(self, "_bias", dict.fromkeys(range(self.vocab_size, self.head_size), _NEVER))

    @classmethod
    def of(cls, config: SamplingConfig, model: Any, eos_ids: Sequence[int], vocab_size: int | None) -> "VllmSampling":
        """Take what is needed from a run's settings and its model."""
        settings = text_config(model)
        head = int(settings.vocab_size)
        context = getattr(settings, "max_position_embeddings", None)
        if vocab_size is not None and vocab_size > head:
            raise SettingError(f"vocab_size {vocab_size} is above the {head} ids of the model's head")
        return cls(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            eos_ids=tuple(eos_ids),
            vocab_size=head if vocab_size is None else vocab_size,
            head_size=head,
            context=None if context is None else int(context),
        )

    def arguments(self, limit: int, seed: int) -> dict[str, Any]:
        """What both engines call a request's sampling, every setting spelt out.

        Without ``ignore_eos``, ids of the model's generation settings would end answers too.

        Args:
            limit: Longest answer, at least 1.
            seed: Seed of this answer.
        """
        given: dict[str, Any] = {
            "n": 1,
            "max_tokens": limit,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "top_k": self.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(self.eos_ids),
            "ignore_eos": True,
            "skip_special_tokens": False,
        }
        if self.temperature:
            given["seed"] = seed
        if self._bias:
            given["logit_bias"] = self._bias
        return given

    def limits(self, prompts: Prompts, room: int | None) -> list[int]:
        """Longest answer to each prompt: cut where the model has no more positions, as the model itself would be.

        Args:
            prompts: What is asked.
            room: Positions that the engine has; None: it does not say.

        Raises:
            SettingError: An empty prompt; one that the model or the engine has no room for; an id outside the
                vocabulary.
        """
        limits = []
        for index, (tokens, limit) in enumerate(zip(prompts.tokens, prompts.limits, strict=True)):
            if len(tokens) == 0:
                raise SettingError(f"prompt {index} is empty; give it at least one token, such as BOS")
            if not 0 <= min(tokens) <= max(tokens) < self.head_size:
                raise SettingError(f"prompt {index} has ids outside the model's {self.head_size}")
            allowed = limit if self.context is None else min(limit, self.context - len(tokens))
            if allowed < 1:
                raise SettingError(
                    f"prompt {index} has {len(tokens)} tokens, which leaves no room for an answer in the model's "
                    f"context of {self.context} tokens; shorten it (data.max_prompt_length)"
                )
            if room is not None and len(tokens) + allowed > room:
                raise SettingError(
                    f"prompt {index} has {len(tokens)} tokens and its answer up to {allowed}, but vLLM holds "
                    f"{room}; start it with a larger --max-model-len, or lower max_new_tokens"
                )
            limits.append(allowed)
        return limits

    def checked(self, answer: Answer, prompt: Sequence[int], limit: int, where: str) -> list[int]:
        """The ids of an answer, if all that came with them is as it must be.

        Args:
            answer: What the engine gave.
            prompt: What it was to continue.
            limit: Longest answer that it was allowed.
            where: Names the engine and the answer in messages.

        Raises:
            GenerationError: Anything is odd; the message says what. Such text is never learnt from.
        """
        ids = answer.ids
        if not (isinstance(ids, Sequence) and not isinstance(ids, str | bytes) and all(map(_is_id, ids))):
            raise GenerationError(f"{where}: the ids of the answer are {_short(ids)}, not a list of integers")
        ids = list(ids)
        if answer.prompt is not None and list(answer.prompt) != list(prompt):
            raise GenerationError(
                f"{where}: it read the prompt as {_short(answer.prompt)}, but {_short(list(prompt))} was sent"
            )
        if not 1 <= len(ids) <= limit:
            raise GenerationError(f"{where}: {len(ids)} tokens came, with 1 to {limit} allowed")
        outside = [token for token in ids if not 0 <= token < self.vocab_size]
        if outside:
            raise GenerationError(
                f"{where}: ids {_short(outside)} are outside the vocabulary of {self.vocab_size}; is it the same model?"
            )
        self._check_end(ids, answer, limit, where)
        return ids

    def _check_end(self, ids: list[int], answer: Answer, limit: int, where: str) -> None:
        ended = ids[-1] in self.eos_ids
        if any(token in self.eos_ids for token in ids[:-1]):
            raise GenerationError(f"{where}: it wrote on after EOS: {_short(ids)}")
        if answer.finish_reason == "stop":
            if not ended:
                raise GenerationError(f"{where}: it stopped, but the last id {ids[-1]} is no EOS {self.eos_ids}")
            if answer.stop_reason not in (None, ids[-1]):
                raise GenerationError(f"{where}: it stopped at {answer.stop_reason!r}, but the last id is {ids[-1]}")
        elif answer.finish_reason == "length":
            if len(ids) != limit:
                raise GenerationError(f"{where}: it was cut at {len(ids)} tokens, with {limit} allowed")
        else:
            raise GenerationError(f"{where}: it ended by {answer.finish_reason!r}, neither stop nor length")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
