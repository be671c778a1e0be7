"""Coarse-graining: V tokens merged to K of them and a tail.

A truncated teacher says K probabilities and the mass of the rest. To compare it with a student, the student is
merged to the same K + 1 outcomes. Merging never increases an f-divergence between teacher and student (the
data-processing inequality), nor one with an assistant at α = −1. At another α the merged mixture is not the
mixture of the merged, so there the value is an approximation and no bound.
"""

import torch
from torch import Tensor

from amidkd.errors import SettingError

__all__ = ["coarse_grain", "log_complement", "truncate", "with_tail"]

RESOLUTION = 8
"""An implied tail of fewer than this many units of rounding (``torch.finfo.eps``) is no tail, but the rounding of Σ."""


def coarse_grain(log_p: Tensor, ids: Tensor) -> Tensor:
    """Merge V outcomes to the K chosen ones and their complement.

    out = (log p(id₁), …, log p(id_K), log Σ_{v ∉ ids} p(v))

    The tail is a log-sum-exp over the complement, which keeps its digits where 1 − Σ p(id) has none. Logits give
    logits: any normaliser passes through.

    Args:
        log_p: Log-probabilities or logits [*N, V], natural logarithm; −inf allowed.
        ids: Chosen outcomes [*N, K] in 0 … V − 1, distinct along the last axis.

    Returns:
        Log-probabilities or logits [*N, K + 1]; the last is the tail, −inf where the complement is empty or
        has no mass. Differentiable in ``log_p``, also where it is −inf.

    Example:
        >>> log_p = torch.tensor([0.5, 0.3, 0.2]).log()
        >>> coarse_grain(log_p, torch.tensor([0])).exp()
        tensor([0.5000, 0.5000])
    """
    rest = log_p.scatter(-1, ids, -torch.inf)
    empty = (rest == -torch.inf).all(-1, keepdim=True)
    tail = rest.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True).masked_fill(empty, -torch.inf)
    return torch.cat([log_p.gather(-1, ids), tail], dim=-1)


def truncate(log_p: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the K likeliest outcomes and the mass of the rest: what a teacher cache stores.

    Args:
        log_p: Log-probabilities [*N, V].
        k: How many to keep, 1 … V.

    Returns:
        Ids [*N, K], likeliest first; their log-probabilities [*N, K]; the log-mass of the rest [*N].

    Raises:
        SettingError: ``k`` is not in 1 … V.
    """
    if not 1 <= k <= log_p.shape[-1]:
        raise SettingError(f"k must be in 1 … V = {log_p.shape[-1]}; got {k}")
    ids = log_p.topk(k, dim=-1).indices
    merged = coarse_grain(log_p, ids)
    return ids, merged[..., :-1], merged[..., -1]


def with_tail(log_probs: Tensor, log_tail: Tensor | None = None) -> Tensor:
    """K log-probabilities with their tail, renormalised together to K + 1 outcomes.

    Args:
        log_probs: Log-probabilities [*N, K].
        log_tail: Log-mass of the rest [*N]; None: ``log_complement(log_probs)``.

    Returns:
        Log-probabilities [*N, K + 1].
    """
    tail = log_complement(log_probs) if log_tail is None else log_tail
    return torch.cat([log_probs, tail.to(log_probs.dtype).unsqueeze(-1)], dim=-1).log_softmax(-1)


def log_complement(log_probs: Tensor) -> Tensor:
    """The log-mass that K log-probabilities leave over, for a teacher that stored no tail.

    log(1 − Σ exp log_probs), −inf where the sum reaches 1 within rounding (``RESOLUTION`` units): a tail that is
    only the rounding of the sum would meet a student without any and make the loss infinite.

    Args:
        log_probs: Log-probabilities [*N, K], Σ exp ≤ 1.

    Returns:
        Log-mass [*N].
    """
    mass = log_probs.logsumexp(-1)
    full = mass >= -RESOLUTION * torch.finfo(log_probs.dtype).eps
    return torch.log(-torch.expm1(mass.masked_fill(full, -1.0))).masked_fill(full, -torch.inf)
