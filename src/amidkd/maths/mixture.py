r"""The α-mixture: a distribution between others.

    r ∝ (Σ_k w_k p_k^s)^{1/s},  s = (1 − α)/2;   α = 1 (s = 0):  r ∝ Π_k p_k^{w_k}

α = −1 is the arithmetic mean, 0 the square-root, 1 the geometric and 3 the harmonic; towards −∞ it is the maximum,
towards +∞ the minimum. It is the minimiser of Σ_k w_k D_α(p_k‖·) with Amari's D_α (Amari, "Integration of stochastic
models by minimizing α-divergence", Neural Computation 2007).

How it is computed. Each token is measured from one of its sources (the largest for s > 0, the smallest for s < 0):
with u_k = s·(log p_k − ref) ≤ 0 and y = Σ w_k·expm1(u_k),

    log m = ref + log1p(y)/s,

which is uniform through s = 0. Where y ≤ −1/2 the logarithm is that of Σ w_k·e^{u_k}, which has the digits there. The
normaliser is log1p(Σ(m − p)) with m − p = p·expm1(log m/p) where it is small, else a log-sum-exp. `ref` is a constant
to autograd: log m does not depend on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.maths.shapes import (
    LogProbs,
    Setting,
    aligned,
    checked_alpha,
    checked_fraction,
    checked_weights,
    per_row,
)

__all__ = ["Mixture", "exp_difference", "log_mixture", "log_mixture_of", "mix", "responsibility"]

NEAR_ONE = 0.5
"""Where |log Z| is below, the normaliser is summed as a difference to 1."""

ROUNDING = 64.0
"""Within this many units of rounding of 1, the sum of a source's probabilities is 1."""


def log_mixture(log_p: Tensor, log_q: Tensor, *, alpha: Setting, lam: Setting) -> Tensor:
    """The assistant: the α-mixture of teacher and student, normalised.

    r ∝ (λ p^s + (1−λ) q^s)^{1/s}, s = (1−α)/2;  α = 1: r ∝ p^λ q^{1−λ}

    Its support is the union for α < 1 and the intersection for α ≥ 1, if 0 < λ < 1. λ = 1 is p and λ = 0 is q, exactly.

    Args:
        log_p: Teacher's log-probabilities [*N, V], float32 or float64, normalised.
        log_q: Student's, the same.
        alpha: α, finite; a number or a tensor [*N].
        lam: λ in [0, 1], the teacher's weight; a number or a tensor [*N].

    Returns:
        log r [*N, V]; −inf outside its support, so everywhere where α ≥ 1 and no token has both.

    Raises:
        SettingError: α or λ outside its domain, half precision, or shapes that differ.

    Example:
        >>> p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
        >>> log_mixture(p.log(), q.log(), alpha=-1.0, lam=0.25).exp()
        tensor([0.3000, 0.7000])

    Source: AMiD (arXiv 2510.15982), definition of the α-mixture assistant.
    """
    log_p, log_q = aligned(log_p=log_p, log_q=log_q)
    lam = checked_fraction("lam", lam)
    return mix([log_p, log_q], [lam, 1.0 - lam], alpha).distribution.plain()


def log_mixture_of(log_ps: Sequence[Tensor], *, weights: Sequence[Setting] | None = None, alpha: Setting) -> Tensor:
    """The α-mixture of K sources, normalised.

    r ∝ (Σ_k w_k p_k^s)^{1/s}, s = (1−α)/2;  α = 1: r ∝ Π_k p_k^{w_k}

    A source of weight 0 is left out: it neither adds to the support nor cuts it.

    Args:
        log_ps: K ≥ 1 tensors of log-probabilities [*N, V], normalised.
        weights: w_k in [0, 1] with sum 1, numbers or tensors [*N]; None: 1/K each.
        alpha: α, finite; a number or a tensor [*N].

    Returns:
        log r [*N, V]; −inf outside its support.

    Raises:
        SettingError: No source, or a setting outside its domain.

    Example:
        >>> sources = [torch.tensor([0.7, 0.3]), torch.tensor([0.2, 0.8]), torch.tensor([0.6, 0.4])]
        >>> log_mixture_of([p.log() for p in sources], weights=[0.5, 0.5, 0.0], alpha=-1.0).exp()
        tensor([0.4500, 0.5500])

    Source: Amari's α-integration (Neural Computation 2007).
    """
    if not log_ps:
        raise SettingError("log_ps is empty; give at least one source")
    tensors = aligned(**{f"log_ps[{k}]": log_p for k, log_p in enumerate(log_ps)})
    return mix(tensors, checked_weights("weights", weights, len(tensors)), alpha).distribution.plain()


