r"""How the divergences are computed: four forms for nine names.

Seven of the nine are points of one family, a power divergence with exponents A and B (C = A + B):

    −(1/AB) Σ (a^A b^B − (A/C) a^C − (B/C) b^C)

With x = log(b/a) and E_c(x) = (e^{cx} − 1)/c, E_0(x) = x, each token contributes

    a^C (E_C(x) − E_B(x))/A = x² a^C Σ_n h_n(C, B) xⁿ/(n+2)!,

h_n the complete homogeneous symmetric polynomials: continuous in A and B with every limit inside (A → 0 by the mirror
(a, A, x) ↔ (b, B, −x)), the series taken where |x| is small, so that no digit is lost near a = b.

Each sum is written so that every token's part is ≥ 0 by itself: a textbook sum plus a multiple of Σ(b − a) = 0. KL is
Σ a (e^x − 1 − x). The partial derivatives are those of this form, here (−a^C E_B(x), −b^C E_A(−x)); they differ from
the textbook's by multiples of a and of b, which the projections of mixture and softmax remove.

Source: Cichocki, Cruces and Amari, "Generalized alpha-beta divergences", Entropy 2011.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from amidkd.maths.divergence.base import Divergence, Pair
from amidkd.maths.mixture import exp_difference

__all__ = ["Jeffreys", "JensenShannon", "PowerDivergence", "TotalVariation"]

NEGLIGIBLE = 1e-30
"""Exponents below are 0: they change no digit in float64, and would underflow in float32."""

SERIES_RADIUS = 0.5
"""Where |exponent · x| is below, the series is used."""

HEADROOM = 20.0
"""Natural logarithm of what is kept between the largest term and the largest float, for sums and factors."""


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else factor * x


def _growth(log_a: Tensor, log_b: Tensor, x: Tensor, c: float, total: float) -> Tensor:
    """a^C E_c(x) = (a^{C−c} b^c − a^C)/c [*N, V], with C = ``total``."""
    if abs(c) < NEGLIGIBLE:
        return torch.exp(_times(log_a, total)) * x
    log_to = _times(log_b, c) if c == total else (total - c) * log_a + _times(log_b, c)
    return _times(exp_difference(_times(log_a, total), log_to, _times(x, c)), 1.0 / c)


def _series(x: Tensor, c: float, b: float) -> Tensor:
    """Σ_n h_n(c, b) xⁿ/(n+2)! by Horner's rule, for |c x|, |b x| ≤ ``SERIES_RADIUS``."""
    count = 15 if x.dtype == torch.float64 else 9
    symmetric, power = [1.0], 1.0
    for _ in range(count - 1):
        power *= b
        symmetric.append(c * symmetric[-1] + power)
    coefficients = [h / math.factorial(n + 2) for n, h in enumerate(symmetric)]
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _power_term(log_a: Tensor, log_b: Tensor, x: Tensor, a: float, b: float) -> Tensor:
    """a^C (E_C(x) − E_B(x))/A for tokens where both live [*N, V]; 0 at x = 0."""
    if abs(b) > abs(a):
        return _power_term(log_b, log_a, -x, b, a)
    if abs(a) < NEGLIGIBLE:
        return 0.5 * x * x
    small = x.abs() * max(abs(a + b), abs(b)) <= SERIES_RADIUS
    far = _far_term(log_a, log_b, torch.where(small, 0.0, x), a, b)
    return torch.where(small, _near_term(log_a, torch.where(small, x, 0.0), a, b), far)


def _near_term(log_a: Tensor, x: Tensor, a: float, b: float) -> Tensor:
    """By the series."""
    return torch.exp(_times(log_a, a + b)) * (x * x * _series(x, a + b, b))


def _far_term(log_a: Tensor, log_b: Tensor, x: Tensor, a: float, b: float) -> Tensor:
    """As it stands."""
    c = a + b
    term = _growth(log_a, log_b, x, c, c) - _growth(log_a, log_b, x, b, c)
    # Subnormal numbers have too few digits for a difference that is never negative to stay so.
    return _times(term, 1.0 / a).clamp(min=0.0)


