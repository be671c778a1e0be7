"""From one loss per token to one loss."""

from typing import Literal, get_args

import torch
from torch import Tensor

from amidkd.errors import SettingError

__all__ = ["Reduction", "mean_divisor", "reduce"]

Reduction = Literal["mean", "sum", "none"]


def reduce(
    per_token: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Weighted sum or mean of a loss per token.

    mean: Σ mask·weight·ℓ / denominator;  sum: Σ mask·weight·ℓ;  none: mask·weight·ℓ

    What is masked, or has weight 0, is left out before anything is multiplied: an infinite loss there does no harm.
    The mean divides by the number of unmasked tokens, not by the sum of the weights; a trainer gives the count of
    the whole optimizer step instead (all ranks, all accumulation steps).

    Args:
        per_token: Loss ℓ of each token [*N].
        mask: Which tokens are supervised [*N], nonzero where they are; None: all.
        weights: Factor of each token [*N]; None: 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        denominator: What the mean divides by, above 0; None: the number of unmasked tokens.

    Returns:
        A scalar, or [*N] for ``"none"``. Without a supervised token the mean and the sum are 0 with zero gradient.

    Raises:
        SettingError: An unknown reduction, or a denominator where nothing is divided.

    Example:
        >>> reduce(torch.tensor([1.0, 5.0, 3.0]), mask=torch.tensor([True, False, True]))
        tensor(2.)
    """
    if reduction not in get_args(Reduction):
        raise SettingError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {reduction!r}")
    if denominator is not None and reduction != "mean":
        raise SettingError(
            f"denominator divides a mean, and reduction is {reduction!r}; leave it out or use reduction='mean'"
        )
    keep = torch.ones_like(per_token, dtype=torch.bool) if mask is None else mask.bool()
    divisor = mean_divisor(keep.sum(), denominator, dtype=per_token.dtype)
    if weights is not None:
        keep = keep & (weights != 0)
    kept = torch.where(keep, per_token, 0.0)
    if weights is not None:
        kept = kept * torch.where(keep, weights, 0.0).to(kept.dtype)
    if reduction == "none":
        return kept
    return kept.sum() if reduction == "sum" else kept.sum() / divisor


def mean_divisor(unmasked: Tensor, denominator: float | Tensor | None, *, dtype: torch.dtype) -> Tensor:
    """What a mean divides by: the denominator, or else the unmasked tokens; 1 where there are none.

    Args:
        unmasked: How many tokens are unmasked, scalar.
        denominator: What to divide by instead, above 0, or None.
        dtype: Of the result.
    """
    divisor = unmasked if denominator is None else torch.as_tensor(denominator, device=unmasked.device)
    return divisor.to(dtype).masked_fill(unmasked == 0, 1.0)
