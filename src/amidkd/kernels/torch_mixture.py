"""The assistant of a few rows, for the row kernel in torch: large operations in place, and no branch per token.

With k the anchor, the mixture is measured from the source that has the larger weight, so that the logarithm below is
never of less than 1/2: for the weight w ≤ 1/2 of the other one and v = ±sΔ,

    y = w·expm1(v),   log(m/k) = log1p(y)/s + (0 or ±Δ),   ω = (1 − λ + [teacher has the larger weight]·y)/(1 + y).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.kernels.terms import Anchor, Term
from amidkd.maths.shapes import Setting

__all__ = ["FAR", "Mix", "Piece", "Space", "add_scaled", "mixed", "rise_of", "share_times"]

FAR = 50.0
"""Up to this |x| the part of k·expm1(x) that is lost where k underflows changes no sum."""

NARROW = 8.0
"""Natural logarithm of what is kept between e^v and the largest float."""


class Space:
    """Buffers [rows, V] by name, made at their first use and used again.

    Args:
        rows: The most rows of a piece.
        vocab_size: V.
        like: Of the dtype and the device that they get.
    """

    def __init__(self, rows: int, vocab_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = rows, vocab_size
        self._dtype = dtype
        self._device = device
        self._made: dict[str, Tensor] = {}

    def get(self, name: str, rows: int) -> Tensor:
        """The first rows of a buffer."""
        if name not in self._made:
            self._made[name] = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return self._made[name][:rows]


@dataclass(frozen=True)
class Piece:
    """A few rows, without a masked token.

    Args:
        rows: Which of the block.
        space: Buffers.
        logits: Of teacher and student [m, V], at the temperature.
        probs: Their softmax [m, V].
        log_sums: Their log-sum-exp [m, 1].
        gap: log q − log p [m, V].
        spread: max|gap|.
    """

    rows: slice
    space: Space
    logits: tuple[Tensor, Tensor]
    probs: tuple[Tensor, Tensor]
    log_sums: tuple[Tensor, Tensor]
    gap: Tensor
    spread: float

    def buffer(self, name: str) -> Tensor:
        """A buffer of as many rows as the piece has."""
        return self.space.get(name, self.gap.shape[0])

    def log_prob(self, anchor: Anchor, *, out: Tensor) -> Tensor:
        """log p or log q."""
        return torch.sub(self.logits[anchor], self.log_sums[anchor], out=out)


@dataclass(frozen=True)
class Mix:
    """The numbers of one term's assistant: floats, or tensors [n, 1].

    Args:
        power: Whether anything is left of log1p(y): some s ≠ 0 with 0 < λ < 1.
        rate: v = rate·(log q − log p).
        weight: w; 0 where s = 0.
        log_weight: log w.
        inverse: 1/s; 0 where s = 0.
        direct: log(m/k) = inverse·log1p(y) + direct·(log q − log p).
        student: 1 − λ.
        teacher_larger: 1 where y adds to ω, else 0.
        steepest: max|rate|.
    """

    power: bool
    rate: Setting
    weight: Setting
    log_weight: Setting
    inverse: Setting
    direct: Setting
    student: Setting
    teacher_larger: Setting
    steepest: float

    @staticmethod
    def of(term: Term, *, dtype: torch.dtype, device: torch.device) -> "Mix":
        """From a term; tensors in float64 until they are ready."""
        s, lam = term.s, term.lam
        if not isinstance(s, Tensor) and not isinstance(lam, Tensor):
            return Mix(*_numbers(float(s), float(lam), term.anchor))
        given = next(setting for setting in (s, lam) if isinstance(setting, Tensor))
        s, lam = (setting if isinstance(setting, Tensor) else torch.full_like(given, setting) for setting in (s, lam))
        s, lam = s.to(device), lam.to(device)
        larger = lam > 0.5
        weight = torch.where(larger, 1.0 - lam, lam)
        flat = (s == 0.0) | (weight == 0.0)
        straight = torch.where(larger, 0.0, 1.0) if term.anchor == Anchor.TEACHER else torch.where(larger, -1.0, 0.0)
        geometric = 1.0 - lam if term.anchor == Anchor.TEACHER else -lam
        weight = torch.where(flat, 0.0, weight)
        rate = torch.where(flat, 0.0, torch.where(larger, s, -s))
        found = (
            rate,
            weight,
            weight.log(),
            torch.where(flat, 0.0, 1.0 / s),
            torch.where(s == 0.0, geometric, straight),
            1.0 - lam,
            torch.where(flat, 0.0, larger.to(lam.dtype)),
        )
        first, *rest = (column.to(dtype).unsqueeze(-1) for column in found)
        weight, log_weight, inverse, direct, student, teacher_larger = rest
        steepest = float(rate.abs().max()) if rate.numel() else 0.0
        return Mix(True, first, weight, log_weight, inverse, direct, student, teacher_larger, steepest)

    def some(self, rows: slice) -> "Mix":
        """The numbers of some rows."""

        def of(value: Setting) -> Setting:
            return value[rows] if isinstance(value, Tensor) else value

        return Mix(
            self.power,
            of(self.rate),
            of(self.weight),
            of(self.log_weight),
            of(self.inverse),
            of(self.direct),
            of(self.student),
            of(self.teacher_larger),
            self.steepest,
        )


def _numbers(
    s: float, lam: float, anchor: Anchor
) -> tuple[bool, float, float, float, float, float, float, float, float]:
    larger = lam > 0.5
    weight = 1.0 - lam if larger else lam
    if s == 0.0:
        direct = 1.0 - lam if anchor == Anchor.TEACHER else -lam
    elif anchor == Anchor.TEACHER:
        direct = 0.0 if larger else 1.0
    else:
        direct = -1.0 if larger else 0.0
    if s == 0.0 or weight == 0.0:
        return False, 0.0, 0.0, -math.inf, 0.0, direct, 1.0 - lam, 0.0, 0.0
    rate = s if larger else -s
    return True, rate, weight, math.log(weight), 1.0 / s, direct, 1.0 - lam, float(larger), abs(s)


def add_scaled(x: Tensor, gap: Tensor, direct: Setting, inverse: Setting) -> Tensor:
    """x ← inverse·x + direct·gap."""
    if isinstance(inverse, Tensor) or isinstance(direct, Tensor):
        return x.mul_(inverse).addcmul_(gap, torch.as_tensor(direct))
    if direct == 1.0:
        return torch.add(gap, x, alpha=inverse, out=x)
    x.mul_(inverse)
    return x if direct == 0.0 else x.add_(gap, alpha=direct)


def mixed(piece: Piece, mix: Mix) -> tuple[Tensor, Tensor | None]:
    """log(m/k), and y (None: 0 everywhere), in buffers of their own."""
    x = piece.buffer("x")
    if not mix.power:
        return torch.mul(piece.gap, mix.direct, out=x), None
    y = torch.mul(piece.gap, mix.rate, out=piece.buffer("y"))
    limit = math.log(torch.finfo(y.dtype).max) - NARROW
    if mix.steepest * piece.spread <= limit:
        torch.log1p(y.expm1_().mul_(mix.weight), out=x)
    else:
        y.add_(mix.log_weight)
        torch.sub(y, limit, out=x).clamp_(min=0.0)
        y.clamp_(max=limit).exp_().sub_(mix.weight)
        x.add_(torch.log1p(y, out=piece.buffer("t")))
    return add_scaled(x, piece.gap, mix.direct, mix.inverse), y


def rise_of(piece: Piece, anchor: Anchor, x: Tensor, *, out: Tensor, whole: Tensor | None = None) -> Tensor:
    """k·expm1(x) = k e^x − k, also where k underflows and e^x would overflow.

    Args:
        piece: The rows.
        anchor: Whose probabilities k are.
        x: [m, V].
        out: Where to write it.
        whole: k e^x, where it is known already.
    """
    k = piece.probs[anchor]
    if piece.spread <= FAR and whole is None:
        return torch.expm1(x, out=out).mul_(k)
    if whole is None:
        whole = piece.log_prob(anchor, out=piece.buffer("t")).add_(x).exp_()
        above = whole.sub_(k, alpha=math.e).clamp_(min=0.0)
    else:
        above = torch.sub(whole, k, alpha=math.e, out=piece.buffer("t")).clamp_(min=0.0)
    return torch.clamp(x, max=1.0, out=out).expm1_().mul_(k).add_(above)


def share_times(mix: Mix, y: Tensor | None, h: Tensor, spare: Tensor) -> Setting:
    """h ← ω·h but for a factor, which is returned; y is used up.

    Args:
        mix: The assistant.
        y: What ``mixed`` gave.
        h: [m, V].
        spare: A buffer [m, V].
    """
    if y is None:
        return mix.student
    if isinstance(mix.teacher_larger, Tensor):
        share = torch.mul(y, mix.teacher_larger, out=spare).add_(mix.student)
    elif mix.teacher_larger:
        share = torch.add(y, mix.student, out=spare)
    else:
        h.div_(y.add_(1.0))
        return mix.student
    h.mul_(share.div_(y.add_(1.0)))
    return 1.0
