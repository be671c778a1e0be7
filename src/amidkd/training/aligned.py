"""The distillation loss on a teacher with another tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amidkd.data import Sequences
from amidkd.kernels import LossOutput, distillation_loss
from amidkd.kernels.chunked import MEMORY_MB
from amidkd.kernels.heads import compute_dtype, exact, head_logits, sources, vocabulary
from amidkd.maths.objective import AnyObjective
from amidkd.signals import Hidden, Logits
from amidkd.teachers import Aligned
from amidkd.training.merging import Rows, Vocabulary, merge, merged_outcome
from amidkd.training.settings import LossSettings
from amidkd.training.weighting import STUDENT

__all__ = ["aligned_loss"]

_BUFFERS = 12
"""Buffers over both vocabularies that a token takes, with the graph and the sorted probabilities."""


def aligned_loss(
    settings: LossSettings,
    *,
    student: Hidden | Logits,
    said: Aligned,
    sequences: Sequences,
    step: int,
    count: int,
    measure: bool,
) -> LossOutput:
    """The distillation loss of a forward pass on text that both tokenizers cut alike.

    Σ over spans of w · (D(objective; teacher, student) + uld_weight · Σ_k |p₍ₖ₎ − q₍ₖ₎|) / count, and the cross-entropy
    of all supervised tokens. D is over the outcomes of :mod:`amidkd.training.merging`; p₍ₖ₎ and q₍ₖ₎ are the k-th
    largest probabilities of the tokens that the other side does not have (universal logit distillation: Boizard et al.,
    TMLR 2025), 0 where a side has fewer. Where one side has no such token, those of the other are masked on both, as
    ids beyond a shared vocabulary are.

    A span counts once, however many tokens it has, with the weight of its first; supervised tokens outside all spans
    count in the denominator and add nothing. By the chain rule and the data-processing inequality the sum of the
    spans' forward KLs is then at most the KL of the whole texts, as the sum over tokens is with one tokenizer.

    Args:
        settings: What to minimise; it has an objective, no skew of each sequence, and no weighting by the teacher.
        student: What the student says at the supervised positions.
        said: What the teacher says.
        sequences: The rows.
        step: Optimizer steps already made.
        count: Supervised tokens of the whole step.
        measure: Whether metrics are wanted; they are means over spans, and ``aligned_tokens``, the share of supervised
            tokens that are in one.
    """
    pass_ = _Pass.of(settings, student=student, said=said, sequences=sequences, step=step, count=count, measure=measure)
    made = [out for objective, spans in pass_.parts(step) for out in pass_.walk(objective, spans)]
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in pass_.leaves)
    total = torch.stack([out.loss.detach() for out in made]).sum() if made else pass_.zero()
    tensors = [tensor for tensor in sources(student) if tensor is not None]
    if learns:
        total = _Known.apply(total, pass_.gradients(), *tensors)
    metrics = _joined(made)
    if measure:
        metrics["aligned_tokens"] = (said.span_N >= 0).double().mean() if len(said.span_N) else pass_.zero()
    if settings.cross_entropy_weight > 0:
        hard = pass_.cross_entropy()
        total = total + hard.loss
        metrics |= {name: value for name, value in hard.metrics.items() if name == "cross_entropy"}
    return LossOutput(loss=total, backend=made[0].backend if made else "chunked", metrics=metrics)
