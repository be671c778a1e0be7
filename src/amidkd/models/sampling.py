"""From logits to the next token: greedy or sampled, with every row's own random numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.errors import SettingError

__all__ = ["Sampling", "random_numbers"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Keep the smallest set of likeliest tokens with this mass, in (0, 1].
        top_k: Keep the k likeliest tokens; 0 keeps all.

    Raises:
        SettingError: A value is outside its domain.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise SettingError(f"temperature must be 0 (greedy) or above; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise SettingError(f"top_p must be in (0, 1]; got {self.top_p}")
        if self.top_k < 0:
            raise SettingError(f"top_k must be 0 (all tokens) or above; got {self.top_k}")

    def choose(self, logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """One token id for each row.

        Args:
            logits_BV: Logits [B, V], natural logarithm; −inf marks a token that may not come.
            uniform_B: Random numbers in [0, 1), one a row; the token is the inverse of the cumulative distribution.
        """
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        logits, ids = logits_BV.float() / self.temperature, None
        if 0 < self.top_k < logits.shape[-1]:
            logits, ids = logits.topk(self.top_k, dim=-1)
        elif self.top_p < 1:
            logits, ids = logits.sort(dim=-1, descending=True)
        probs = logits.softmax(dim=-1)
        if self.top_p < 1:
            before = probs.cumsum(dim=-1) - probs
            # The likeliest token always stays, though rounding may put its `before` above 0.
            probs = probs.masked_fill(before >= self.top_p, 0.0).index_copy(1, _zero(probs), probs[:, :1])
        picked = _invert(probs, uniform_B)
        return picked if ids is None else ids.gather(1, picked[:, None])[:, 0]


def random_numbers(seed: int, rows: list[int], length: int) -> Tensor:
    """Uniform numbers in [0, 1) [rows, length]; a row's numbers depend on the seed and its index alone.

    So an answer does not change with the batch that it is made in.

    Args:
        seed: Seed of the whole call.
        rows: Index of each row.
        length: Numbers a row.
    """
    generator = torch.Generator()
    numbers = torch.empty(len(rows), length, dtype=torch.float64)
    for place, row in enumerate(rows):
        generator.manual_seed(_mix(seed, row))
        numbers[place] = torch.rand(length, generator=generator, dtype=torch.float64)
    return numbers


def _mix(seed: int, row: int) -> int:
    """Spread (seed, row) over 63 bits (Steele et al. 2014, SplitMix64), so that neighbours share no stream."""
    word = (seed * 0x9E3779B97F4A7C15 + (row + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (word ^ (word >> 31)) >> 1


def _zero(tensor: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.long, device=tensor.device)


def _invert(probs_BK: Tensor, uniform_B: Tensor) -> Tensor:
    """The first index whose cumulative mass exceeds the random number; never one of mass 0."""
    wide = torch.float32 if probs_BK.device.type == "mps" else torch.float64
    cumulative = probs_BK.cumsum(dim=-1, dtype=wide)
    total = cumulative[:, -1:]
    goal = uniform_B.to(cumulative)[:, None] * total
    picked = torch.searchsorted(cumulative, goal, right=True)
    # Where the product rounds up to the total, the last token that has mass.
    last = torch.searchsorted(cumulative, total.contiguous())
    return torch.minimum(picked, last)[:, 0]
