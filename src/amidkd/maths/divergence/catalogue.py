"""The catalogue: nine divergences D(a‖b) by name. Natural logarithms; sums over V."""

import difflib
import math
from collections.abc import Callable

from amidkd.errors import SettingError
from amidkd.maths.divergence.base import Divergence
from amidkd.maths.divergence.forms import Jeffreys, JensenShannon, PowerDivergence, TotalVariation

__all__ = [
    "DIVERGENCES",
    "alpha_beta",
    "amari",
    "chi_squared",
    "divergence",
    "jeffreys",
    "jensen_shannon",
    "kl",
    "reverse_kl",
    "squared_hellinger",
    "total_variation",
]


def kl() -> Divergence:
    """Kullback–Leibler, Σ a log(a/b): infinite where a has mass and b has none.

    Source: Kullback and Leibler (1951).

    Example:
        >>> import torch
        >>> kl()(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
        tensor(0.1438)
    """
    return PowerDivergence("kl", 1.0, 0.0)


def reverse_kl() -> Divergence:
    """Kullback–Leibler the other way, Σ b log(b/a)."""
    return PowerDivergence("reverse_kl", 0.0, 1.0)


def jeffreys() -> Divergence:
    """Kullback–Leibler both ways, Σ (a − b) log(a/b). Source: Jeffreys (1946)."""
    return Jeffreys()


def jensen_shannon() -> Divergence:
    """½ kl(a‖m) + ½ kl(b‖m), m = (a + b)/2: at most log 2. Source: Lin (1991)."""
    return JensenShannon()


def total_variation() -> Divergence:
    """½ Σ |a − b|: at most 1. As a draft model, b is accepted with probability 1 − D."""
    return TotalVariation()


def squared_hellinger() -> Divergence:
    """1 − Σ √(ab) = ½ Σ (√a − √b)²: at most 1."""
    return PowerDivergence("squared_hellinger", 0.5, 0.5, 0.25)


def chi_squared() -> Divergence:
    """Pearson's Σ (a − b)²/b: infinite where a has mass and b has none."""
    return PowerDivergence("chi_squared", 2.0, -1.0, 2.0)


def amari(*, order: float) -> Divergence:
    """Amari's D_o, 4/(1−o²)·(1 − Σ a^{(1−o)/2} b^{(1+o)/2}); o = −1: kl(a‖b), o = 1: kl(b‖a).

    Args:
        order: o, finite. The α-mixture minimises Σ_k w_k D_α(p_k‖·).

    Raises:
        SettingError: o is not finite.

    Source: Amari, "Differential-Geometrical Methods in Statistics" (1985).
    """
    order = _finite("amari", "order", order)
    return PowerDivergence("amari", (1.0 - order) / 2.0, (1.0 + order) / 2.0)


def alpha_beta(*, a: float, b: float) -> Divergence:
    """The α-β divergence, −(1/AB) Σ (a^A b^B − (A/C) a^C − (B/C) b^C), C = A + B, and its limits.

    B = 0: (1/A²) Σ(a^A log(a^A/b^A) − a^A + b^A); A = 0: the mirror; C = 0: (1/A²) Σ(log(b^A/a^A) + a^A/b^A − 1);
    A = B = 0: ½ Σ(log a − log b)². A = 1, B = 0 is kl. Tokens on which neither side has mass add nothing.

    Args:
        a: A, finite.
        b: B, finite. An f-divergence only where A + B = 1.

    Raises:
        SettingError: A or B is not finite.

    Source: Cichocki, Cruces and Amari (Entropy 2011); for distillation ABKD (arXiv 2505.04560).
    """
    return PowerDivergence("alpha_beta", _finite("alpha_beta", "a", a), _finite("alpha_beta", "b", b))


DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "squared_hellinger": squared_hellinger,
    "chi_squared": chi_squared,
    "amari": amari,
    "alpha_beta": alpha_beta,
}
"""What `divergence` makes, by name."""

_PARAMETERS = {"amari": ("order",), "alpha_beta": ("a", "b")}


def divergence(name: str, **parameters: float) -> Divergence:
    """One of the catalogue by name.

    Args:
        name: A key of ``DIVERGENCES``.
        parameters: ``order`` for ``amari``; ``a`` and ``b`` for ``alpha_beta``; else none.

    Raises:
        SettingError: An unknown name, or a parameter that is missing, unknown or not finite.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> divergence("alpha_beta", a=0.2, b=0.7)(half, half)
        tensor(0.)
    """
    if name not in DIVERGENCES:
        close = difflib.get_close_matches(str(name), DIVERGENCES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {name!r}{hint}")
    wanted = _PARAMETERS.get(name, ())
    if set(parameters) != set(wanted):
        takes = f"takes {' and '.join(wanted)}" if wanted else "takes no parameters"
        raise SettingError(f"divergence {name!r} {takes}; got {', '.join(parameters) or 'none'}")
    return DIVERGENCES[name](**parameters)


def _finite(name: str, parameter: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SettingError(f"divergence {name!r}: {parameter} must be a finite number; got {value!r}")
    return float(value)
