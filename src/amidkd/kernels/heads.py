"""From a signal to logits of some of its tokens, and back to the gradient of what made them.

The product W h runs in the head's own dtype (as in the model itself); everything after it in float32, or float64
where the inputs are. Autocast is off here: it would round what the caller asked for in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from amidkd.signals import Hidden, Logits, Signal

__all__ = ["Rows", "StudentGradient", "compute_dtype", "exact", "head_logits", "sources", "take", "vocabulary"]

Rows = slice | Tensor
"""Some of N tokens: a slice, or their indices [n]."""


def take(tensor: Tensor, rows: Rows) -> Tensor:
    """Some rows of a tensor: a view for a slice, a copy for indices."""
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows.to(tensor.device))


def vocabulary(signal: Logits | Hidden) -> int:
    """The width of a signal's logits, padding included."""
    return signal.logits.shape[1] if isinstance(signal, Logits) else signal.weight.shape[0]


def sources(signal: Signal) -> tuple[Tensor | None, ...]:
    """The floating-point tensors that a signal is made of, in a fixed order."""
    if isinstance(signal, Logits):
        return (signal.logits,)
    if isinstance(signal, Hidden):
        return signal.states, signal.weight, signal.bias
    return signal.log_probs, signal.log_tail


def compute_dtype(signals: list[Signal]) -> torch.dtype:
    """Float64 where any signal is float64, otherwise float32."""
    every = [tensor.dtype for signal in signals for tensor in sources(signal) if tensor is not None]
    return torch.float64 if torch.float64 in every else torch.float32


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Switch autocast off."""
    with torch.autocast(device_type=device.type, enabled=False):
        yield


def head_logits(signal: Logits | Hidden, rows: Rows, *, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Logits of some tokens over the shared vocabulary.

    Hidden: softcap·tanh(scale·(W h + b)/softcap), or scale·(W h + b)

    Args:
        signal: Logits [N, V'] or hidden states [N, H] with a head [V', H], V' ≥ ``vocab_size``.
        rows: Which tokens.
        vocab_size: V; what lies beyond is left out before any arithmetic.
        dtype: Of the result.

    Returns:
        Logits [n, V]; of a `Logits` signal in that dtype, a view of its tensor where ``rows`` is a slice.
    """
    if isinstance(signal, Logits):
        return take(signal.logits[:, :vocab_size], rows).to(dtype)
    weight = signal.weight[:vocab_size]
    product = torch.nn.functional.linear(take(signal.states, rows).to(weight.dtype), weight).to(dtype)
    if signal.bias is not None:
        product = product + signal.bias[:vocab_size].to(dtype)
    if signal.scale != 1.0:
        product = product * signal.scale
    if signal.softcap is not None:
        product = torch.tanh(product / signal.softcap) * signal.softcap
    return product


class StudentGradient:
    """Collects dL/d(what the student's logits are made of), some tokens at a time.

    Logits keep theirs in one buffer of their own dtype (a token's row is written once, so nothing is lost by it);
    states, weight and bias are summed in ``dtype`` and rounded to their own at the end.
    """

    def __init__(self, signal: Logits | Hidden, *, vocab_size: int, dtype: torch.dtype) -> None:
        self._signal = signal
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._buffers: list[Tensor | None]
        if isinstance(signal, Logits):
            self._buffers = [torch.zeros_like(signal.logits, memory_format=torch.contiguous_format)]
        else:
            self._buffers = [
                torch.zeros_like(part, dtype=dtype) if part is not None and part.requires_grad else None
                for part in sources(signal)
            ]

    def add(self, rows: Rows, logits: Tensor, gradient: Tensor) -> None:
        """Add some tokens' gradient with respect to their logits; it is used up.

        Args:
            rows: Which tokens.
            logits: Their logits [n, V], as ``head_logits`` gave them.
            gradient: dL/dlogits [n, V]; overwritten.
        """
        signal, V = self._signal, self._vocab_size
        if isinstance(signal, Logits):
            buffer = self._buffers[0]
            assert buffer is not None
            buffer[rows, :V] = gradient.to(buffer.dtype)
            return
        if signal.softcap is not None:
            gradient.mul_(1.0 - (logits / signal.softcap).square_())
        if signal.scale != 1.0:
            gradient.mul_(signal.scale)
        states, weight, bias = self._buffers
        if bias is not None:
            bias[:V] += gradient.sum(0)
        if weight is not None:
            weight[:V].addmm_(gradient.T, take(signal.states, rows).to(self._dtype))
        if states is not None:
            head = signal.weight[:V]
            states[rows] = (gradient.to(head.dtype) @ head).to(self._dtype)

    def finish(self) -> list[Tensor | None]:
        """The gradients, one a source of the signal, None where none is wanted."""
        return self._buffers
