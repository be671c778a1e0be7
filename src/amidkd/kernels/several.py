"""Several teachers as one: exactly, where all terms of an objective mix them with one α and the same weights.

The flat mixture of K teachers (weights λ w_k) and the student (1 − λ) is the mixture of two: of the teachers' own
normalised mixture p̄ = m/Z, m = (Σ_k w_k p_k^s)^{1/s}, and of the student, with another λ' for each token:

    λ Σ_k w_k p_k^s + (1−λ) q^s = λ Z^s p̄^s + (1−λ) q^s,   logit λ' = logit λ + s·log Z.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amidkd.kernels.heads import Rows, piece_rows
from amidkd.kernels.sides import Some, TeacherSide
from amidkd.kernels.terms import Term, s_of
from amidkd.maths.mixture import log_mixture_of
from amidkd.maths.objective import AnyObjective, Objective, WeightedSum, take_rows
from amidkd.maths.shapes import Setting, checked_weights

__all__ = ["BUFFERS", "SeveralTeachers", "merge", "merged_terms", "shared_mixture"]

BUFFERS = 12
"""How many [n, V] tensors live at once in ``merge``, and four more for each teacher."""


def shared_mixture(objective: AnyObjective, count: int) -> Objective | None:
    """A term whose α and teacher weights are those of all terms, or None.

    Args:
        objective: Any.
        count: How many teachers.
    """
    terms = [term for _, term in objective.terms] if isinstance(objective, WeightedSum) else [objective]
    first = terms[0]
    weights = checked_weights("teacher_weights", first.teacher_weights, count)
    for term in terms[1:]:
        if not _same(term.alpha, first.alpha):
            return None
        if checked_weights("teacher_weights", term.teacher_weights, count) != weights:
            return None
    return first


def _same(one: Setting, other: Setting) -> bool:
    if one is other:
        return True
    each = (isinstance(setting, Tensor) and setting.ndim > 0 for setting in (one, other))
    return not any(each) and float(one) == float(other)


def merge(log_ps: list[Tensor], mixture: Objective) -> tuple[Tensor, Tensor]:
    """The teachers' mixture log p̄ [n, V], −inf outside its support, and s·log Z [n] in float64.

    Args:
        log_ps: Log-probabilities [n, V] of each teacher.
        mixture: Has α (of these tokens) and the weights.
    """
    weights = checked_weights("teacher_weights", mixture.teacher_weights, len(log_ps))
    merged = log_mixture_of(log_ps, weights=weights, alpha=mixture.alpha)
    # Z is the same at every token of the vocabulary: it is read off at the likeliest
    likeliest = merged.argmax(-1, keepdim=True)
    log_p = torch.cat([log_p.gather(-1, likeliest) for log_p in log_ps], dim=-1).double()
    s = s_of(mixture.alpha)
    column = s.to(log_p.device).unsqueeze(-1) if isinstance(s, Tensor) else torch.full_like(log_p[:, :1], s)
    shares = torch.tensor([float(weight) for weight in weights], dtype=torch.float64, device=log_p.device)
    used = shares > 0
    powers = torch.where(used, column * torch.where(used, log_p, 0.0), -torch.inf)
    level = (powers + shares.log()).logsumexp(-1, keepdim=True) - column * merged.gather(-1, likeliest).double()
    return merged, torch.where((column == 0.0) | ~level.isfinite(), 0.0, level).squeeze(-1)


def merged_terms(terms: tuple[Term, ...], level: Tensor) -> tuple[Term, ...]:
    """The terms with the λ' of each token in place of λ.

    Args:
        terms: Of the tokens' own λ.
        level: s·log Z [n], float64.
    """
    return tuple(replace(term, lam=_lam(term.lam, level)) for term in terms)


def _lam(lam: Setting, level: Tensor) -> Setting:
    if isinstance(lam, float) and lam in (0.0, 1.0):
        return lam
    each = lam if isinstance(lam, Tensor) else torch.full_like(level, lam)
    return torch.sigmoid(torch.logit(each) + level)


class SeveralTeachers:
    """The logits of one teacher that stands for several.

    Args:
        sides: The teachers.
        vocab_size: V.
        temperature: Divides their logits.
        dtype: Of the arithmetic.
        device: The student's.
        step: Tokens of the largest chunk.
    """

    def __init__(
        self,
        sides: Sequence[TeacherSide],
        *,
        vocab_size: int,
        temperature: float,
        dtype: torch.dtype,
        device: torch.device,
        step: int,
    ) -> None:
        self._sides = sides
        self._temperature = temperature
        self._out = torch.empty((step, vocab_size), dtype=dtype, device=device)

    def load(self, rows: Rows, count: int, mixture: Objective) -> tuple[Tensor, Tensor]:
        """Logits that the temperature turns into p̄ [n, V], valid until the next call, and s·log Z [n].

        Args:
            rows: Which tokens.
            count: n.
            mixture: Has α of these tokens, and the teachers' weights.
        """
        out, V = self._out[:count], self._out.shape[1]
        level = torch.empty(count, dtype=torch.float64, device=out.device)
        spoken = [side.load(rows, count) for side in self._sides]
        step = piece_rows(count, V, out.device)
        for start in range(0, count, step):
            piece = slice(start, min(start + step, count))
            log_ps = [self._log_p(some, piece) for some in spoken]
            merged, level[piece] = merge(log_ps, _narrowed(mixture, piece))
            torch.mul(merged, self._temperature, out=out[piece])
        return out, level

    def _log_p(self, some: Some, piece: slice) -> Tensor:
        logits, index = some
        kept = (logits[piece] if index is None else logits[index[piece]])[:, : self._out.shape[1]].to(self._out.dtype)
        return (kept if self._temperature == 1.0 else kept / self._temperature).log_softmax(-1)


def _narrowed(mixture: Objective, piece: slice) -> Objective:
    narrowed = take_rows(mixture, piece)
    assert isinstance(narrowed, Objective)
    return narrowed
