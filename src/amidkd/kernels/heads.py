"""From a signal to logits of some of its tokens.

The product W h runs in the head's own dtype (as in the model itself); everything after it in float32, or float64
where the inputs are. Autocast is off here: it would round what the caller asked for in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from amidkd.signals import Hidden, Logits, Signal

__all__ = ["Rows", "compute_dtype", "exact", "head_logits", "piece_rows", "sources", "take", "vocabulary"]

Rows = slice | Tensor
"""Some of N tokens: a slice, or their indices [n]."""

CACHED = 2**18
"""Numbers of a buffer on a CPU: more no longer fit in the caches, and of fewer the calls themselves take too long."""


def piece_rows(count: int, width: int, device: torch.device) -> int:
    """How many rows to work on at once, at least one: on a CPU what stays in the caches, elsewhere all.

    Args:
        count: How many there are.
        width: Numbers in a row.
        device: Where.
    """
    return max(1, min(count, CACHED // max(1, width)) if device.type == "cpu" else count)


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
