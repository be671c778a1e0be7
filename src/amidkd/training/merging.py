"""Spans of several tokens as outcomes that two vocabularies have in common.

Where a span of text begins, each side says a distribution over its own next tokens. It is merged to the M tokens that
both have, one outcome for the text of the span, and one for everything else:

- The text of the span happens with the product of the conditionals of its tokens, P(y₁) P(y₂|y₁) ⋯ P(yₘ|y₁ … yₘ₋₁).
  It is the outcome of the shared token that stands for this text, where one side cut the text into just that token;
  else an outcome of its own.
- The first token y₁ keeps what is left of it, P(y₁) (1 − P(y₂|y₁) ⋯ P(yₘ|y₁ … yₘ₋₁)): it came, and something else
  followed.
- Every other token keeps its probability; those that are not shared add up to the last outcome.

The outcomes exclude each other and their probabilities add up to 1 on both sides. (GOLD multiplies the whole
distribution at the first position by the later conditionals, or that at the last position by the earlier ones; the
product for the text itself is the same, but the rest no longer adds up to 1.) What is left of y₁ is a log-sum-exp over
the other tokens, so that it keeps its digits where the product is close to 1.
"""

# Tensors carry their shape in their name.
# ruff: noqa: N815

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rows", "Vocabulary", "merge", "merged_outcome"]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one side.

    Args:
        shared_M: Ids of the shared tokens, in an order that both sides have [M].
        own_U: Ids of the other tokens [U].
        outcome_V: Place of each id among the shared tokens; M + 1 where it is not shared [V].
        rank_V: Place of each id among the others; U where it is shared [V].
    """

    shared_M: Tensor
    own_U: Tensor
    outcome_V: Tensor
    rank_V: Tensor

    @classmethod
    def of(cls, shared_M: Tensor, size: int) -> "Vocabulary":
        """From the shared tokens' ids and the number of ids."""
        count = len(shared_M)
        outcome_V = torch.full((size,), count + 1, dtype=torch.long, device=shared_M.device)
        outcome_V[shared_M] = torch.arange(count, device=shared_M.device)
        own_U = (outcome_V > count).nonzero()[:, 0]
        rank_V = torch.full_like(outcome_V, len(own_U))
        rank_V[own_U] = torch.arange(len(own_U), device=shared_M.device)
        return cls(shared_M, own_U, outcome_V, rank_V)


@dataclass(frozen=True)
class Rows:
    """The tokens of some spans, one span after another.

    Args:
        place_r: Which of the side's rows [r].
        token_r: The tokens [r].
        first_c: Where each span begins in them [c].
        length_c: How many tokens each has, at least 1 [c].
    """

    place_r: Tensor
    token_r: Tensor
    first_c: Tensor
    length_c: Tensor

    def opening_c(self) -> Tensor:
        """The first token of each span [c]."""
        return self.token_r[self.first_c]


def merged_outcome(student: Rows, teacher: Rows, ours: Vocabulary, theirs: Vocabulary) -> Tensor:
    """Which outcome the text of each span is: a shared token's, or M, one of its own [c].

    Args:
        student: The student's tokens of the spans.
        teacher: The teacher's.
        ours: The student's vocabulary.
        theirs: The teacher's.
    """
    count = len(ours.shared_M)
    found = torch.full_like(student.length_c, count)
    for rows, vocabulary in ((teacher, theirs), (student, ours)):
        outcome = vocabulary.outcome_V[rows.opening_c()]
        found = torch.where((rows.length_c == 1) & (outcome < count), outcome, found)
    return found


def merge(log_p: Tensor, rows: Rows, vocabulary: Vocabulary, outcome_c: Tensor) -> tuple[Tensor, Tensor]:
    """One side's distribution where each span begins, over the common outcomes.

    Args:
        log_p: Log-probabilities before each of the spans' tokens [r, V].
        rows: These tokens.
        vocabulary: The side's.
        outcome_c: Which outcome each span's text is [c].

    Returns:
        Log-probabilities [c, M + 2]: the shared tokens, the text of a span that is none of them, the rest; and of the
        tokens that are not shared [c, U], the observed one with what is left of it. Differentiable in ``log_p``.
    """
    said_r = log_p.gather(-1, rows.token_r[:, None])[:, 0]
    padded = _padded(rows)
    text_c = torch.where(padded.there, said_r[padded.place], 0.0).sum(-1)
    left_c = _left(log_p, said_r, rows, padded)
    opening = rows.opening_c()
    first = log_p[rows.first_c]
    own = _put(_widened(first[:, vocabulary.own_U], 1), vocabulary.rank_V[opening], left_c)[:, :-1]
    outcomes = _put(_widened(first[:, vocabulary.shared_M], 2), vocabulary.outcome_V[opening], left_c)
    text_c = torch.logaddexp(outcomes.gather(-1, outcome_c[:, None])[:, 0], text_c)
    outcomes = _put(outcomes, outcome_c, text_c)
    return torch.cat([outcomes[:, :-1], _log_sum(own)[:, None]], dim=-1), own


@dataclass(frozen=True)
class _Padded:
    """Where the tokens of each span are, as a rectangle [c, L]; whether there is one."""

    place: Tensor
    there: Tensor


def _padded(rows: Rows) -> _Padded:
    longest = int(rows.length_c.max())
    step = torch.arange(longest, device=rows.length_c.device)
    there = step < rows.length_c[:, None]
    return _Padded(torch.where(there, rows.first_c[:, None] + step, 0), there)


def _left(log_p: Tensor, said_r: Tensor, rows: Rows, padded: _Padded) -> Tensor:
    """log P(y₁) + log(1 − P(y₂|y₁) ⋯), −inf for a span of one token [c].

    1 − c₂ c₃ ⋯ = (1 − c₂) + c₂ (1 − c₃) + …
    """
    left_c = torch.full_like(said_r[rows.first_c], -torch.inf)
    long = (rows.length_c > 1).nonzero()[:, 0]
    if not len(long):
        return left_c
    place, there = padded.place[long, 1:], padded.there[long, 1:]
    inner = place[there]
    others = _log_sum(log_p[inner].scatter(-1, rows.token_r[inner][:, None], -torch.inf))
    other = torch.full(there.shape, -torch.inf, dtype=log_p.dtype, device=log_p.device)
    other = other.masked_scatter(there, others)
    said = torch.where(there, said_r[place], 0.0)
    change = (said.cumsum(-1) - said + other).logsumexp(-1)
    return left_c.index_copy(0, long, said_r[rows.first_c[long]] + change)


def _widened(log_p: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(log_p, (0, columns), value=-torch.inf)


def _put(table: Tensor, column_c: Tensor, value_c: Tensor) -> Tensor:
    return table.scatter(-1, column_c[:, None], value_c[:, None])


def _log_sum(log_p: Tensor) -> Tensor:
    """Log-sum-exp of each row, −inf where nothing has mass; differentiable there."""
    empty = (log_p == -torch.inf).all(-1)
    return (
        log_p.masked_fill(empty[:, None], 0.0).logsumexp(-1).masked_fill(empty, -torch.inf)
        if log_p.shape[-1]
        else (torch.full_like(log_p.sum(-1), -torch.inf))
    )