def responsibility(log_p: Tensor, log_q: Tensor, *, alpha: Setting, lam: Setting) -> Tensor:
    """How much of the assistant's change at a token is the student's: d log r̃ = ω d log q.

    ω = (1−λ) q^s / (λ p^s + (1−λ) q^s) = σ(log((1−λ)/λ) − s·log(p/q)) ∈ [0, 1];  α = 1: ω = 1−λ

    Where it is near 0 on the tokens that matter, an objective with this assistant cannot teach the student.

    Args:
        log_p: Teacher's log-probabilities [*N, V].
        log_q: Student's [*N, V].
        alpha: α, finite; a number or a tensor [*N].
        lam: λ in [0, 1]; a number or a tensor [*N].

    Returns:
        ω [*N, V]; 0 outside the assistant's support and where the student has no mass.

    Raises:
        SettingError: As `log_mixture`.

    Example:
        >>> p, q = torch.tensor([0.99, 0.01]), torch.tensor([0.01, 0.99])
        >>> responsibility(p.log(), q.log(), alpha=-1.0, lam=0.1)
        tensor([0.0833, 0.9989])
    """
    log_p, log_q = aligned(log_p=log_p, log_q=log_q)
    lam = checked_fraction("lam", lam)
    return mix([log_p, log_q], [lam, 1.0 - lam], alpha, responsibility=True).of_last()


@dataclass(frozen=True)
class Mixture:
    """A mixture, and on request the responsibility of its last source.

    Args:
        distribution: r.
        omega: ω of the last source [*N, V], or None.
    """

    distribution: LogProbs
    omega: Tensor | None

    def of_last(self) -> Tensor:
        """ω, which must have been asked for."""
        assert self.omega is not None
        return self.omega


def mix(
    log_ps: Sequence[Tensor], weights: Sequence[Setting], alpha: Setting, *, responsibility: bool = False
) -> Mixture:
    """The α-mixture of checked and aligned sources, in the form that keeps differences exact.

    Args:
        log_ps: Sources [*N, V] of one dtype.
        weights: w_k, numbers or tensors [*N], sum 1.
        alpha: α, a number or a tensor [*N].
        responsibility: Whether ω of the last source is wanted.
    """
    like = log_ps[-1]
    alpha = checked_alpha(alpha)
    s = per_row("alpha", (1.0 - alpha) / 2.0, like)
    rows = [per_row("weights", weight, like) for weight in weights]
    used = [k for k, weight in enumerate(rows) if isinstance(weight, Tensor) or weight != 0.0]
    last = len(log_ps) - 1
    if len(used) == 1:
        distribution = LogProbs.of(log_ps[used[0]])
        omega = distribution.live.to(like.dtype) * float(used[0] == last) if responsibility else None
        return Mixture(distribution, omega)
    return _power_mean([log_ps[k] for k in used], [rows[k] for k in used], s, omega=responsibility, last=last in used)


@dataclass(frozen=True)
class _Sources:
    """Sources with their support.

    Args:
        weights: w_k, numbers or [*N, 1].
        present: Where source k counts [*N, V], boolean.
        live: The mixture's support [*N, V].
        ref: What each token is measured from [*N, V], 0 outside the support; a constant.
        deltas: log p_k − ref [*N, V], 0 where source k does not count.
    """

    weights: list[Setting]
    present: list[Tensor]
    live: Tensor
    ref: Tensor
    deltas: list[Tensor]


