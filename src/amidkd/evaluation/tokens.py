"""``tokens.jsonl``: the rows on which the student is farthest from its teacher, token by token."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amidkd.config import ObjectiveConfig
from amidkd.config.objective import TermConfig, schedule_values
from amidkd.data import Example, collate
from amidkd.evaluation.distribution import in_chunks, shared_width
from amidkd.evaluation.forced import Signal
from amidkd.evaluation.held_out import HeldOut, question
from amidkd.evaluation.statistics import Scores
from amidkd.kernels.heads import compute_dtype, head_logits
from amidkd.maths import divergence, log_mixture
from amidkd.signals import Hidden, Logits

__all__ = ["Assistant", "assistant_of", "farthest", "token_lines"]

_TOP = 5
"""How many of each distribution's likeliest tokens are kept."""


@dataclass(frozen=True)
class Assistant:
    """The mixture that an objective used last.

    Args:
        alpha: α.
        lam: λ, the teacher's weight.
    """

    alpha: float
    lam: float


def assistant_of(objective: ObjectiveConfig) -> Assistant | None:
    """The assistant of an objective, of several terms the first one's; None where none takes part.

    Args:
        objective: The run's objective.
    """
    terms: Sequence[TermConfig] = objective.terms or [objective]
    for term in terms:
        if "assistant" in term.between:
            return Assistant(schedule_values(term.alpha)[-1], schedule_values(term.lam)[-1])
    return None


def farthest(kl: Scores, count: int) -> list[int]:
    """Places of the rows with the highest KL(teacher‖student) a token, the highest first.

    Args:
        kl: Scores of every row.
        count: How many, at most.
    """
    measured = np.flatnonzero(kl.counts > 0)
    means = kl.sums[measured] / kl.counts[measured]
    return [int(measured[place]) for place in np.argsort(-means, kind="stable")[:count]]


def token_lines(
    places: Sequence[int],
    held_out: HeldOut,
    *,
    student: Signal,
    teacher: Signal,
    assistant: Assistant | None,
    tokenizer: Any,
    pad_id: int,
    vocab_size: int,
    batch_size: int,
    device: torch.device,
    memory_mb: float = 128.0,
) -> list[dict[str, Any]]:
    """Lines of ``tokens.jsonl``.

    Args:
        places: Which rows, in this order; each has a text.
        held_out: All rows.
        student: A batch → the student's signal at its supervised positions.
        teacher: The same for the teacher.
        assistant: α and λ of the assistant that is shown beside them, or None.
        tokenizer: Ids to text.
        pad_id: Token id that fills a batch.
        vocab_size: Shared vocabulary.
        batch_size: Rows in a batch.
        device: Where the batches go.
        memory_mb: Room for temporaries over the vocabulary, MiB.

    Returns:
        One mapping a row: ``row``, ``prompt``, ``kl``, ``alpha``, ``lam`` and ``tokens``; None for a number that is not
        finite.
    """
    pieces = _Pieces(tokenizer)
    lines = []
    for start in range(0, len(places), batch_size):
        some = places[start : start + batch_size]
        examples = [_there(held_out.texts[place]) for place in some]
        sequences = collate(examples, pad_id=pad_id).to(device)
        labels = sequences.labels_N()
        views = _views(student(sequences), teacher(sequences), labels, assistant, vocab_size, memory_mb)
        counts = [example.token_count() for example in examples]
        parts = zip(*(view.split(counts) for view in [labels.to("cpu"), *views]), strict=True)
        for place, part in zip(some, parts, strict=True):
            row = held_out.rows[place]
            tokens = _tokens(part, pieces, named=assistant is not None)
            line = {"row": row.where, "prompt": question(row), "kl": _number(float(part[1].double().mean()))}
            settings = {"alpha": assistant and assistant.alpha, "lam": assistant and assistant.lam}
            lines.append({**line, **settings, "tokens": tokens})
    return lines


def _there(example: Example | None) -> Example:
    if example is None:
        raise ValueError("a row without a text has no tokens to show")
    return example


@torch.no_grad()
def _views(
    student: Hidden | Logits,
    teacher: Hidden | Logits,
    labels: Tensor,
    assistant: Assistant | None,
    vocab_size: int,
    memory_mb: float,
) -> list[Tensor]:
    """KL, p and q of the label [N]; then ids and probabilities [N, 5] of teacher, student and, if any, assistant."""
    width = shared_width([student, teacher], labels, vocab_size)
    dtype = compute_dtype([student, teacher])
    forward = divergence("kl")

    def chunk(rows: slice) -> list[Tensor]:
        log_q = head_logits(student, rows, vocab_size=width, dtype=dtype).log_softmax(-1)
        log_p = head_logits(teacher, rows, vocab_size=width, dtype=dtype).to(log_q.device).log_softmax(-1)
        picked = labels[rows].to(log_q.device).unsqueeze(-1)
        shown = [log_p, log_q]
        if assistant is not None:
            shown.append(log_mixture(log_p, log_q, alpha=assistant.alpha, lam=assistant.lam))
        columns = [forward(log_p, log_q), *(log.gather(-1, picked).squeeze(-1).exp() for log in (log_p, log_q))]
        for log in shown:
            values, ids = log.topk(min(_TOP, width), dim=-1)
            columns += [ids, values.exp()]
        return columns

    # One more distribution and what makes it live at once than in a comparison.
    return [column.to("cpu") for column in in_chunks(chunk, labels, width, dtype, memory_mb / 2)]


class _Pieces:
    """Tokens as text, each looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._text(token)
        return self._known[token]

    def _text(self, token: int) -> str:
        text = str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        # SentencePiece's decoder drops the blank before the first piece.
        return " " + text if name.startswith("▁") and not text.startswith(" ") else text


def _tokens(columns: Sequence[Tensor], pieces: Callable[[int], str], *, named: bool) -> list[dict[str, Any]]:
    labels, kl, p, q, *tops = (column.tolist() for column in columns)
    sides = ("teacher", "student", "assistant") if named else ("teacher", "student")
    tokens = []
    for place, label in enumerate(labels):
        token: dict[str, Any] = {"text": pieces(label)}
        token |= {"kl": _number(kl[place]), "p": _number(p[place]), "q": _number(q[place])}
        for number, side in enumerate(sides):
            ids, values = tops[2 * number][place], tops[2 * number + 1][place]
            token[side] = [[pieces(i), _number(value)] for i, value in zip(ids, values, strict=True)]
        tokens.append(token)
    return tokens


def _number(value: float) -> float | None:
    """Four digits, which is more than a page shows; JSON has no infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
