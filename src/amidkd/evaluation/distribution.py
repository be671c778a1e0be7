"""What two models say at the same places of a text, token by token, without their full logits.

Let p be the teacher and q the student over the shared vocabulary, at each supervised position. All sums over V run
in float32 (float64 where an input is), some tokens at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.kernels.heads import compute_dtype, exact, head_logits, vocabulary
from amidkd.maths import divergence
from amidkd.signals import Hidden, Logits

__all__ = [
    "OneModel",
    "TokenNumbers",
    "compare",
    "in_chunks",
    "negative_log_likelihood",
    "one_model",
    "shared_width",
]

_BUFFERS = 8
"""[n, V] tensors that live at once while a chunk is compared, at most."""


@dataclass(frozen=True)
class TokenNumbers:
    """Numbers of N tokens, each a tensor [N].

    Args:
        nll_student: −log q(label), nats.
        nll_teacher: −log p(label), nats.
        kl_teacher_student: KL(p‖q), nats.
        kl_student_teacher: KL(q‖p), nats.
        total_variation: ½ Σ|p − q|, so that 1 − it is the chance that speculative decoding keeps a drafted token.
        agreement: 1 where both have the same likeliest token, else 0.
        coverage: Σ p over the tokens with q > ε, in [0, 1].
        confidence: max q, the student's.
        right: 1 where the student's likeliest token is the label, else 0.
    """

    nll_student: Tensor
    nll_teacher: Tensor
    kl_teacher_student: Tensor
    kl_student_teacher: Tensor
    total_variation: Tensor
    agreement: Tensor
    coverage: Tensor
    confidence: Tensor
    right: Tensor


@dataclass(frozen=True)
class OneModel:
    """Numbers of N tokens of one model alone, each a tensor [N].

    Args:
        nll: −log q(label), nats.
        confidence: max q.
        right: 1 where the likeliest token is the label, else 0.
    """

    nll: Tensor
    confidence: Tensor
    right: Tensor


@torch.no_grad()
def compare(
    *,
    student: Hidden | Logits,
    teacher: Hidden | Logits,
    labels: Tensor,
    vocab_size: int | None = None,
    epsilon: float = 1e-3,
    memory_mb: float = 128.0,
) -> TokenNumbers:
    """Compare two models at N positions.

    Args:
        student: The student's signal, N rows.
        teacher: The teacher's signal at the same positions.
        labels: The tokens that stand there [N], ids below ``vocab_size``.
        vocab_size: V, the shared vocabulary; default: the smaller width.
        epsilon: ε, what a token has to have more than to count as covered by the student, in (0, 1).
        memory_mb: Room for temporaries, MiB.

    Raises:
        ValueError: A label is beyond the vocabulary.

    Source: acceptance 1 − TV, Leviathan et al. 2023, corollary 3.6.
    """
    width = shared_width([student, teacher], labels, vocab_size)
    dtype = compute_dtype([student, teacher])
    forward, variation = divergence("kl"), divergence("total_variation")

    def chunk(rows: slice) -> list[Tensor]:
        log_q = head_logits(student, rows, vocab_size=width, dtype=dtype).log_softmax(-1)
        log_p = head_logits(teacher, rows, vocab_size=width, dtype=dtype).to(log_q.device).log_softmax(-1)
        picked = labels[rows].to(log_q.device).unsqueeze(-1)
        return [
            -log_q.gather(-1, picked).squeeze(-1),
            -log_p.gather(-1, picked).squeeze(-1),
            forward(log_p, log_q),
            forward(log_q, log_p),
            variation(log_p, log_q),
            (log_p.argmax(-1) == log_q.argmax(-1)).to(dtype),
            # Every token at once may round to a little more than 1.
            log_p.exp().masked_fill(log_q <= math.log(epsilon), 0.0).sum(-1).clamp(max=1.0),
            *_top(log_q, picked),
        ]

    return TokenNumbers(*in_chunks(chunk, labels, width, dtype, memory_mb))


def _top(log_q: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """max q, and 1 where the likeliest token is the label."""
    peak, token = log_q.max(-1)
    return peak.exp(), (token == picked.squeeze(-1)).to(log_q.dtype)


def negative_log_likelihood(
    signal: Hidden | Logits, labels: Tensor, *, vocab_size: int | None = None, memory_mb: float = 128.0
) -> Tensor:
    """−log q(label) at N positions, nats [N]; arguments as for :func:`one_model`."""
    return one_model(signal, labels, vocab_size=vocab_size, memory_mb=memory_mb).nll


@torch.no_grad()
def one_model(
    signal: Hidden | Logits, labels: Tensor, *, vocab_size: int | None = None, memory_mb: float = 128.0
) -> OneModel:
    """What one model says at N positions.

    Args:
        signal: The model's signal, N rows.
        labels: The tokens that stand there [N], ids below ``vocab_size``.
        vocab_size: V; default: the signal's width.
        memory_mb: Room for temporaries, MiB.

    Raises:
        ValueError: A label is beyond the vocabulary.
    """
    width = shared_width([signal], labels, vocab_size)
    dtype = compute_dtype([signal])

    def chunk(rows: slice) -> list[Tensor]:
        log_q = head_logits(signal, rows, vocab_size=width, dtype=dtype).log_softmax(-1)
        picked = labels[rows].to(log_q.device).unsqueeze(-1)
        return [-log_q.gather(-1, picked).squeeze(-1), *_top(log_q, picked)]

    return OneModel(*in_chunks(chunk, labels, width, dtype, memory_mb))


def shared_width(signals: list[Hidden | Logits], labels: Tensor, vocab_size: int | None) -> int:
    """V: tokens that all signals have, and at most ``vocab_size``.

    Args:
        signals: Signals of the same rows.
        labels: The tokens that stand there [N].
        vocab_size: No more than this; None: the smallest width.

    Raises:
        ValueError: A label is beyond it.
    """
    width = min(vocabulary(signal) for signal in signals)
    if vocab_size is not None:
        width = min(width, vocab_size)
    if labels.numel() and int(labels.max()) >= width:
        raise ValueError(f"token id {int(labels.max())} of the text is beyond the shared vocabulary of {width}")
    return width


def in_chunks(
    chunk: Callable[[slice], list[Tensor]], labels: Tensor, width: int, dtype: torch.dtype, memory_mb: float
) -> list[Tensor]:
    """Columns that a function makes of some rows at a time, joined.

    Args:
        chunk: Rows → columns [n, ...].
        labels: The tokens that stand there [N].
        width: V.
        dtype: Of the temporaries [n, V].
        memory_mb: Room for them, MiB.
    """
    step = max(1, int(memory_mb * 2**20 // (_BUFFERS * width * dtype.itemsize)))
    with exact(labels.device):
        parts = [chunk(slice(start, start + step)) for start in range(0, max(1, labels.numel()), step)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]