def _power_mean(log_ps: list[Tensor], weights: list[Setting], s: Setting, *, omega: bool, last: bool) -> Mixture:
    """The mixture of two sources or more, of which none has the number 0 as its weight."""
    sources = _measure(log_ps, weights, s)
    core, share = _core(sources, s)
    ref, live = sources.ref, sources.live
    del sources
    core = _centred(torch.where(live, core, 0.0), live)
    normaliser = _log_normaliser(log_ps[-1], ref, live, core)
    if any(isinstance(weight, Tensor) for weight in weights):
        normaliser = torch.where(_alone(weights), 0.0, normaliser)
    distribution = LogProbs(ref, torch.where(live, core - normaliser, 0.0), live)
    if not omega:
        return Mixture(distribution, None)
    return Mixture(distribution, share if last else torch.zeros_like(core))


def _centred(values: Tensor, live: Tensor) -> Tensor:
    """Values less the row's largest on the support: a constant, which the normaliser would take away again."""
    largest = torch.where(live, values.detach(), -torch.inf).amax(-1, keepdim=True)
    return torch.where(live, values - torch.where(live.any(-1, keepdim=True), largest, 0.0), 0.0)


def _alone(weights: list[Setting]) -> Tensor:
    """Rows in which one source has all the weight, so that the mixture is that source exactly [*N, 1]."""
    counts = [(weight != 0.0).int() if isinstance(weight, Tensor) else 1 for weight in weights]
    total = sum(counts)
    assert isinstance(total, Tensor)
    return total == 1


def _measure(log_ps: list[Tensor], weights: list[Setting], s: Setting) -> _Sources:
    """Find the support, and measure each source from the one that dominates there."""
    has = [log_p != -torch.inf for log_p in log_ps]
    counts = [weight != 0.0 for weight in weights]
    present = [there & c if isinstance(c, Tensor) else there for there, c in zip(has, counts, strict=True)]
    allowed = [there | ~c if isinstance(c, Tensor) else there for there, c in zip(has, counts, strict=True)]
    some, every = present[0], allowed[0]
    for here, may in zip(present[1:], allowed[1:], strict=True):
        some, every = some | here, every & may
    if isinstance(s, Tensor):
        live = some & (every | (s > 0))
        sign: Setting = torch.where(s < 0, -1.0, 1.0).to(s.dtype)
    else:
        live = some if s > 0 else every
        sign = -1.0 if s < 0 else 1.0
    present = [here & live for here in present]
    with torch.no_grad():
        ref = torch.where(present[0], sign * log_ps[0], -torch.inf)
        for log_p, here in zip(log_ps[1:], present[1:], strict=True):
            ref = torch.maximum(ref, torch.where(here, sign * log_p, -torch.inf))
        ref = torch.where(live, sign * ref, 0.0)
    deltas = [torch.where(here, log_p, ref) - ref for log_p, here in zip(log_ps, present, strict=True)]
    return _Sources(weights, present, live, ref, deltas)


def _core(sources: _Sources, s: Setting) -> tuple[Tensor, Tensor]:
    """log m − ref [*N, V], finite everywhere, and ω of the last source."""
    if not isinstance(s, Tensor):
        return _geometric(sources) if s == 0.0 else _power(sources, s)
    zero = s == 0.0
    core, share = _power(sources, torch.where(zero, 1.0, s))
    limit, limit_share = _geometric(sources)
    return torch.where(zero, limit, core), torch.where(zero, limit_share, share)


def _geometric(sources: _Sources) -> tuple[Tensor, Tensor]:
    """s = 0: Σ w_k (log p_k − ref), and ω = w of the last source."""
    core = torch.zeros_like(sources.ref)
    for weight, delta in zip(sources.weights, sources.deltas, strict=True):
        core = core + weight * delta
    return core, sources.present[-1].to(core.dtype) * sources.weights[-1]


