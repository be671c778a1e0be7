"""What every formula starts from: log-probabilities that fit together, with their support marked before any arithmetic.

Notation, here and in all of `amidkd.maths`: V the vocabulary, [*N] any leading axes (one entry per token), natural
logarithms; −inf marks a token that cannot occur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.errors import SettingError

__all__ = ["LogProbs", "Setting", "aligned", "checked_alpha", "checked_fraction", "checked_weights", "per_row"]

Setting = float | Tensor
"""A number, or a tensor [*N] with one value per token."""

WEIGHT_TOLERANCE = 1e-6
"""How far from 1 weights may sum, so that rounded decimals such as 0.333333 are accepted."""


@dataclass(frozen=True)
class LogProbs:
    """A distribution as log-probability = base + offset on its support.

    A mixture keeps the source that it is measured from (``base``) apart from its distance to it (``offset``): the
    difference of two distributions then has all its digits where they are nearly equal, and the plain difference of
    two logarithms has few.

    Args:
        base: [*N, V], 0 outside the support.
        offset: [*N, V], 0 outside the support; None: 0 everywhere.
        live: Support [*N, V], boolean.
    """

    base: Tensor
    offset: Tensor | None
    live: Tensor

    @staticmethod
    def of(log_p: Tensor) -> "LogProbs":
        """From plain log-probabilities [*N, V]. NaN counts as live, so that it is seen in the result."""
        live = log_p != -torch.inf
        return LogProbs(base=torch.where(live, log_p, 0.0), offset=None, live=live)

    def logs(self) -> Tensor:
        """log p [*N, V], 0 outside the support."""
        return self.base if self.offset is None else self.base + self.offset

    def plain(self) -> Tensor:
        """log p [*N, V], −inf outside the support."""
        return torch.where(self.live, self.logs(), -torch.inf)

    def detach(self) -> "LogProbs":
        """The same as a constant."""
        offset = None if self.offset is None else self.offset.detach()
        return LogProbs(base=self.base.detach(), offset=offset, live=self.live)

    def log_ratio(self, other: "LogProbs") -> Tensor:
        """log(self / other) [*N, V]; of use only where both are live."""
        ratio = self.base - other.base
        if self.offset is not None:
            ratio = ratio + self.offset
        return ratio if other.offset is None else ratio - other.offset


def aligned(**named: Tensor) -> list[Tensor]:
    """Check that log-probabilities fit together, and bring them to one dtype: float64 where one is, else float32.

    Args:
        named: Tensors [*N, V] by the name that a message should use.

    Raises:
        SettingError: Half precision, another dtype, no vocabulary axis, or shapes that differ.
    """
    first, shape = next((name, tuple(tensor.shape)) for name, tensor in named.items())
    for name, tensor in named.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise SettingError(
                f"{name} must be float32 or float64 log-probabilities; got {tensor.dtype}. Sums over a vocabulary lose "
                "everything in half precision: upcast the logits first, then log_softmax"
            )
        if tensor.ndim == 0 or tensor.shape[-1] == 0:
            raise SettingError(f"{name} must have shape [*N, V] with V ≥ 1; got {tuple(tensor.shape)}")
        if tuple(tensor.shape) != shape:
            raise SettingError(
                f"{name} has shape {tuple(tensor.shape)} and {first} {shape}; mask both to the shared "
                "vocabulary before the softmax, so that both are [*N, V]"
            )
    wide = any(tensor.dtype == torch.float64 for tensor in named.values())
    return [tensor.to(torch.float64 if wide else torch.float32) for tensor in named.values()]


def checked_alpha(alpha: Setting) -> Setting:
    """Check α: finite. A tensor's values are looked at on the CPU alone, where that waits for nothing.

    Raises:
        SettingError: NaN, infinite, or neither number nor floating tensor.
    """
    if isinstance(alpha, Tensor):
        _check_floating("alpha", alpha)
        if alpha.device.type == "cpu" and not bool(alpha.isfinite().all()):
            raise SettingError(f"alpha must be finite for every token; got {_first(alpha, ~alpha.isfinite())}")
        return alpha
    value = _number("alpha", alpha)
    if not math.isfinite(value):
        raise SettingError(f"alpha must be a finite number; got {value}. Near max or min use a large one, such as ±50")
    return value


def checked_fraction(name: str, value: Setting) -> Setting:
    """Check a weight: within [0, 1]. A tensor's values are looked at on the CPU alone.

    Raises:
        SettingError: Outside [0, 1], NaN, or neither number nor floating tensor.
    """
    if isinstance(value, Tensor):
        _check_floating(name, value)
        if value.device.type == "cpu":
            wrong = ~((value >= 0) & (value <= 1))
            if bool(wrong.any()):
                raise SettingError(f"{name} must be within [0, 1] for every token; got {_first(value, wrong)}")
        return value
    number = _number(name, value)
    if not 0.0 <= number <= 1.0:
        raise SettingError(f"{name} must be within [0, 1]; got {number}")
    return number


def checked_weights(name: str, weights: Sequence[Setting] | None, count: int) -> list[Setting]:
    """Check weights of ``count`` sources: within [0, 1], sum 1; uniform where None.

    The sum is checked where all are numbers.

    Raises:
        SettingError: Their number, a value, or their sum is wrong.
    """
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise SettingError(f"{name} must have one entry for each of the {count} sources; got {len(weights)}")
    checked = [checked_fraction(f"{name}[{k}]", weight) for k, weight in enumerate(weights)]
    numbers = [weight for weight in checked if not isinstance(weight, Tensor)]
    if len(numbers) == count and abs(math.fsum(numbers) - 1.0) > WEIGHT_TOLERANCE:
        raise SettingError(f"{name} must sum to 1; got {list(weights)} with sum {math.fsum(numbers)}")
    return checked


def per_row(name: str, value: Setting, like: Tensor) -> Setting:
    """A setting ready for arithmetic with [*N, V]: a number as it is, a tensor [*N] as [*N, 1] in the same dtype.

    Raises:
        SettingError: A tensor of another shape.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim != 0 and value.shape != like.shape[:-1]:
        raise SettingError(
            f"{name} as a tensor must have one value per token, shape {tuple(like.shape[:-1])}; "
            f"got {tuple(value.shape)}"
        )
    return value.to(device=like.device, dtype=like.dtype).unsqueeze(-1)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"{name} must be a number or a tensor [*N]; got {value!r}")
    return float(value)


def _check_floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise SettingError(f"{name} as a tensor must be floating; got {value.dtype}")


def _first(values: Tensor, wrong: Tensor) -> float:
    return float(values[wrong].flatten()[0])
