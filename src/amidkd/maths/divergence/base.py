"""What every divergence has: a pair of distributions to compare, a value, and partial derivatives."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.maths.shapes import LogProbs, aligned

__all__ = ["Divergence", "Pair", "UserDivergence"]

UserDivergence = Callable[[Tensor, Tensor], Tensor]
"""A divergence of your own: log a, log b [*N, V] (−inf where a token is masked) → [*N]."""


@dataclass(frozen=True)
class Pair:
    """Two distributions ready to compare, with their log-ratio and who lives where.

    Args:
        log_a: [*N, V], 0 where a is dead.
        log_b: [*N, V], 0 where b is dead.
        x: log(b/a) where both live, else 0.
        both: Boolean [*N, V].
        only_a: Boolean [*N, V].
        only_b: Boolean [*N, V].
        empty: Rows [*N, 1] in which a or b has no support at all.
    """

    log_a: Tensor
    log_b: Tensor
    x: Tensor
    both: Tensor
    only_a: Tensor
    only_b: Tensor
    empty: Tensor

    @staticmethod
    def of(a: LogProbs, b: LogProbs) -> "Pair":
        """From two distributions of one shape."""
        both = a.live & b.live
        return Pair(
            log_a=a.logs(),
            log_b=b.logs(),
            x=torch.where(both, b.log_ratio(a), 0.0),
            both=both,
            only_a=a.live & ~b.live,
            only_b=b.live & ~a.live,
            empty=~(a.live.any(-1, keepdim=True) & b.live.any(-1, keepdim=True)),
        )


class Divergence(ABC):
    """A divergence of the catalogue: a value per token, and its partial derivatives.

    Infinite where it truly is (a mass of one side meets none of the other, if the formula minds), or where one side has
    no support, and where a term passes the range of the dtype. The gradient of such a row is defined as 0.
    """

    def __call__(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """D(a‖b) per token.

        Args:
            log_a: log a [*N, V], normalised, float32 or float64; −inf outside the support.
            log_b: log b [*N, V].

        Returns:
            [*N], ≥ 0, +inf where infinite.

        Raises:
            SettingError: Half precision, or shapes that differ.
        """
        log_a, log_b = aligned(log_a=log_a, log_b=log_b)
        return self.value(Pair.of(LogProbs.of(log_a), LogProbs.of(log_b)))

    def partials(self, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
        """∂D/∂log a and ∂D/∂log b [*N, V], each taken as if free (not normalised); 0 outside the supports.

        Args:
            log_a: log a [*N, V].
            log_b: log b [*N, V].
        """
        log_a, log_b = aligned(log_a=log_a, log_b=log_b)
        return self.slopes(Pair.of(LogProbs.of(log_a), LogProbs.of(log_b)))

    def value(self, pair: Pair) -> Tensor:
        """D [*N] of a pair."""
        infinite = self._infinite(pair)
        row = pair.empty.squeeze(-1) | infinite.any(-1)
        return torch.where(row, torch.inf, self._terms(pair, infinite).sum(-1))

    def slopes(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Partial derivatives [*N, V] of a pair; 0 in infinite rows."""
        infinite = self._infinite(pair)
        row = pair.empty | infinite.any(-1, keepdim=True)
        to_a, to_b = self._slopes(pair, infinite)
        return torch.where(row, 0.0, to_a), torch.where(row, 0.0, to_b)

    @abstractmethod
    def _infinite(self, pair: Pair) -> Tensor:
        """Tokens [*N, V] whose part of the sum is infinite or out of range."""

    @abstractmethod
    def _terms(self, pair: Pair, infinite: Tensor) -> Tensor:
        """What each token adds [*N, V], ≥ 0 and finite; 0 where neither side lives."""

    @abstractmethod
    def _slopes(self, pair: Pair, infinite: Tensor) -> tuple[Tensor, Tensor]:
        """Partial derivatives, finite, 0 where neither side lives."""
