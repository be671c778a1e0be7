"""The divergences of a few rows, for the row kernel in torch. The formulas are those of `amidkd.maths.divergence`.

Where every |x| of the rows is small, sums of differences become series, so that a student near its teacher costs no
digit; elsewhere each token's part is a difference that has about as many digits as the part has.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.kernels.terms import Anchor, Form, Term, series
from amidkd.kernels.torch_mixture import FAR, Mix, Piece, mixed, rise_of, share_times
from amidkd.maths.divergence.forms import HEADROOM
from amidkd.maths.shapes import Setting

__all__ = ["Part", "compare", "kl_each_way"]

NEAR = 0.1
"""Where every |log q − log p|, times the exponents, is below, the series are used."""

SMALL = 0.02
"""A normaliser below is not summed as a difference to 1: the sum would have too few digits."""

SMALL_RATIO = 0.3
"""The same where r itself is wanted, and not r − k alone."""


@dataclass(frozen=True)
class Part:
    """One term of a few rows, without its weight.

    Args:
        value: D [m, 1], float64.
        slope: A [m, V] up to ``factor``, in a buffer; None: 0 everywhere, or not wanted.
        factor: Of ``slope``, a number or [m, 1].
    """

    value: Tensor
    slope: Tensor | None
    factor: Setting


@dataclass(frozen=True)
class _Ratio:
    """The assistant beside its anchor.

    Args:
        k: The anchor [m, V].
        x: log(r/k).
        d: r − k.
        r: r, in the buffer "r".
    """

    k: Tensor
    x: Tensor
    d: Tensor
    r: Tensor


def compare(piece: Piece, term: Term, mix: Mix, *, gradient: bool, measured: Tensor | None) -> Part:
    """Value and slope of one term.

    Args:
        piece: The rows.
        term: Which divergence.
        mix: The numbers of its assistant, of these rows.
        gradient: Whether a slope is wanted.
        measured: Out [2, m]: the assistant's entropy, and Σ p ω; or None.
    """
    x, y = mixed(piece, mix)
    learns = gradient and not term.detached
    if measured is not None:
        learned = piece.buffer("h").fill_(1.0)
        share = share_times(mix, None if y is None else piece.buffer("g").copy_(y), learned, piece.buffer("t"))
        measured[1] = torch.linalg.vecdot(piece.probs[Anchor.TEACHER], learned.mul_(share))
    if term.form == Form.KL and term.anchor_first and term.anchor == Anchor.TEACHER and measured is None:
        return _from_teacher(piece, mix, x, y, learns=learns)
    ratio = _ratio(piece, term.anchor, x)
    if measured is not None:
        log_r = piece.log_prob(term.anchor, out=piece.buffer("t")).add_(x)
        measured[0] = -torch.linalg.vecdot(ratio.r, log_r)
    form = _FORMS[term.form]
    value, to_r, to_k = form(piece, term, ratio)
    if not gradient:
        return Part(value, None, 1.0)
    explicit = to_k if term.anchor == Anchor.STUDENT else None
    if not learns:
        return Part(value, explicit, 1.0)
    if not (term.form == Form.KL and term.anchor_first):
        to_r.addcmul_(ratio.r, -to_r.sum(-1, keepdim=True))
    factor = share_times(mix, y, to_r, piece.buffer("t"))
    if explicit is None:
        return Part(value, to_r, factor)
    if isinstance(factor, Tensor):
        return Part(value, explicit.addcmul_(to_r, factor), 1.0)
    return Part(value, explicit.add_(to_r, alpha=factor), 1.0)


def _from_teacher(piece: Piece, mix: Mix, x: Tensor, y: Tensor | None, *, learns: bool) -> Part:
    """KL(p‖r), without the normaliser until the sums are taken: Σ p φ(log(m/p)) − φ(log Z), and A = ω (m − Z p)/Z."""
    p = piece.probs[Anchor.TEACHER]
    rise, excess = _normalised(piece, Anchor.TEACHER, x, SMALL)
    value = _kl_sum(piece, p, x, rise).sub_(excess.sub(torch.log1p(excess)))
    if not learns:
        return Part(value, None, 1.0)
    rise.addcmul_(p, -excess.to(p.dtype))
    factor = share_times(mix, y, rise, piece.buffer("t"))
    return Part(value, rise, factor / (1.0 + excess).to(p.dtype))


def _normalised(piece: Piece, anchor: Anchor, x: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """m − k [m, V] and Z − 1 [m, 1] in float64; where a row's Z is below ``least``, x is r's and Z is 1."""
    rise = rise_of(piece, anchor, x, out=piece.buffer("d"))
    excess = rise.sum(-1, keepdim=True).double()
    if excess.numel() == 0 or float(excess.min()) >= least - 1.0:
        return rise, excess
    whole = piece.log_prob(anchor, out=piece.buffer("r")).add_(x)
    top = whole.amax(-1, keepdim=True)
    total = torch.sub(whole, top, out=rise).exp_().sum(-1, keepdim=True).log_().add_(top)
    x.sub_(total)
    return rise_of(piece, anchor, x, out=rise, whole=whole.sub_(total).exp_()), torch.zeros_like(excess)


def _ratio(piece: Piece, anchor: Anchor, x: Tensor) -> _Ratio:
    k = piece.probs[anchor]
    rise, excess = _normalised(piece, anchor, x, SMALL_RATIO)
    x.sub_(torch.log1p(excess).to(x.dtype))
    r = piece.buffer("r")
    if piece.spread <= FAR:
        d = rise.addcmul_(k, -excess.to(k.dtype)).mul_((1.0 / (1.0 + excess)).to(k.dtype))
        torch.add(k, d, out=r)
    else:
        piece.log_prob(anchor, out=r).add_(x).exp_()
        d = rise_of(piece, anchor, x, out=rise, whole=r)
    return _Ratio(k, x, d, r)


def _sum(terms: Tensor) -> Tensor:
    return terms.sum(-1, keepdim=True).double()


def _polynomial(x: Tensor, coefficients: list[float], *, out: Tensor) -> Tensor:
    torch.mul(x, coefficients[-1], out=out).add_(coefficients[-2])
    for coefficient in reversed(coefficients[:-2]):
        out.mul_(x).add_(coefficient)
    return out


def _near_sum(piece: Piece, a: Tensor, x: Tensor, exponents: tuple[float, float]) -> Tensor:
    """Σ a x² Σ_n h_n xⁿ [m, 1]: what a power divergence is where |x| is small; a is the factor a^C."""
    t = piece.buffer("t")
    _polynomial(x, series(*exponents, 14 if x.dtype == torch.float64 else 8), out=t)
    return _sum(t.mul_(x).mul_(x).mul_(a))


def _kl_sum(piece: Piece, a: Tensor, x: Tensor, rise: Tensor) -> Tensor:
    """Σ a φ(x) [m, 1] with x = log(b/a) and rise = a (eˣ − 1)."""
    if piece.spread <= NEAR:
        return _near_sum(piece, a, x, (1.0, 0.0))
    return _sum(torch.addcmul(rise, a, x, value=-1.0, out=piece.buffer("t")))


def kl_each_way(piece: Piece) -> tuple[Tensor, Tensor]:
    """KL(p‖q) and KL(q‖p), each [m]."""
    p, q = piece.probs
    gap, g, h = piece.gap, piece.buffer("g"), piece.buffer("h")
    if piece.spread <= NEAR:
        forward, backward = (_near_sum(piece, a, x, (1.0, 0.0)) for a, x in ((p, gap), (q, torch.neg(gap, out=g))))
    else:
        rise = torch.sub(q, p, out=h)
        forward = _sum(torch.addcmul(rise, p, gap, value=-1.0, out=g))
        backward = _sum(torch.addcmul(rise.neg_(), q, gap, out=g))
    return forward.clamp(min=0.0).squeeze(-1), backward.clamp(min=0.0).squeeze(-1)


Partials = tuple[Tensor, Tensor, Tensor]
"""D [m, 1], ∂D/∂log r in the buffer "h", and ∂D/∂log k in the buffer "g"."""


def _kl(piece: Piece, term: Term, at: _Ratio) -> Partials:
    h, g = piece.buffer("h"), piece.buffer("g")
    if term.anchor_first:
        value = _kl_sum(piece, at.k, at.x, at.d)
        return value, h.copy_(at.d), torch.mul(at.k, at.x, out=g).neg_()
    torch.mul(at.r, at.x, out=h)
    if piece.spread <= NEAR:
        value = _near_sum(piece, at.r, torch.neg(at.x, out=g), (1.0, 0.0))
    else:
        value = _sum(torch.sub(h, at.d, out=g))
    return value, h, torch.neg(at.d, out=g)


def _jeffreys(piece: Piece, term: Term, at: _Ratio) -> Partials:
    h, g = piece.buffer("h"), piece.buffer("g")
    value = _sum(torch.mul(at.d, at.x, out=g))
    torch.addcmul(at.d, at.r, at.x, out=h)
    return value, h, torch.addcmul(at.d, at.k, at.x, out=g).neg_()


def _total_variation(piece: Piece, term: Term, at: _Ratio) -> Partials:
    h, g = piece.buffer("h"), piece.buffer("g")
    value = 0.5 * _sum(torch.abs(at.d, out=g))
    side = torch.sign(at.x, out=piece.buffer("t")).mul_(0.5)
    return value, torch.mul(side, at.r, out=h), torch.mul(side, at.k, out=g).neg_()


def _jensen_shannon(piece: Piece, term: Term, at: _Ratio) -> Partials:
    h, g = piece.buffer("h"), piece.buffer("g")
    middle = torch.abs(at.x, out=piece.buffer("t")).neg_().expm1_().mul_(0.5).log1p_()
    torch.clamp(at.x, max=0.0, out=h).neg_().add_(middle)
    torch.clamp(at.x, min=0.0, out=g).add_(middle)
    if piece.spread <= NEAR:
        value = 0.5 * (_near_sum(piece, at.k, g, (1.0, 0.0)) + _near_sum(piece, at.r, h, (1.0, 0.0)))
        return value, h.mul_(at.r).mul_(-0.5), g.mul_(at.k).mul_(-0.5)
    h.mul_(at.r).mul_(-0.5)
    g.mul_(at.k).mul_(-0.5)
    return _sum(torch.add(h, g, out=piece.buffer("t"))), h, g


def _power(piece: Piece, term: Term, at: _Ratio) -> Partials:
    """With a^C E_c(x) = (a^{C−c} b^c − a^C)/c of c = C and c = B, from which both partial derivatives follow."""
    A, B, C = term.a, term.b, term.a + term.b
    h, g = piece.buffer("h"), piece.buffer("g")
    x = at.x if term.anchor_first else at.x.neg_()
    if A == 0.0:
        value = 0.5 * _sum(torch.mul(x, x, out=g))
        to_a, to_b = torch.neg(x, out=g), h.copy_(x)
        return (value, to_b, to_a) if term.anchor_first else (value, to_a, to_b)
    log_a = piece.log_prob(term.anchor, out=piece.buffer("l"))
    if not term.anchor_first:
        log_a.sub_(x)
    infinite = _out_of_range(log_a, x, term, spare=h) if min(A, B, C) < 0.0 else None
    steepest = max(abs(B), abs(C))
    far = 2.0 * piece.spread * max(steepest, 1.0) > FAR
    scale = piece.buffer("w")
    torch.mul(log_a, C, out=scale).exp_()
    _grown(piece, scale, log_a, x, C, B, far=far, out=g)
    _grown(piece, scale, log_a, x, C, C, far=far, out=h)
    if piece.spread * max(steepest, 1.0) <= NEAR:
        value = _near_sum(piece, scale, x, (A, B))
    else:
        value = _sum(torch.sub(h, g, out=piece.buffer("t")).mul_(1.0 / A).clamp_(min=0.0))
    to_b = h.mul_(C / A).sub_(g, alpha=B / A)
    to_a = g.neg_()
    if infinite is not None:
        value.masked_fill_(infinite, math.inf)
        to_a.masked_fill_(infinite, 0.0)
        to_b.masked_fill_(infinite, 0.0)
    return (value, to_b, to_a) if term.anchor_first else (value, to_a, to_b)


def _grown(
    piece: Piece, scale: Tensor, log_a: Tensor, x: Tensor, total: float, c: float, *, far: bool, out: Tensor
) -> Tensor:
    """a^C E_c(x) with C = ``total`` and ``scale`` = a^C."""
    if c == 0.0:
        return torch.mul(scale, x, out=out)
    if not far:
        return torch.mul(x, c, out=out).expm1_().mul_(scale).mul_(1.0 / c)
    above = torch.mul(log_a, total, out=piece.buffer("t")).add_(x, alpha=c).exp_()
    above.sub_(scale, alpha=math.e).clamp_(min=0.0)
    return torch.mul(x, c, out=out).clamp_(max=1.0).expm1_().mul_(scale).add_(above).mul_(1.0 / c)


def _out_of_range(log_a: Tensor, x: Tensor, term: Term, *, spare: Tensor) -> Tensor | None:
    """Rows in which a power passes the range of the dtype [m, 1], or None."""
    B, C = term.b, term.a + term.b
    limit = math.log(torch.finfo(x.dtype).max) - HEADROOM
    top = torch.full_like(log_a[:, :1], -math.inf)
    for slope in (0.0, C, B):
        exponent = torch.mul(log_a, C, out=spare)
        top = torch.maximum(top, exponent.add_(x, alpha=slope).amax(-1, keepdim=True))
    beyond = top > limit
    return beyond if bool(beyond.any()) else None


_FORMS = {
    Form.KL: _kl,
    Form.JEFFREYS: _jeffreys,
    Form.TOTAL_VARIATION: _total_variation,
    Form.JENSEN_SHANNON: _jensen_shannon,
    Form.POWER: _power,
}
