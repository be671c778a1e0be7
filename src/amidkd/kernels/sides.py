"""The two sides of a walk: where the logits of some tokens come from, and where their gradient goes.

Logits that a row kernel can read are handed on as they are, with an index where only some tokens count. All else is
made in buffers that are allocated once: products with a head, copies from another device or of another layout.
"""

import torch
from torch import Tensor

from amidkd.kernels.heads import Rows, sources, take
from amidkd.kernels.pages import on_large_pages
from amidkd.signals import Hidden, Logits

__all__ = ["Some", "StudentSide", "TeacherSide", "logits_dtype", "needs_buffer"]

SLAB = 2**22
"""Numbers of a half-precision product that are made at once before they are added up in float32."""

Some = tuple[Tensor, Tensor | None]
"""Logits [N, ≥ V] with the index [n] of the tokens that are meant, or None for all of its rows."""


def _readable(logits: Tensor, device: torch.device) -> bool:
    """Whether a row kernel can read them where they are."""
    return logits.device == device and (logits.stride(1) == 1 or logits.shape[1] == 1)


def _some(logits: Tensor, rows: Rows) -> Some:
    return (logits[rows], None) if isinstance(rows, slice) else (logits, rows)


class _Buffers:
    """Chunks of logits of one signal, in memory that is allocated once.

    Args:
        signal: What they come from.
        vocab_size: V.
        dtype: Of the arithmetic after the product.
        device: Where the logits are wanted.
        step: Tokens of the largest chunk.
    """

    def __init__(
        self, signal: Logits | Hidden, *, vocab_size: int, dtype: torch.dtype, device: torch.device, step: int
    ) -> None:
        self.signal = signal
        self.vocab_size = vocab_size
        self.dtype = logits_dtype(signal, dtype)
        self.buffer = on_large_pages(torch.empty((step, vocab_size), dtype=self.dtype, device=device))
        self.product = self.buffer
        if isinstance(signal, Hidden) and (
            signal.weight.dtype != self.dtype or signal.weight.device != self.buffer.device
        ):
            self.product = torch.empty((step, vocab_size), dtype=signal.weight.dtype, device=signal.weight.device)

    def make(self, rows: Rows, count: int) -> Tensor:
        """The logits of some tokens [n, V]: overwrites what was made before."""
        out = self.buffer[:count]
        signal, V = self.signal, self.vocab_size
        if isinstance(signal, Logits):
            return out.copy_(take(signal.logits[:, :V], rows))
        weight = signal.weight[:V]
        torch.mm(take(signal.states, rows).to(weight.dtype), weight.T, out=self.product[:count])
        if self.product is not self.buffer:
            out.copy_(self.product[:count])
        if signal.bias is not None:
            out.add_(signal.bias[:V].to(out))
        if signal.scale != 1.0:
            out.mul_(signal.scale)
        if signal.softcap is not None:
            out.div_(signal.softcap).tanh_().mul_(signal.softcap)
        return out