def _power(sources: _Sources, s: Setting) -> tuple[Tensor, Tensor]:
    """s ≠ 0: log(Σ w_k e^{u_k})/s with u_k = s (log p_k − ref) ≤ 0, and ω.

    Of three sources or more, those that are present at a token are averaged by themselves, and the logarithm of their
    weight is added after: over a small s it is so large that no digit of the average would be left beside it.
    """
    apart = len(sources.weights) > 2
    excess = torch.zeros_like(sources.ref)
    total = torch.zeros_like(sources.ref)
    for weight, delta, here in zip(sources.weights, sources.deltas, sources.present, strict=True):
        excess = excess + weight * torch.where(here, torch.expm1(s * delta), 0.0 if apart else -1.0)
        share = weight * torch.where(here, torch.exp(s * delta), 0.0)
        total = total + share
    omega = share / torch.where(sources.live, total, 1.0)
    if apart:
        whole, level = _level(sources)
        excess, total = excess / whole, total / whole
    near = sources.live & (excess > -0.5)
    far = sources.live & ~near
    core = torch.where(far, torch.log(torch.where(far, total, 1.0)), torch.log1p(torch.where(near, excess, 0.0))) / s
    if apart:
        core = core + _centred(level / s, sources.live)
    return core, omega


def _level(sources: _Sources) -> tuple[Tensor, Tensor]:
    """The weight W of the sources present at a token (1 where none is), and log W, exactly 0 where all are."""
    whole, missing = torch.zeros_like(sources.ref), torch.zeros_like(sources.ref)
    for weight, here in zip(sources.weights, sources.present, strict=True):
        whole = whole + weight * here.to(whole.dtype)
        missing = missing + weight * (~here).to(whole.dtype)
    whole = torch.where(sources.live, whole, 1.0)
    mostly = sources.live & (whole > 0.5)
    level = torch.where(mostly, torch.log1p(-torch.where(mostly, missing, 0.0)), torch.log(whole))
    return whole, level


def _log_normaliser(log_p: Tensor, ref: Tensor, live: Tensor, core: Tensor) -> Tensor:
    """log Σ m [*N, 1] with log m = ref + core, 0 in rows without support; p is the last source.

    The value comes from Σ (m − p) where it is near 0; the derivative is always that of the log-sum-exp.
    """
    some = live.any(-1, keepdim=True)
    far = torch.where(live, ref + core, torch.where(some, -torch.inf, 0.0)).logsumexp(-1, keepdim=True)
    far = torch.where(some, far, 0.0)
    with torch.no_grad():
        near = some & (log_p != -torch.inf).any(-1, keepdim=True) & (far.abs() < NEAR_ONE)
        exact = torch.where(near, _near_normaliser(log_p, ref, live, core), far)
        correction = exact - far
    return far + correction


def _near_normaliser(log_p: Tensor, ref: Tensor, live: Tensor, core: Tensor) -> Tensor:
    """log Σp + log1p(Σ (m − p) / Σp) [*N, 1], of use where it is near 0; log Σp is 0 but for unnormalised p."""
    has = log_p != -torch.inf
    change = _change(log_p, ref, core, live & has)
    change = torch.where(live & ~has, torch.exp(ref + core), change)
    change = torch.where(has & ~live, -torch.exp(log_p), change).sum(-1, keepdim=True)
    whole = log_p.logsumexp(-1, keepdim=True)
    rounding = ROUNDING * torch.finfo(log_p.dtype).eps
    whole = torch.where(whole.abs() < rounding, 0.0, whole)
    return whole + torch.log1p(change * torch.exp(-whole))


def _change(log_p: Tensor, ref: Tensor, core: Tensor, both: Tensor) -> Tensor:
    """m − p [*N, V] where both live, else 0."""
    base = torch.where(both, log_p, ref)
    ratio = torch.where(both, ref - base + core, 0.0)
    return exp_difference(base, ref + core, ratio)


def exp_difference(log_from: Tensor, log_to: Tensor, w: Tensor) -> Tensor:
    """e^{log_to} − e^{log_from} with all its digits, from an exact w = log_to − log_from.

    Args:
        log_from: Finite.
        log_to: Finite.
        w: Their difference; where it is 0, the result is 0.
    """
    start = torch.exp(log_from)
    near = torch.expm1(w.clamp(min=-1.0, max=1.0)) * start
    return torch.where(w.abs() < 1.0, near, torch.exp(log_to) - start)
