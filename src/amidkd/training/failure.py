"""What to say about a loss that is not finite, and about a start where nothing can be learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from amidkd.data import Sequences
from amidkd.maths import Objective
from amidkd.maths.objective import AnyObjective
from amidkd.signals import Hidden, Signal, TopK

__all__ = ["STUCK", "Pass", "describe_failure", "describe_stuck", "gradient_is_finite", "likely_cause"]

STUCK = 0.05
"""Mean of Σ_v p(v) ω(v) below which a student that learns through its assistant alone hardly moves.

From random weights on the pronunciation task it is 0.012 at α = −3, where no word was learnt, and 0.11 at α = −1, where
a third was; after fine-tuning it is above 0.77 at any α. What the teacher finds unlikely too keeps it from 0.
"""

_SHOWN = 16


@dataclass(frozen=True)
class Pass:
    """One forward pass of an optimizer step, kept until the step is known to be sound.

    Args:
        loss: Its part of the loss, scalar.
        sequences: What it was made of.
    """

    loss: Tensor
    sequences: Sequences


def gradient_is_finite(model: nn.Module) -> Tensor:
    """Whether every number of a model's gradient is finite, as a tensor, so that nothing waits on the device."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.isfinite(nn.utils.get_total_norm(gradients)) if gradients else torch.tensor(True)


def likely_cause(
    *, student: Signal, teacher: Signal | None, objective: AnyObjective | None, loss: float, sound_weights: bool
) -> str:
    """Why a loss or its gradient is not finite, from the signals of the pass in question.

    Args:
        student: What the student says.
        teacher: What the teacher says, or None.
        objective: What is minimised, or None for cross-entropy alone.
        loss: The pass's loss.
        sound_weights: Whether the student's weights are finite.
    """
    if not sound_weights:
        return (
            "the student's weights are not finite: an earlier step overflowed. Lower training.learning_rate, or train "
            "in float32 or bfloat16"
        )
    if teacher is not None and not _finite(teacher):
        return (
            "the teacher's hidden states are not finite: its type overflows. Set teacher.dtype to float32 or bfloat16"
        )
    if not _finite(student):
        return (
            "the student's hidden states are not finite: its activations overflow. Lower training.learning_rate, or "
            "train in float32 or bfloat16 instead of float16"
        )
    if loss == float("inf"):
        return _infinite(objective)
    if loss == loss:
        return "the gradient overflows while the loss is finite. Lower training.learning_rate, or train in float32"
    return "an overflow between hidden states and loss. Lower training.learning_rate, or train in float32"


def describe_failure(
    *, step: int, rows: Sequence[int], places: Sequence[str] | None, cause: str, checkpoint: Path | None
) -> str:
    """One message for the user.

    Args:
        step: The optimizer step that would have been made, from 1.
        rows: ``Row.index`` of the rows concerned.
        places: File and line of each row, where they are known.
        cause: See :func:`likely_cause`.
        checkpoint: The last good checkpoint, or None.
    """
    shown = sorted(set(rows))[:_SHOWN]
    names = ", ".join(str(row) if places is None else f"{row} ({places[row]})" for row in shown)
    more = f" and {len(set(rows)) - _SHOWN} more" if len(set(rows)) > _SHOWN else ""
    saved = f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint had been written yet."
    return (
        f"the loss or its gradient is not finite at step {step}; the step was not made.\n"
        f"Rows of the batch: {names}{more}.\nLikely cause: {cause}.\n{saved}"
    )


def describe_stuck(responsibility: float) -> str:
    """What to say where a student starts that learns through its assistant alone, and ω lets nothing through.

    Args:
        responsibility: Mean of Σ_v p(v) ω(v) over the first step's tokens.
    """
    return (
        f"at the start the mean ω over the teacher's mass is {responsibility:.1e}: the student learns through the "
        "assistant alone, in proportion to ω, so it will learn next to nothing. At λ = 0.1 a token that the teacher "
        "finds 100 times likelier than the student has ω = 9e-6 at α = −5, 9e-4 at −3, 0.08 at −1, 0.47 at 0 and 0.9 "
        "at 1. Set student.warm_start: true (fine-tuning first), or let objective.alpha fall from 1: "
        "{kind: linear, start: 1, end: ...}"
    )


def _finite(signal: Signal) -> bool:
    """Whether the states are finite. Logits and top-k may rightly hold −inf, but no NaN and no +inf."""
    if isinstance(signal, Hidden):
        return bool(torch.isfinite(signal.states).all())
    values = signal.log_probs if isinstance(signal, TopK) else signal.logits
    return not bool((torch.isnan(values) | (values == torch.inf)).any())


def _infinite(objective: AnyObjective | None) -> str:
    if objective is None:
        return "a label to which the student gives probability 0: its logits are masked there"
    terms = [objective] if isinstance(objective, Objective) else [term for _, term in objective.terms]
    pairs = ", ".join(dict.fromkeys(term.between for term in terms))
    assisted = [term for term in terms if "assistant" in term.between]
    if any(bool((torch.as_tensor(term.alpha) >= 1).any()) for term in assisted):
        return (
            "with α ≥ 1 the assistant lives where teacher and student both give probability, and at some token they "
            "share none, or D is infinite outside; take α < 1, or mask the same ids on both sides"
        )
    return (
        f"{pairs} is infinite where one side gives probability to an id that the other masks (−inf logits); mask the "
        "same ids on both sides, or compare with an assistant at α < 1"
    )
