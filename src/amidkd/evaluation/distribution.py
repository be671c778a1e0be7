"""What two models say at the same places of a text, token by token, without their full logits.

Let p be the teacher and q the student over the shared vocabulary, at each supervised position. All sums over V run
in float32 (float64 where an input is), some tokens at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.kernels.heads import compute_dtype, exact, head_logits, vocabulary
from amidkd.maths import divergence
from amidkd.signals import Hidden, Logits

__all__ = ["TokenNumbers", "compare", "negative_log_likelihood"]

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
    """

    nll_student: Tensor
    nll_teacher: Tensor
    kl_teacher_student: Tensor
    kl_student_teacher: Tensor
    total_variation: Tensor
    agreement: Tensor


@torch.no_grad()
def compare(
    *,
    student: Hidden | Logits,
    teacher: Hidden | Logits,
    labels: Tensor,
    vocab_size: int | None = None,
    memory_mb: float = 128.0,
) -> TokenNumbers:
    """Compare two models at N positions.

    Args:
        student: The student's signal, N rows.
        teacher: The teacher's signal at the same positions.
        labels: The tokens that stand there [N], ids below ``vocab_size``.
        vocab_size: V, the shared vocabulary; default: the smaller width.
        memory_mb: Room for temporaries, MiB.

    Raises:
        ValueError: A label is beyond the vocabulary.

    Source: acceptance 1 − TV, Leviathan et al. 2023, corollary 3.6.
    """
    width = _width([student, teacher], labels, vocab_size)
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
        ]

    return TokenNumbers(*_in_chunks(chunk, labels, width, dtype, memory_mb))


@torch.no_grad()
def negative_log_likelihood(
    signal: Hidden | Logits, labels: Tensor, *, vocab_size: int | None = None, memory_mb: float = 128.0
) -> Tensor:
    """−log q(label) at N positions, nats [N].

    Args:
        signal: The model's signal, N rows.
        labels: The tokens that stand there [N], ids below ``vocab_size``.
        vocab_size: V; default: the signal's width.
        memory_mb: Room for temporaries, MiB.

    Raises:
        ValueError: A label is beyond the vocabulary.
    """
    width = _width([signal], labels, vocab_size)
    dtype = compute_dtype([signal])

    def chunk(rows: slice) -> list[Tensor]:
        log_q = head_logits(signal, rows, vocab_size=width, dtype=dtype).log_softmax(-1)
        return [-log_q.gather(-1, labels[rows].to(log_q.device).unsqueeze(-1)).squeeze(-1)]

    return _in_chunks(chunk, labels, width, dtype, memory_mb)[0]


def _width(signals: list[Hidden | Logits], labels: Tensor, vocab_size: int | None) -> int:
    width = min(vocabulary(signal) for signal in signals)
    if vocab_size is not None:
        width = min(width, vocab_size)
    if labels.numel() and int(labels.max()) >= width:
        raise ValueError(f"token id {int(labels.max())} of the text is beyond the shared vocabulary of {width}")
    return width


def _in_chunks(
    chunk: Callable[[slice], list[Tensor]], labels: Tensor, width: int, dtype: torch.dtype, memory_mb: float
) -> list[Tensor]:
    step = max(1, int(memory_mb * 2**20 // (_BUFFERS * width * dtype.itemsize)))
    with exact(labels.device):
        parts = [chunk(slice(start, start + step)) for start in range(0, max(1, labels.numel()), step)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]
