"""From logits to the next token: greedy or sampled, with every row's own random numbers.

A token is the inverse of the cumulative distribution at one random number. Over a large vocabulary the sums are taken
by blocks: only the sums of blocks, and then the one block that the token lies in, are cumulated, in float64. There is
one random number a row, nothing is sorted, and nothing of the vocabulary's size is held in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.errors import SettingError

__all__ = ["Sampling", "random_numbers", "wide_dtype"]

_BLOCK = 256


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Keep the smallest set of likeliest tokens with this mass, in (0, 1]; of tokens that are equally likely,
            all or none.
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
        """One token id for each row; −1 where the row's logits are NaN, +∞, or all −∞.

        Args:
            logits_BV: Logits [B, V], natural logarithm; −inf marks a token that may not come.
            uniform_B: Random numbers in [0, 1), one a row, of :func:`wide_dtype`; greedy ignores them.
        """
        if self.temperature == 0:
            return _likeliest(logits_BV)
        logits, ids = logits_BV.float(), None
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits, ids = logits.topk(self.top_k, dim=-1)
        probs = logits.softmax(dim=-1)
        sums = _block_sums(probs)
        # A NaN or infinite logit makes the whole row NaN, so the sums, which are needed anyway, tell.
        valid = sums.sum(dim=-1).isfinite()
        if self.top_p < 1:
            picked = _draw_nucleus(probs, sums, uniform_B, self.top_p)
        else:
            picked, _ = _draw(probs, sums, uniform_B)
        if ids is not None:
            picked = ids.gather(1, picked[:, None])[:, 0]
        return picked.where(valid, -1)


def random_numbers(seed: int, streams: list[int], length: int) -> Tensor:
    """Uniform numbers in [0, 1) [streams, length]; a row's numbers depend on the seed and its stream alone.

    So an answer does not change with the batch that it is made in.

    Args:
        seed: Seed of the whole call.
        streams: Name of each row's stream.
        length: Numbers a row.
    """
    generator = torch.Generator()
    numbers = torch.empty(len(streams), length, dtype=torch.float64)
    for place, stream in enumerate(streams):
        generator.manual_seed(_mix(seed, stream))
        numbers[place] = torch.rand(length, generator=generator, dtype=torch.float64)
    return numbers


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def _mix(seed: int, row: int) -> int:
    """Spread (seed, row) over 63 bits (Steele et al. 2014, SplitMix64), so that neighbours share no stream."""
    word = (seed * 0x9E3779B97F4A7C15 + (row + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (word ^ (word >> 31)) >> 1


def _likeliest(logits_BV: Tensor) -> Tensor:
    """The first of the largest logits; −1 where there is none. By blocks, since torch's ``argmax`` is scalar code."""
    cut = logits_BV.shape[-1] // _BLOCK * _BLOCK
    peaks = logits_BV[:, cut:].amax(dim=-1, keepdim=True) if cut < logits_BV.shape[-1] else None
    if cut:
        blocks = logits_BV[:, :cut].unflatten(-1, (-1, _BLOCK)).amax(dim=-1)
        peaks = blocks if peaks is None else torch.cat([blocks, peaks], dim=-1)
    assert peaks is not None
    peak, block = peaks.max(dim=-1)
    inside, ids = _block(logits_BV, block, float("-inf"))
    picked = ids.gather(1, inside.argmax(dim=-1, keepdim=True))[:, 0]
    return picked.where(peak.isfinite(), -1)


def _block_sums(probs_BK: Tensor) -> Tensor:
    """Sums of neighbouring entries [B, ceil(K / 256)]."""
    width = probs_BK.shape[-1]
    cut = width // _BLOCK * _BLOCK
    parts = [probs_BK[:, :cut].unflatten(-1, (-1, _BLOCK)).sum(dim=-1)] if cut else []
    if cut < width:
        parts.append(probs_BK[:, cut:].sum(dim=-1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _block(entries_BK: Tensor, block_B: Tensor, beyond: float) -> tuple[Tensor, Tensor]:
    """The entries of one block in each row, and where they stand [B, 256]; ``beyond`` fills up the last block."""
    ids = block_B[:, None] * _BLOCK + torch.arange(_BLOCK, device=block_B.device)
    last = entries_BK.shape[-1] - 1
    there = ids.clamp(max=last)
    return entries_BK.gather(1, there).masked_fill(ids > last, beyond), there


def _draw(probs_BK: Tensor, sums_BJ: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw an index in proportion to ``probs_BK``; also its entry's part of all [B]."""
    block, inside = _invert(sums_BJ, uniform_B)
    entries, ids = _block(probs_BK, block, 0.0)
    place, _ = _invert(entries, inside)
    place = place[:, None]
    return ids.gather(1, place)[:, 0], entries.gather(1, place)[:, 0]


def _invert(weights_BK: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative weight exceeds the random number, never one of weight 0.

    Also how far into the entry the number fell, from 0 to 1: another random number, independent of the index.
    """
    cumulative = weights_BK.cumsum(dim=-1, dtype=uniform_B.dtype)
    total = cumulative[:, -1:]
    goal = uniform_B[:, None] * total
    picked = torch.searchsorted(cumulative, goal, right=True)
    # Where the product rounds up to the total, the last entry that has weight.
    last = torch.searchsorted(cumulative, total.contiguous())
    picked = torch.minimum(picked, last).clamp(max=cumulative.shape[-1] - 1)
    end, weight = cumulative.gather(1, picked), weights_BK.gather(1, picked)
    return picked[:, 0], (1 - (end - goal) / weight).clamp(0, 1)[:, 0]


def _draw_nucleus(probs_BK: Tensor, sums_BJ: Tensor, uniform_B: Tensor, top_p: float) -> Tensor:
    """Draw from the smallest set of likeliest entries with mass ``top_p``, without sorting.

    An entry is in the set if what is likelier has less than that mass. Draw from all; an entry that is outside shows
    that only what is likelier than it can be inside, so draw from that again. Each accepted draw has the distribution
    restricted to the set, since the set lies within everything that is drawn from.
    """
    picked = torch.zeros_like(uniform_B, dtype=torch.long)
    rows = torch.arange(len(picked), device=picked.device)
    goal = sums_BJ.sum(dim=-1, dtype=uniform_B.dtype) * top_p
    probs, sums, uniform = probs_BK, sums_BJ, uniform_B
    while len(rows):
        found, weight = _draw(probs, sums, uniform)
        picked[rows] = found
        # Compared into floats: `where` and `masked_fill` take ten times as long on a CPU.
        probs = torch.gt(probs, weight[:, None], out=torch.empty_like(probs)).mul_(probs)
        sums = _block_sums(probs)
        outside = sums.sum(dim=-1, dtype=goal.dtype) >= goal
        rows, goal, probs, sums = rows[outside], goal[outside], probs[outside], sums[outside]
        uniform = _next_numbers(uniform[outside])
    return picked


def _next_numbers(uniform_B: Tensor) -> Tensor:
    """Random numbers that follow from random numbers (SplitMix64 of their 53 bits)."""
    word = (uniform_B * 2**53).long() + 0x1E3779B97F4A7C15
    word = (word ^ _shifted(word, 30)) * -0x40A7B892E31B1A47
    word = (word ^ _shifted(word, 27)) * -0x6B2FB644ECCEEE15
    word = word ^ _shifted(word, 31)
    return _shifted(word, 11).to(uniform_B) / 2**53


def _shifted(word_B: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's fills with the sign."""
    return (word_B >> by) & (2 ** (64 - by) - 1)
