"""Two models on given text: numbers of every row, from their signals at its supervised tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from amidkd.data import Example, Sequences, collate
from amidkd.evaluation.distribution import OneModel, TokenNumbers, compare, one_model
from amidkd.evaluation.formulas import Array
from amidkd.models import Backbone
from amidkd.signals import Hidden, Logits

__all__ = ["RowSums", "Signal", "signal_of", "sums_of_rows"]

RowSums = dict[str, Array]
"""Sums over the supervised tokens of each row [P], by name; ``tokens``: how many there are.

``calibration`` [P, bins + 1] is confidence less what was right in each bin of confidence, and last the tokens.
"""

Signal = Callable[[Sequences], Hidden | Logits]
"""A batch → what a model says at its supervised positions."""


def signal_of(model: Any) -> Signal:
    """What a causal model says of a batch, without gradients.

    Args:
        model: The model, not wrapped for distribution.
    """
    backbone = Backbone(model)

    @torch.no_grad()
    def signal(sequences: Sequences) -> Hidden | Logits:
        return backbone(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT())

    return signal


def sums_of_rows(
    examples: Sequence[Example | None],
    *,
    student: Signal,
    teacher: Signal | None,
    pad_id: int,
    vocab_size: int,
    batch_size: int,
    device: torch.device,
    epsilon: float = 1e-3,
    bins: int = 15,
    memory_mb: float = 128.0,
    progress: Callable[[int], Any] | None = None,
) -> RowSums:
    """What both models say at the supervised tokens of every row, summed over the row.

    Args:
        examples: Rows as tokens; None has no tokens, so that its sums and count are 0.
        student: A batch → the student's signal at its supervised positions.
        teacher: The same for the teacher; None: only the student's likelihood.
        pad_id: Token id that fills a batch.
        vocab_size: Shared vocabulary.
        batch_size: Rows in a batch; rows of like length go together.
        device: Where the batches go.
        epsilon: What a token must have more than to count as covered by the student.
        bins: Bins of confidence, of equal width.
        memory_mb: Room for temporaries over the vocabulary, MiB.
        progress: Called with the number of rows done, batch by batch.
    """
    order = sorted(
        (index for index, example in enumerate(examples) if example is not None and any(example.targets)),
        key=lambda index: len(_there(examples[index]).tokens),
    )
    sums: RowSums = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        sequences = collate([_there(examples[place]) for place in places], pad_id=pad_id).to(device)
        values = _numbers(sequences, student, teacher, vocab_size, epsilon, bins, memory_mb)
        rows_N = sequences.predicts_BT().nonzero()[:, 0].to("cpu")
        for name, value in values.items():
            total = torch.zeros(len(places), *value.shape[1:], dtype=torch.float64)
            total.index_add_(0, rows_N, value.to("cpu", torch.float64))
            sums.setdefault(name, np.zeros((len(examples), *value.shape[1:])))[places] = total.numpy()
        if progress is not None:
            progress(len(places))
    return sums


def _there(example: Example | None) -> Example:
    assert example is not None
    return example


def _numbers(
    sequences: Sequences,
    student: Signal,
    teacher: Signal | None,
    vocab_size: int,
    epsilon: float,
    bins: int,
    memory_mb: float,
) -> dict[str, torch.Tensor]:
    labels = sequences.labels_N()
    said = student(sequences)
    if teacher is None:
        alone = one_model(said, labels, vocab_size=vocab_size, memory_mb=memory_mb)
        return {"tokens": torch.ones_like(alone.nll), "nll": alone.nll, "calibration": _binned(alone, bins)}
    other = said if teacher is student else teacher(sequences)
    numbers = compare(
        student=said, teacher=other, labels=labels, vocab_size=vocab_size, epsilon=epsilon, memory_mb=memory_mb
    )
    return {
        "tokens": torch.ones_like(numbers.nll_student),
        "nll": numbers.nll_student,
        "nll_teacher": numbers.nll_teacher,
        "kl_teacher_student": numbers.kl_teacher_student,
        "kl_student_teacher": numbers.kl_student_teacher,
        "top1_agreement": numbers.agreement,
        "acceptance": 1.0 - numbers.total_variation,
        "coverage": numbers.coverage,
        "calibration": _binned(numbers, bins),
    }


def _binned(numbers: TokenNumbers | OneModel, bins: int) -> torch.Tensor:
    """Confidence less what was right, in the column of its bin (low, high], and last a 1: [N, bins + 1]."""
    place = (numbers.confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    spread = numbers.confidence.new_zeros(len(place), bins + 1)
    spread.scatter_(1, place.unsqueeze(-1), (numbers.confidence - numbers.right).unsqueeze(-1))
    spread[:, -1] = 1.0
    return spread
