"""A signal as bytes and back.

``top_k``: ids of 2, 3 or 4 bytes, log-probabilities in float16, and the logarithm of the remaining mass in float32. All
three are computed in float32 from the whole distribution; the tail is stored because one implied by rounded
log-probabilities can be negative. ``hidden``: last hidden states in bfloat16; the head is stored once. ``samples``: the
K likeliest tokens as they are, and draws from the rest, of which each token has the rest's mass times its share of the
draws: an unbiased estimate of the distribution (Anshumann et al., "Sparse Logit Sampling", ACL 2025), without a tail.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amidkd.errors import SettingError, TeacherError
from amidkd.kernels.heads import head_logits, vocabulary
from amidkd.maths.coarse import log_complement, truncate
from amidkd.signals import Hidden, Logits, TopK

__all__ = ["Layout", "layout_of"]

# Logits of a piece: about 64 MB in float32, and a few times that while the largest are looked for.
_PIECE = 2**24
_SMALLEST_HALF = float(np.finfo(np.float16).min)


@dataclass(frozen=True)
class Layout:
    """How a token's signal is stored.

    Args:
        format: ``top_k``, ``hidden`` or ``samples``.
        vocab_size: V, shared with the student.
        top_k: K, at most V; None with ``hidden``.
        width: Size of the hidden states; None with the others.
        draws: Draws of ``samples``; None with the others.
    """

    format: str
    vocab_size: int
    top_k: int | None = None
    width: int | None = None
    draws: int | None = None

    @property
    def id_bytes(self) -> int:
        """Bytes of a token id."""
        # With samples, V itself fills the places of a row that are not needed.
        ids = self.vocab_size + (self.format == "samples")
        return 2 if ids <= 1 << 16 else 3 if ids <= 1 << 24 else 4

    @property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """Name of each column of data, and its bytes for a supervised token."""
        if self.format == "hidden":
            assert self.width is not None
            return (("states", 2 * self.width),)
        ids, log_probs = ("ids", self.id_bytes * self.listed), ("log_probs", 2 * self.listed)
        return (ids, log_probs) if self.format == "samples" else (ids, log_probs, ("log_tail", 4))

    @property
    def listed(self) -> int:
        """Tokens that are listed for a supervised token."""
        assert self.top_k is not None
        return self.top_k if self.draws is None else min(self.top_k + self.draws, self.vocab_size)

    @property
    def token_bytes(self) -> int:
        """Bytes of a supervised token."""
        return sum(size for _, size in self.columns)

    def storage(self) -> dict[str, Any]:
        """Types of what is stored, for the manifest."""
        if self.format == "hidden":
            return {"states": "bfloat16"}
        listed = {"ids": f"uint{8 * self.id_bytes}", "log_probs": "float16"}
        return listed if self.format == "samples" else {**listed, "log_tail": "float32"}

    def encode(self, signal: Hidden | Logits | TopK, *, seed: int = 0) -> list[np.ndarray]:
        """A signal of N tokens as bytes.

        Args:
            signal: What a teacher says.
            seed: Of the draws of ``samples``.

        Returns:
            For each of :attr:`columns` an array [N, bytes of a token], uint8.

        Raises:
            TeacherError: A signal of another kind than the first one.
        """
        if self.format == "hidden":
            if not isinstance(signal, Hidden):
                raise TeacherError(f"the teacher gave {type(signal).__name__} where it gave hidden states before")
            states = signal.states.detach().to("cpu", torch.bfloat16).contiguous()
            return [_as_bytes(states.view(torch.int16).numpy())]
        ids, log_probs, log_tail = self._largest(signal, torch.Generator().manual_seed(seed))
        whole = log_probs > -torch.inf
        # What rounds to −inf in float16 has a probability of 0 in any type; a finite number keeps losses finite.
        half = torch.where(whole, log_probs.clamp(min=_SMALLEST_HALF), log_probs).to("cpu", torch.float16)
        packed = ids.to("cpu", torch.int32).numpy().astype("<u4").view(np.uint8)
        packed = packed.reshape(*ids.shape, 4)[..., : self.id_bytes].reshape(len(ids), -1)
        columns = [packed, _as_bytes(half.numpy())]
        return columns if self.draws else [*columns, _as_bytes(log_tail.float().cpu().numpy()[:, None])]

    def decode(self, columns: list[np.ndarray], head: dict[str, Any] | None) -> Hidden | TopK:
        """The inverse of :meth:`encode`, on the CPU.

        Args:
            columns: For each of :attr:`columns` an array [N, bytes of a token], uint8.
            head: Weight, bias, scale and soft cap, as arguments of ``Hidden``; None with ``top_k``.
        """
        if self.format == "hidden":
            assert head is not None
            states = torch.from_numpy(columns[0].view("<i2").astype(np.int16)).view(torch.bfloat16)
            return Hidden(states.to(head["weight"].dtype), **head)
        count = len(columns[0])
        wide = np.zeros((count, self.listed, 4), dtype=np.uint8)
        wide[..., : self.id_bytes] = columns[0].reshape(count, self.listed, self.id_bytes)
        ids = torch.from_numpy(wide.view("<u4")[..., 0].astype(np.int64))
        log_probs = torch.from_numpy(columns[1].view("<f2").astype(np.float32))
        if self.draws:
            return TopK(ids, log_probs, torch.full((count,), -torch.inf))
        return TopK(ids, log_probs, torch.from_numpy(columns[2].view("<f4")[:, 0].astype(np.float32)))

    def _largest(self, signal: Hidden | Logits | TopK, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, log-probabilities and tail, likeliest first."""
        assert self.top_k is not None
        if isinstance(signal, TopK):
            return _given(signal, self.top_k)
        count = len(signal.states) if isinstance(signal, Hidden) else len(signal.logits)
        rows = max(1, _PIECE // self.vocab_size)
        pieces = []
        for start in range(0, max(count, 1), rows):
            logits = head_logits(
                signal, slice(start, start + rows), vocab_size=self.vocab_size, dtype=torch.float32
            ).detach()
            log_p = logits.log_softmax(-1)
            if self.draws:
                pieces.append(_sampled(log_p.cpu(), self.top_k, self.draws, self.listed, generator))
            else:
                pieces.append(truncate(log_p, self.top_k))
        ids, log_probs, log_tail = zip(*pieces, strict=True)
        return torch.cat(ids), torch.cat(log_probs), torch.cat(log_tail)


def layout_of(format: str, top_k: int, signal: Hidden | Logits | TopK, *, vocab_size: int, draws: int = 0) -> Layout:
    """How a teacher's signal is to be stored, seen from a first one.

    Args:
        format: ``top_k``, ``hidden`` or ``samples``.
        top_k: K; more than V is V.
        signal: What the teacher says about a first sequence.
        vocab_size: V, shared with the student.
        draws: Of ``samples``.

    Raises:
        SettingError: The teacher does not say what the format needs.
    """
    if format == "hidden":
        if isinstance(signal, Hidden):
            return Layout("hidden", vocab_size, width=signal.states.shape[1])
        what = "log-probabilities alone" if isinstance(signal, TopK) else "logits alone: its head is of an unknown kind"
        raise SettingError(f"teacher.format: hidden needs hidden states, and this teacher gives {what}; use top_k")
    k = min(top_k, vocab_size)
    if format == "samples" and isinstance(signal, TopK):
        raise SettingError(
            "teacher.format: samples draws from whole distributions, and this teacher gives its likeliest tokens "
            "alone; use top_k, or a model in memory"
        )
    if isinstance(signal, TopK):
        if signal.ids.shape[1] != k:
            raise SettingError(
                f"teacher.top_k: {top_k}, but the server gives {signal.ids.shape[1]} tokens at each position; set "
                "teacher.top_k to what it gives"
            )
    elif vocabulary(signal) < vocab_size:
        raise SettingError(f"the teacher has {vocabulary(signal)} logits, and its tokenizer {vocab_size} tokens")
    return Layout(format, vocab_size, top_k=k, draws=draws if format == "samples" else None)


def _given(signal: TopK, k: int) -> tuple[Tensor, Tensor, Tensor]:
    if signal.ids.shape[1] != k:
        raise TeacherError(f"the teacher gave {signal.ids.shape[1]} tokens at a position where it gave {k} before")
    log_probs, order = signal.log_probs.float().sort(dim=-1, descending=True, stable=True)
    log_tail = log_complement(log_probs) if signal.log_tail is None else signal.log_tail
    return signal.ids.gather(1, order), log_probs, log_tail


def _sampled(
    log_p: Tensor, k: int, draws: int, listed: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest tokens, and those that were drawn from the rest with their estimates [N, listed]; no tail.

    A token that was drawn c times has the rest's mass times c / draws, whose mean is its probability.
    """
    ids, log_probs, log_tail = truncate(log_p, k)
    width = log_p.shape[1]
    rest = log_p.exp().scatter(1, ids, 0.0)
    nothing = rest.sum(-1, keepdim=True) <= 0
    drawn = torch.multinomial(rest.masked_fill(nothing, 1.0), draws, replacement=True, generator=generator)
    counts = torch.zeros_like(rest).scatter_add(1, drawn, torch.ones_like(drawn, dtype=rest.dtype))
    drawn = drawn.sort(dim=-1).values
    again = torch.zeros_like(drawn, dtype=torch.bool)
    again[:, 1:] = drawn[:, 1:] == drawn[:, :-1]
    shares = (counts.gather(1, drawn) / draws).log() + log_tail[:, None]
    idle = again | nothing
    drawn, shares = drawn.masked_fill(idle, width), shares.masked_fill(idle, -torch.inf)
    # Places that are not needed go last, and beyond the width of the list.
    order = shares.argsort(dim=-1, descending=True, stable=True)[:, : listed - k]
    ids = torch.cat([ids, drawn.gather(1, order)], dim=1)
    return ids, torch.cat([log_probs, shares.gather(1, order)], dim=1), torch.full_like(log_tail, -torch.inf)


def _as_bytes(numbers: np.ndarray) -> np.ndarray:
    little = np.ascontiguousarray(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False))
    return little.view(np.uint8).reshape(len(little), little.shape[1] * little.itemsize)