@final
@dataclass(frozen=True)
class PowerDivergence(Divergence):
    """factor · the power divergence with exponents A and B.

    Args:
        name: Of the catalogue.
        a: A, finite.
        b: B, finite.
        factor: Positive.
    """

    name: str
    a: float
    b: float
    factor: float = 1.0

    def _infinite(self, pair: Pair) -> Tensor:
        a, b, c = self.a, self.b, self.a + self.b
        infinite = torch.zeros_like(pair.both)
        if not (b > 0 and c > 0):
            infinite = infinite | pair.only_a
        if not (a > 0 and c > 0):
            infinite = infinite | pair.only_b
        if min(a, b, c) < 0:
            limit = math.log(torch.finfo(pair.x.dtype).max) - HEADROOM
            with torch.no_grad():
                for exponent in (c * pair.log_a, c * pair.log_b, a * pair.log_a + b * pair.log_b):
                    infinite = infinite | (pair.both & (exponent > limit))
        return infinite

    def _shared(self, pair: Pair, infinite: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log a, log b and x where both live; with a negative exponent 0 elsewhere, where a power could overflow."""
        if min(self.a, self.b, self.a + self.b) >= 0:
            return pair.log_a, pair.log_b, pair.x
        kept = pair.both & ~infinite
        return torch.where(kept, pair.log_a, 0.0), torch.where(kept, pair.log_b, 0.0), torch.where(kept, pair.x, 0.0)

    def _terms(self, pair: Pair, infinite: Tensor) -> Tensor:
        a, b, c = self.a, self.b, self.a + self.b
        terms = _power_term(*self._shared(pair, infinite), a, b)
        if b > 0 and c > 0:
            terms = torch.where(pair.only_a, torch.exp(c * pair.log_a) / (b * c), terms)
        if a > 0 and c > 0:
            terms = torch.where(pair.only_b, torch.exp(c * pair.log_b) / (a * c), terms)
        return terms if self.factor == 1.0 else self.factor * terms

    def _slopes(self, pair: Pair, infinite: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = self.a, self.b, self.a + self.b
        log_a, log_b, x = self._shared(pair, infinite)
        to_a = _growth(log_a, log_b, x, b, c) * -self.factor
        to_b = _growth(log_b, log_a, -x, a, c) * -self.factor
        if b > 0 and c > 0:
            to_a = torch.where(pair.only_a, torch.exp(c * pair.log_a) * (self.factor / b), to_a)
        if a > 0 and c > 0:
            to_b = torch.where(pair.only_b, torch.exp(c * pair.log_b) * (self.factor / a), to_b)
        return to_a, to_b


@final
@dataclass(frozen=True)
class Jeffreys(Divergence):
    """Σ (b − a) log(b/a)."""

    name: str = "jeffreys"

    def _infinite(self, pair: Pair) -> Tensor:
        return pair.only_a | pair.only_b

    def _terms(self, pair: Pair, infinite: Tensor) -> Tensor:
        return exp_difference(pair.log_a, pair.log_b, pair.x) * pair.x

    def _slopes(self, pair: Pair, infinite: Tensor) -> tuple[Tensor, Tensor]:
        rise = exp_difference(pair.log_a, pair.log_b, pair.x)
        return -torch.exp(pair.log_a) * pair.x - rise, torch.exp(pair.log_b) * pair.x + rise


@final
@dataclass(frozen=True)
class JensenShannon(Divergence):
    """½ Σ a (e^{μ_a} − 1 − μ_a) + ½ Σ b (e^{μ_b} − 1 − μ_b), with μ_a = log(m/a), μ_b = log(m/b), m = (a+b)/2."""

    name: str = "jensen_shannon"

    def _infinite(self, pair: Pair) -> Tensor:
        return torch.zeros_like(pair.both)

    def _terms(self, pair: Pair, infinite: Tensor) -> Tensor:
        from_a, from_b = self._to_middle(pair.x)
        middle = torch.where(pair.x <= 0, pair.log_a + from_a, pair.log_b + from_b)
        first = _power_term(pair.log_a, middle, from_a, 1.0, 0.0)
        terms = 0.5 * (first + _power_term(pair.log_b, middle, from_b, 1.0, 0.0))
        return self._alone(pair, pair.only_a, pair.log_a, self._alone(pair, pair.only_b, pair.log_b, terms))

    def _slopes(self, pair: Pair, infinite: Tensor) -> tuple[Tensor, Tensor]:
        from_a, from_b = self._to_middle(pair.x)
        to_a = -0.5 * torch.exp(pair.log_a) * from_a
        to_b = -0.5 * torch.exp(pair.log_b) * from_b
        return self._alone(pair, pair.only_a, pair.log_a, to_a), self._alone(pair, pair.only_b, pair.log_b, to_b)

    @staticmethod
    def _to_middle(x: Tensor) -> tuple[Tensor, Tensor]:
        """log(m/a) and log(m/b)."""
        below = torch.log1p(0.5 * torch.expm1(x.clamp(max=0.0)))
        above = torch.log1p(0.5 * torch.expm1(-x.clamp(min=0.0)))
        return torch.where(x <= 0, below, x + above), torch.where(x <= 0, below - x, above)

    @staticmethod
    def _alone(pair: Pair, here: Tensor, logs: Tensor, other: Tensor) -> Tensor:
        """½ log 2 times the mass, where one side lives alone."""
        return torch.where(here, (0.5 * math.log(2.0)) * torch.exp(logs), other)


@final
@dataclass(frozen=True)
class TotalVariation(Divergence):
    """½ Σ |a − b|."""

    name: str = "total_variation"

    def _infinite(self, pair: Pair) -> Tensor:
        return torch.zeros_like(pair.both)

    def _terms(self, pair: Pair, infinite: Tensor) -> Tensor:
        terms = 0.5 * exp_difference(pair.log_a, pair.log_b, pair.x).abs()
        terms = torch.where(pair.only_a, 0.5 * torch.exp(pair.log_a), terms)
        return torch.where(pair.only_b, 0.5 * torch.exp(pair.log_b), terms)

    def _slopes(self, pair: Pair, infinite: Tensor) -> tuple[Tensor, Tensor]:
        side = 0.5 * pair.x.sign()
        to_a = torch.where(pair.only_a, 0.5, -side) * torch.exp(pair.log_a)
        to_b = torch.where(pair.only_b, 0.5, side) * torch.exp(pair.log_b)
        return to_a, to_b
