"""Common outcomes: what several teachers say, as distributions over the same tokens and one tail.

A truncated teacher knows the probabilities of K tokens and the mass of the rest. Beside another it can only be compared
on outcomes that both know: of a full one its tokens' probabilities are gathered and the rest is summed, which is exact;
of several truncated ones the tokens that all of them list are kept, and what only some list joins each one's tail.
Nothing is invented. Rows keep their width: a token that falls away becomes an id beyond the vocabulary, an outcome that
cannot occur (``amidkd.kernels.outcomes``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from amidkd.kernels.heads import compute_dtype, head_logits
from amidkd.kernels.outcomes import pad_outcome
from amidkd.maths.coarse import coarse_grain, log_complement
from amidkd.signals import Hidden, Logits, Signal, TopK

__all__ = ["common_outcomes", "dense_at"]

_NUMBERS = 2**22
"""Logits that are made at once."""


def common_outcomes(signals: Sequence[Signal], *, vocab_size: int) -> tuple[Signal, ...]:
    """Signals that ``distillation_loss`` takes as one list: none truncated, or all to the same ids.

    Args:
        signals: What each teacher says of the same N tokens.
        vocab_size: Shared vocabulary V.

    Returns:
        The signals as they are where they fit already; else `TopK` each, with the same ids [N, K] of the narrowest
        truncated one, V in place of those that not all know, and a stored tail.
    """
    truncated = [signal for signal in signals if isinstance(signal, TopK)]
    if not truncated:
        return tuple(signals)
    if len(truncated) == len(signals) and all(_same_ids(signal, truncated[0]) for signal in truncated[1:]):
        return tuple(signals)
    dtype = compute_dtype(list(signals))
    base = min(truncated, key=lambda signal: signal.ids.shape[1])
    ids = base.ids.to(torch.int64).clamp(max=vocab_size)
    for other in truncated:
        if other is not base:
            ids = ids.masked_fill(~_found(ids, other.ids)[0], vocab_size)
    return tuple(
        _narrowed(signal, ids, vocab_size=vocab_size, dtype=dtype)
        if isinstance(signal, TopK)
        else dense_at(signal, ids, vocab_size=vocab_size, dtype=dtype)
        for signal in signals
    )


def dense_at(signal: Logits | Hidden, ids: Tensor, *, vocab_size: int, dtype: torch.dtype) -> TopK:
    """A full signal as what it says of some tokens and of all others together.

    Args:
        signal: N tokens.
        ids: Token ids [N, K] in 0 … V, distinct below V; V is an outcome that cannot occur.
        vocab_size: V; logits beyond it are padding.
        dtype: Of the arithmetic and the result.
    """
    step = max(1, _NUMBERS // vocab_size)
    pieces = []
    with torch.no_grad():
        for start in range(0, ids.shape[0], step):
            rows = slice(start, min(start + step, ids.shape[0]))
            logits = head_logits(signal, rows, vocab_size=vocab_size, dtype=dtype).to(ids.device)
            pieces.append(coarse_grain(pad_outcome(logits.log_softmax(-1)), ids[rows]))
        merged = torch.cat(pieces) if pieces else torch.empty((0, ids.shape[1] + 1), dtype=dtype, device=ids.device)
    return TopK(ids, merged[:, :-1], merged[:, -1])


def _same_ids(one: TopK, other: TopK) -> bool:
    return one.ids is other.ids or torch.equal(one.ids, other.ids)


def _found(ids: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where each id [N, K] is among others [N, J]: whether at all, and at which place."""
    ordered, order = others.to(device=ids.device, dtype=torch.int64).sort(-1)
    place = torch.searchsorted(ordered, ids.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(-1, place) == ids, order.gather(-1, place)


def _narrowed(signal: TopK, ids: Tensor, *, vocab_size: int, dtype: torch.dtype) -> TopK:
    """A truncated signal at some of its ids, with the rest of them in its tail."""
    log_probs = signal.log_probs.to(device=ids.device, dtype=dtype)
    own = signal.ids.to(ids.device)
    tail = log_complement(log_probs) if signal.log_tail is None else signal.log_tail.to(log_probs)
    beyond = own >= vocab_size
    # What lies beyond the vocabulary occurs on neither side, so it is in no tail either.
    tail = tail.masked_fill((~beyond).sum(-1) >= vocab_size, -torch.inf)
    log_probs = log_probs.masked_fill(beyond, -torch.inf)
    _, place = _found(ids, own)
    gone = ids >= vocab_size
    kept = log_probs.gather(-1, place).masked_fill(gone, -torch.inf)
    left = log_probs.masked_fill(_found(own.to(torch.int64), ids)[0], -torch.inf)
    return TopK(ids, kept, torch.cat([left, tail[:, None]], dim=-1).logsumexp(-1))
