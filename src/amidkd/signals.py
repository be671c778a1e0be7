"""What a student or a teacher says about N next tokens.

Three forms, from which every loss backend starts. Rows are tokens; the caller has already chosen the
supervised ones and shifted them (row n predicts token n+1 of its sequence).
"""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Hidden", "Logits", "Signal", "TopK"]


@dataclass(frozen=True)
class Logits:
    """Full logits.

    Args:
        logits: Unnormalised log-probabilities [N, V], natural logarithm; −inf marks a token that cannot occur.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        if self.logits.ndim != 2:
            raise ValueError(f"Logits.logits must have shape [N, V]; got {tuple(self.logits.shape)}")


@dataclass(frozen=True)
class Hidden:
    """Last hidden states and the head that turns them into logits, so that logits need never exist whole.

    logit = softcap · tanh(scale · (W h + b) / softcap), or scale · (W h + b) without a softcap.

    Args:
        states: Hidden states [N, H].
        weight: Head [V, H]; tied to the embeddings or not.
        bias: Head bias [V], or None.
        scale: Factor on the logits (Cohere's ``logit_scale``; Granite's 1/``logits_scaling``).
        softcap: Soft cap of the logits (Gemma 2's ``final_logit_softcapping``), or None.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or self.weight.ndim != 2 or self.states.shape[1] != self.weight.shape[1]:
            raise ValueError(
                "Hidden needs states [N, H] and weight [V, H] with one H; got "
                f"{tuple(self.states.shape)} and {tuple(self.weight.shape)}"
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"Hidden.bias must have shape [V] = [{self.weight.shape[0]}]; got {tuple(self.bias.shape)}"
            )
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"Hidden.softcap must be above 0; got {self.softcap}")


@dataclass(frozen=True)
class TopK:
    """A truncated teacher: its K likeliest tokens, and the mass of the rest.

    Args:
        ids: Token ids [N, K], distinct within a row.
        log_probs: Their log-probabilities [N, K] at temperature 1.
        log_tail: Logarithm of the remaining mass [N]; None: log(1 − Σ exp log_probs).
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.log_probs.shape:
            raise ValueError(
                f"TopK needs ids and log_probs of one shape [N, K]; got {tuple(self.ids.shape)} "
                f"and {tuple(self.log_probs.shape)}"
            )
        if self.log_tail is not None and self.log_tail.shape != self.ids.shape[:1]:
            raise ValueError(
                f"TopK.log_tail must have shape [N] = [{self.ids.shape[0]}]; got {tuple(self.log_tail.shape)}"
            )


Signal = Logits | Hidden | TopK
