"""The seam between the walk over the tokens (`chunked`) and what computes some of them: torch, C++ or Triton.

The walk makes logits, of a few tokens at a time where they come from hidden states, and collects gradients. A row
kernel takes the logits of n tokens and gives their values and the gradient with respect to the student's logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from amidkd.kernels.terms import Term

__all__ = ["MEASURED", "Block", "RowKernel"]

MEASURED = (
    "kl_teacher_student",
    "kl_student_teacher",
    "entropy_teacher",
    "entropy_student",
    "top1_agreement",
    "entropy_assistant",
    "responsibility",
)
"""The rows of ``Block.metrics``, as `amidkd.kernels.metrics.measure` names them; the last two with an assistant."""


@dataclass(frozen=True)
class Block:
    """The logits of n tokens, what to compute of them, and where to write it.

    Of a tensor [N, V'] with an index [n], token i is row ``index[i]``; without one, row i. Columns from V on are not
    looked at. All tensors are on one device; every output is written whole for the n tokens, whatever it held.

    Args:
        count: n.
        vocab_size: V, the columns that count.
        student: Logits z [N, ≥ V]: float32, bfloat16 or float16 (float64 in torch alone); −inf is masked. Row kernels
            may assume that neighbours in a row are neighbours in memory; rows may be any distance apart.
        student_rows: Index [n], int64, or None.
        teacher: Logits of the teacher [N, ≥ V], as the student's, of a dtype of its own; None without terms.
        teacher_rows: Index [n], int64, or None.
        terms: The divergences to add up. Their tensors are [n], float64.
        temperature: Divides the logits of both sides in the terms.
        labels: Token ids [n], int64, negative for none; None: no cross-entropy.
        cross_entropy_weight: Factor of the cross-entropy, at temperature 1.
        scale: Factor [n], float32 (float64 beside float64 logits), of each token's gradient, not of its value; None: 1.
        values: Out [n], float32 or float64: Σ_terms weight·D + cross_entropy_weight·cross-entropy; +inf where infinite.
        divergences: Out [n]: the first part of ``values`` alone; None: not wanted.
        cross_entropies: Out [n]: the cross-entropy, unweighted, 0 without a label; None: not wanted.
        metrics: Out [7, n], rows as ``MEASURED``, at the temperature; the last two are of the term ``assistant`` and
            not written without one. None: not wanted.
        assistant: Number of the first term that has an assistant, or None.
        gradient: Out [N, ≥ V]: dL/dz at the student's rows, columns below V, in its own dtype; may be the student's own
            tensor. 0 where the student is masked; a term that is infinite adds 0. None: not wanted.
    """

    count: int
    vocab_size: int
    student: Tensor
    student_rows: Tensor | None
    teacher: Tensor | None
    teacher_rows: Tensor | None
    terms: tuple[Term, ...]
    temperature: float
    labels: Tensor | None
    cross_entropy_weight: float
    scale: Tensor | None
    values: Tensor
    divergences: Tensor | None
    cross_entropies: Tensor | None
    metrics: Tensor | None
    assistant: int | None
    gradient: Tensor | None


RowKernel = Callable[[Block], None]
"""Computes one block; raises nothing that depends on the numbers in it."""
