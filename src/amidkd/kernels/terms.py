"""An objective as what a kernel computes: a weighted sum of terms of one shape, with few cases left.

Every divergence of the catalogue between every two of teacher p, assistant r and student q is a divergence between r
and one of p and q, its *anchor*:

- teacher‖student is teacher‖assistant with λ = 0, where r = q and ω = 1;
- a divergence with its arguments exchanged is another of the catalogue (KL and reverse KL; A and B of the power
  divergences), or the same where it is symmetric.

So a kernel has four pairs (anchor × which of the two comes first) and five forms instead of 6 × 9.
"""

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.maths.divergence import Divergence
from amidkd.maths.divergence.forms import NEGLIGIBLE, Jeffreys, JensenShannon, PowerDivergence, TotalVariation
from amidkd.maths.objective import AnyObjective, Objective, WeightedSum
from amidkd.maths.shapes import Setting

__all__ = ["Anchor", "Form", "Term", "s_of", "series", "terms_of"]


class Form(enum.IntEnum):
    """How D(a‖b) is computed, with x = log(b/a); `amidkd.maths.divergence.forms` has the formulas."""

    KL = 0
    JEFFREYS = 1
    TOTAL_VARIATION = 2
    JENSEN_SHANNON = 3
    POWER = 4


class Anchor(enum.IntEnum):
    """Which of the two sources is compared with the assistant."""

    TEACHER = 0
    STUDENT = 1


@dataclass(frozen=True)
class Term:
    """weight · D(a‖b), where one of a, b is the anchor k and the other the assistant r.

    Args:
        weight: Factor, above 0.
        form: Which formula.
        anchor: k: teacher or student.
        anchor_first: Whether a is the anchor (D(k‖r)), or b (D(r‖k)). True for the symmetric forms.
        a: Exponent A of `Form.POWER`, |A| ≥ |B|; below ``NEGLIGIBLE`` it is 0.0.
        b: Exponent B.
        factor: Factor of the divergence itself (of `Form.POWER` and `Form.KL`), positive.
        s: (1 − α)/2, a number or a float64 tensor [n]; 0.0 within ``NEGLIGIBLE``.
        lam: λ, a number or a float64 tensor [n]; 0.0 where there is no assistant.
        detached: Whether the assistant is a constant (only with the student as anchor).
    """

    weight: float
    form: Form
    anchor: Anchor
    anchor_first: bool
    a: float
    b: float
    factor: float
    s: Setting
    lam: Setting
    detached: bool


def terms_of(objective: AnyObjective) -> tuple[Term, ...] | None:
    """An objective's terms, those of weight 0 left out; None where it has a divergence of the user's own.

    Args:
        objective: Any; its tensors with one value per token [n] are those of the tokens to be computed.
    """
    weighted = objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),)
    found = []
    for weight, term in weighted:
        if not isinstance(term.divergence, Divergence):
            return None
        if weight != 0:
            found.append(_term(float(weight), term, term.divergence))
    return tuple(found)


def _term(weight: float, objective: Objective, divergence: Divergence) -> Term:
    form, a, b, factor, exchanged = _form(divergence)
    first, second = objective.between.split("||")
    if exchanged:
        first, second = second, first
    assistant = "assistant" in (first, second)
    if assistant:
        anchor = Anchor.STUDENT if "student" in (first, second) else Anchor.TEACHER
        anchor_first = second == "assistant"
    else:
        anchor, anchor_first = Anchor.TEACHER, first == "teacher"
    if form in (Form.JEFFREYS, Form.TOTAL_VARIATION, Form.JENSEN_SHANNON):
        anchor_first = True
    return Term(
        weight=weight,
        form=form,
        anchor=anchor,
        anchor_first=anchor_first,
        a=a,
        b=b,
        factor=factor,
        s=s_of(objective.alpha) if assistant else 0.5,
        lam=_lam(objective.lam) if assistant else 0.0,
        detached=objective.detach_assistant and assistant,
    )


def _form(divergence: Divergence) -> tuple[Form, float, float, float, bool]:
    """Form, A, B, factor, and whether a and b are exchanged so that |A| ≥ |B|."""
    if isinstance(divergence, Jeffreys):
        return Form.JEFFREYS, 1.0, 0.0, 1.0, False
    if isinstance(divergence, TotalVariation):
        return Form.TOTAL_VARIATION, 1.0, 0.0, 1.0, False
    if isinstance(divergence, JensenShannon):
        return Form.JENSEN_SHANNON, 1.0, 0.0, 1.0, False
    assert isinstance(divergence, PowerDivergence)
    a, b = (0.0 if abs(exponent) < NEGLIGIBLE else exponent for exponent in (divergence.a, divergence.b))
    exchanged = abs(b) > abs(a)
    if exchanged:
        a, b = b, a
    return Form.KL if (a, b) == (1.0, 0.0) else Form.POWER, a, b, divergence.factor, exchanged


def s_of(alpha: Setting) -> Setting:
    """s = (1 − α)/2, a number or a float64 tensor [n]; 0.0 within ``NEGLIGIBLE``."""
    if isinstance(alpha, Tensor) and alpha.ndim:
        each = (1.0 - alpha.detach().double()) / 2.0
        return torch.where(each.abs() < NEGLIGIBLE, 0.0, each)
    s = (1.0 - float(alpha)) / 2.0
    return 0.0 if abs(s) < NEGLIGIBLE else s


def _lam(lam: Setting) -> Setting:
    return lam.detach().double() if isinstance(lam, Tensor) and lam.ndim else float(lam)


def series(a: float, b: float, count: int) -> list[float]:
    """Coefficients h_n(A + B, B)/(n+2)!, n = 0 … count − 1, of the power divergence's series in x = log(b/a).

    A token of a power divergence contributes x² a^C Σ_n h_n xⁿ/(n+2)!, C = A + B, with h_n the complete homogeneous
    symmetric polynomials; of KL (A = 1, B = 0) this is a (eˣ − 1 − x).

    Args:
        a: A.
        b: B.
        count: How many.
    """
    c = a + b
    symmetric, power, found, factorial = 1.0, 1.0, [0.5], 2.0
    for n in range(1, count):
        power *= b
        symmetric = c * symmetric + power
        factorial *= n + 2
        found.append(symmetric / factorial)
    return found
