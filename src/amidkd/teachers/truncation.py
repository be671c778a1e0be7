"""A full signal as its likeliest tokens and the mass of the rest."""

import torch

from amidkd.kernels.heads import compute_dtype, head_logits
from amidkd.maths.coarse import truncate
from amidkd.signals import Hidden, Logits, TopK

__all__ = ["truncated"]

_NUMBERS = 2**24
"""Logits that are made at once."""


def truncated(signal: Logits | Hidden, k: int, *, vocab_size: int) -> TopK:
    """The K likeliest tokens of a full signal, likeliest first, and the mass of the rest.

    Args:
        signal: N tokens.
        k: At least 1; more than ``vocab_size`` is all of it, with an empty tail.
        vocab_size: V; logits beyond it are padding.

    Returns:
        Ids, log-probabilities [N, min(k, V)] and tail in float32 (float64 where the signal is), without a gradient.
    """
    dtype, count = compute_dtype([signal]), min(k, vocab_size)
    tokens = signal.logits if isinstance(signal, Logits) else signal.states
    step = max(1, _NUMBERS // vocab_size)
    pieces = []
    with torch.no_grad():
        for start in range(0, tokens.shape[0], step):
            logits = head_logits(signal, slice(start, start + step), vocab_size=vocab_size, dtype=dtype)
            pieces.append(truncate(logits.log_softmax(-1), count))
    if not pieces:
        empty = torch.empty((0, count), dtype=dtype, device=tokens.device)
        return TopK(empty.to(torch.int64), empty, empty[:, 0])
    ids, log_probs, log_tail = (torch.cat(part) for part in zip(*pieces, strict=True))
    return TopK(ids, log_probs, log_tail)
