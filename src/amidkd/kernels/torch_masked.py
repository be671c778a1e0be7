"""Rows in which some token is masked, by the plain formulas of `amidkd.maths`: right everywhere, and slower."""

import torch
from torch import Tensor

from amidkd.kernels.block import MEASURED
from amidkd.kernels.metrics import measure
from amidkd.kernels.terms import Anchor, Form, Term
from amidkd.maths.divergence import Divergence
from amidkd.maths.divergence.forms import Jeffreys, JensenShannon, PowerDivergence, TotalVariation
from amidkd.maths.gradient import value_and_gradient
from amidkd.maths.objective import Objective
from amidkd.maths.shapes import Setting

__all__ = ["log_probs", "masked_terms"]


def log_probs(logits: Tensor) -> Tensor:
    """log softmax [m, V]; all −inf where a row has no support."""
    whole = logits.logsumexp(-1, keepdim=True)
    return logits - whole.masked_fill(whole == -torch.inf, 0.0)


def masked_terms(
    terms: tuple[Term, ...],
    rows: slice,
    *,
    teacher: Tensor,
    student: Tensor,
    assistant: int | None,
    metrics: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Σ weight·D of some tokens [m], and its gradient with respect to the student's logits [m, V].

    Args:
        terms: What to add up; their tensors are those of all tokens of the block.
        rows: Which of them these are.
        teacher: Logits [m, V], at the temperature.
        student: Logits [m, V], at the temperature.
        assistant: Number of the term that the assistant's metrics are of, or None.
        metrics: Out [7, m], as `amidkd.kernels.block.Block` has it, or None.
    """
    log_p, log_q = log_probs(teacher), log_probs(student)
    values, slopes = student.new_zeros(student.shape[0]), torch.zeros_like(student)
    for term in terms:
        value, slope = value_and_gradient(_objective(term, rows), teacher=log_p, student=log_q)
        values.add_(value, alpha=term.weight)
        slopes.add_(slope, alpha=term.weight)
    slopes.masked_fill_((student == -torch.inf).all(-1, keepdim=True), 0.0)
    if metrics is not None:
        found = measure(_objective(terms[assistant or 0], rows), teacher=log_p, student=log_q)
        for name, row in zip(MEASURED, metrics, strict=True):
            if name in found:
                row.copy_(found[name])
    return values, slopes


def _objective(term: Term, rows: slice) -> Objective:
    """The objective that a term was made from, or one equal to it."""
    anchor = "teacher" if term.anchor == Anchor.TEACHER else "student"
    pair = f"{anchor}||assistant" if term.anchor_first else f"assistant||{anchor}"
    return Objective(
        divergence=_divergence(term),
        between=pair,  # type: ignore[arg-type]
        alpha=1.0 - 2.0 * _of(term.s, rows),
        lam=_of(term.lam, rows),
        detach_assistant=term.detached,
    )


def _of(setting: Setting, rows: slice) -> Setting:
    return setting[rows] if isinstance(setting, Tensor) else setting


def _divergence(term: Term) -> Divergence:
    if term.form == Form.JEFFREYS:
        return Jeffreys()
    if term.form == Form.TOTAL_VARIATION:
        return TotalVariation()
    if term.form == Form.JENSEN_SHANNON:
        return JensenShannon()
    return PowerDivergence("power", term.a, term.b, term.factor)
