"""What a teacher with another tokenizer says of a batch."""

# Tensors carry their shape in their name.
# ruff: noqa: N815

from dataclasses import dataclass

from torch import Tensor

from amidkd.signals import Hidden, Logits

__all__ = ["Aligned"]


@dataclass(frozen=True)
class Aligned:
    """A teacher's distributions at its own tokens, and which spans of text both tokenizers cut alike.

    S spans, numbered in the order of the batch; a span has at least one token of the student's and one of the
    teacher's. ``teacher`` has a row for each of the R tokens that the teacher cuts the spans into.

    Args:
        teacher: What the teacher says before each of its tokens, R rows.
        tokens_R: These tokens, ids of the teacher's [R].
        span_R: The span of each, ascending [R].
        span_N: The span of each of the batch's supervised tokens, in the order of ``predicts_BT``; −1: of none [N].
        student_M: The shared tokens as ids of the student, ascending [M].
        teacher_M: The same tokens as ids of the teacher [M].
        teacher_vocab_size: Ids of the teacher from here on are padding.
        uld_weight: Weight of the rank-ordered distance between the tokens that are not shared.
    """

    teacher: Hidden | Logits
    tokens_R: Tensor
    span_R: Tensor
    span_N: Tensor
    student_M: Tensor
    teacher_M: Tensor
    teacher_vocab_size: int
    uld_weight: float