def logits_dtype(signal: Logits | Hidden, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a signal's chunks: its own, but that of the arithmetic where more follows the product."""
    if isinstance(signal, Logits):
        return signal.logits.dtype
    plain = signal.bias is None and signal.scale == 1.0 and signal.softcap is None
    return signal.weight.dtype if plain else dtype


class TeacherSide:
    """The logits of one teacher.

    Args:
        signal: What it says.
        vocab_size: V.
        dtype: Of the arithmetic.
        device: The student's.
        step: Tokens of the largest chunk.
    """

    def __init__(
        self, signal: Logits | Hidden, *, vocab_size: int, dtype: torch.dtype, device: torch.device, step: int
    ) -> None:
        self._signal = signal
        self._buffers = None
        if needs_buffer(signal, device):
            self._buffers = _Buffers(signal, vocab_size=vocab_size, dtype=dtype, device=device, step=step)

    def load(self, rows: Rows, count: int) -> Some:
        """The logits of n tokens, valid until the next call."""
        if self._buffers is not None:
            return self._buffers.make(rows, count), None
        assert isinstance(self._signal, Logits)
        return _some(self._signal.logits, rows)


def needs_buffer(signal: Logits | Hidden, device: torch.device) -> bool:
    """Whether a signal's logits have to be made or copied, some tokens at a time."""
    return isinstance(signal, Hidden) or not _readable(signal.logits, device)


class StudentSide:
    """The logits of the student, and the gradient of what they are made of.

    Logits keep their gradient in one tensor of their own dtype. States, weight and bias are summed in the dtype of the
    arithmetic; the gradient of a chunk's logits is written over them, and two products follow.

    Args:
        signal: What the student says.
        vocab_size: V.
        dtype: Of the arithmetic.
        step: Tokens of the largest chunk.
        gradient: Whether one is wanted.
        rows: Indices [n] of all tokens that will come, or None for all.
    """

    def __init__(
        self,
        signal: Logits | Hidden,
        *,
        vocab_size: int,
        dtype: torch.dtype,
        step: int,
        gradient: bool,
        rows: Tensor | None,
    ) -> None:
        self._signal = signal
        self._vocab_size = vocab_size
        self._gradient = gradient
        self._started = False
        self._buffers = self._capped = None
        first = sources(signal)[0]
        assert first is not None
        if needs_buffer(signal, first.device):
            self._buffers = _Buffers(signal, vocab_size=vocab_size, dtype=dtype, device=first.device, step=step)
        self._sums: list[Tensor | None] = []
        if not gradient:
            return
        if isinstance(signal, Logits):
            self._sums = [_empty_like(signal.logits, vocab_size=vocab_size, rows=rows)]
            return
        assert self._buffers is not None
        if signal.softcap is not None:
            self._capped = torch.empty_like(self._buffers.buffer)
        # what is written once needs no sum: every token's states, and a head that sees all tokens in one chunk
        once = step >= (first.shape[0] if rows is None else rows.shape[0])
        half = signal.weight.dtype if once and signal.weight.dtype == torch.bfloat16 else dtype
        for part, make, kind in (
            (signal.states, torch.empty if rows is None else torch.zeros, dtype),
            (signal.weight, torch.empty, half),
            (signal.bias, torch.zeros, dtype),
        ):
            if part is None or not part.requires_grad:
                self._sums.append(None)
            else:
                made = make(part.shape, dtype=kind, device=first.device)
                self._sums.append(on_large_pages(made) if make is torch.empty else made)

    def load(self, rows: Rows, count: int) -> Some:
        """The logits of n tokens, valid until ``collect``."""
        if self._buffers is None:
            assert isinstance(self._signal, Logits)
            return _some(self._signal.logits, rows)
        logits = self._buffers.make(rows, count)
        if self._capped is not None:
            self._capped[:count].copy_(logits)
        return logits, None

    def target(self, rows: Rows, count: int) -> Tensor | None:
        """Where the gradient of the logits that ``load`` gave is to be written, with the same index; or None."""
        if not self._gradient:
            return None
        if self._buffers is not None:
            return self._buffers.buffer[:count]
        whole = self._sums[0]
        assert whole is not None
        return _some(whole, rows)[0]

    def collect(self, rows: Rows, count: int) -> None:
        """Take the gradient that was written."""
        if not self._gradient or self._buffers is None:
            return
        signal, V, slope = self._signal, self._vocab_size, self._buffers.buffer[:count]
        if isinstance(signal, Logits):
            whole = self._sums[0]
            assert whole is not None
            whole[rows, :V] = slope
            return
        if self._capped is not None and signal.softcap is not None:
            steep = self._capped[:count].div_(signal.softcap).square_()
            slope.addcmul_(slope, steep, value=-1.0)
        if signal.scale != 1.0:
            slope.mul_(signal.scale)
        states, weight, bias = self._sums
        if bias is not None:
            bias[:V] += slope.sum(0, dtype=bias.dtype)
        head = signal.weight[:V]
        if self._buffers.product is not self._buffers.buffer:
            slope = self._buffers.product[:count].copy_(slope)
        if states is not None:
            if isinstance(rows, slice) and states.dtype == slope.dtype:
                torch.mm(slope, head, out=states[rows])
            else:
                states[rows] = (slope @ head).to(states.dtype)
        if weight is not None:
            self._add_outer(weight, slope, take(signal.states, rows).to(slope.dtype))

    def _add_outer(self, weight: Tensor, slope: Tensor, states: Tensor) -> None:
        """Add slopeᵀ·states to the head's gradient, whose memory holds nothing yet at the first call."""
        V, beta = self._vocab_size, 1.0 if self._started else 0.0
        self._started = True
        if weight.dtype == slope.dtype:
            weight[:V].addmm_(slope.T, states, beta=beta)
            return
        step = max(1, SLAB // max(1, states.shape[1]))
        for start in range(0, V, step):
            part, product = weight[start : min(start + step, V)], slope[:, start : start + step].T @ states
            part.copy_(product) if beta == 0.0 else part.add_(product)

    def finish(self) -> list[Tensor | None]:
        """The gradients, one a source of the signal, None where none is wanted."""
        if isinstance(self._signal, Hidden) and len(self._sums) == 3:
            weight = self._sums[1]
            if weight is not None:
                weight[self._vocab_size if self._started else 0 :] = 0.0
        return self._sums


def _empty_like(logits: Tensor, *, vocab_size: int, rows: Tensor | None) -> Tensor:
    """Memory for a gradient, 0 where nothing will be written."""
    out = on_large_pages(torch.empty_like(logits, memory_format=torch.contiguous_format))
    out[:, vocab_size:] = 0.0
    if rows is not None:
        rest = torch.ones(out.shape[0], dtype=torch.bool, device=out.device)
        rest[rows] = False
        out.index_fill_(0, rest.nonzero().squeeze(-1), 0.0)
    return out
