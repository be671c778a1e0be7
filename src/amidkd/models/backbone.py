"""Last hidden states of any causal model, without its logits.

A causal model ends in a head: logits = post(W h + b), where post is a scale, a soft cap, or nothing. The head's
``forward`` is replaced for the length of a call by one that keeps h and returns a sliver, so the model's own
``forward`` runs (with DDP, autocast, adapters and gradient checkpointing around it) and [B, T, V] never exists.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from amidkd.errors import SettingError, SettingWarning
from amidkd.models.facts import forward_parameters, text_config
from amidkd.models.modes import evaluating
from amidkd.signals import Hidden, Logits

__all__ = ["Backbone"]

# Largest error of the proof, relative to the largest logit: a few roundings of the type, far below any wrong formula.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


class Backbone:
    """A causal model as a map from a batch to the signal at its supervised positions.

    At construction a probe batch proves that softcap · tanh(scale · (W h + b) / softcap) is what the model
    computes. Where that cannot be proved, the signal is :class:`~amidkd.signals.Logits`, and a warning says why.

    Args:
        model: A transformers causal model, or a peft model around one; not wrapped for distribution.

    Attributes:
        form: ``hidden`` or ``logits``: what a call returns.
        reason: Why the form is ``logits``; empty otherwise.
        width: Rows of the head, V.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.width = 0
        self._scale: float = 1.0
        self._softcap: float | None = None
        self._takes_positions = "position_ids" in forward_parameters(model)
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        self.reason = _unusable(head)
        self._prove(head)
        if self.reason:
            warn(
                f"{type(model).__name__}: full logits are computed, since {self.reason}; this takes more memory",
                SettingWarning,
                stacklevel=2,
            )

    @property
    def form(self) -> str:
        """``hidden`` or ``logits``."""
        return "logits" if self.reason else "hidden"

    def __call__(
        self,
        tokens_BT: Tensor,
        attention_BT: Tensor,
        predicts_BT: Tensor,
        *,
        through: Callable[..., Any] | None = None,
    ) -> Hidden | Logits:
        """The signal at the chosen positions, N of them, in row-major order.

        Args:
            tokens_BT: Token ids [B, T]; what stands where ``attention_BT`` is 0 does not matter.
            attention_BT: 1 for a token, 0 for padding [B, T].
            predicts_BT: True at position t where the token at t + 1 is supervised [B, T].
            through: What to call in the model's place, such as the same model wrapped for distribution.

        Returns:
            ``Hidden`` with N states and the live head (gradients reach both), or ``Logits`` [N, V].
        """
        call = self.model if through is None else through
        # A student's pad id may lie beyond a teacher's embedding.
        inputs = self._inputs(tokens_BT.masked_fill(attention_BT == 0, 0), attention_BT)
        if self.reason:
            return Logits(call(**inputs).logits[predicts_BT])
        head = self.model.get_output_embeddings()
        with _captured(head) as captured:
            call(**inputs)
        states_NH = captured[-1][predicts_BT].to(head.weight.device)
        return Hidden(states_NH, head.weight, bias=head.bias, scale=self._scale, softcap=self._softcap)

    def _inputs(self, tokens_BT: Tensor, attention_BT: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": tokens_BT, "attention_mask": attention_BT, "use_cache": False}
        if self._takes_positions and bool((attention_BT[:, 0] == 0).any()):
            inputs["position_ids"] = (attention_BT.long().cumsum(dim=1) - 1).clamp(min=0)
        return inputs

    @torch.no_grad()
    def _prove(self, head: Any) -> None:
        """Find scale and soft cap, and check them; otherwise set ``reason``."""
        tokens = _probe_tokens(self.model)
        attention = torch.ones_like(tokens)
        with evaluating(self.model):
            logits = self.model(**self._inputs(tokens, attention)).logits
            self.width = int(logits.shape[-1])
            if self.reason:
                return
            for scale, softcap in _candidates(self.model):
                self._scale, self._softcap = scale, softcap
                self.reason = self._disproof(head, tokens, attention, logits)
                if not self.reason:
                    return

    def _disproof(self, head: nn.Linear, tokens: Tensor, attention: Tensor, logits: Tensor) -> str:
        try:
            with _captured(head) as captured:
                self.model(**self._inputs(tokens, attention))
            # What follows the head must be scale and soft cap alone, at any size of the logits; real
            # logits of an untrained model are too small to show a soft cap.
            ramp = torch.linspace(-80.0, 80.0, logits.numel(), device=logits.device).view_as(logits)
            with _replaced(head, lambda hidden: ramp):
                driven = self.model(**self._inputs(tokens, attention)).logits
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            return f"the model needs its full logits ({' '.join(str(error).split())[:120]})"
        if len(captured) != 1 or captured[0].shape[:-1] != tokens.shape:
            return "its output head is not run once on all hidden states"
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        bias = None if head.bias is None else head.bias.to(wide)
        hidden = captured[0].to(head.weight.device, wide)
        raw = nn.functional.linear(hidden, head.weight.to(wide), bias).to(logits.device)
        for given, found, dtype in ((raw, logits, head.weight.dtype), (ramp, driven, driven.dtype)):
            wanted, tolerance = self._post(given), _TOLERANCE.get(dtype, 0.0)
            if not float((wanted - found.to(wanted.dtype)).abs().max()) <= tolerance * float(wanted.abs().max()):
                return "scale, soft cap or masking of its logits is of a kind that is not known here"
        return ""

    def _post(self, logits: Tensor) -> Tensor:
        scaled = logits * self._scale
        return scaled if self._softcap is None else self._softcap * torch.tanh(scaled / self._softcap)


def _unusable(head: Any) -> str:
    """Why a head's weight does not say all that the head does; empty where it does."""
    if head is None:
        return "it names no output head"
    if not isinstance(head, nn.Linear):
        return f"its output head is a {type(head).__name__}, not a plain linear layer"
    if not head.weight.is_floating_point():
        return "its output head is quantised"
    if head.weight.is_meta:
        return "its output head is off-loaded"
    return ""


@contextmanager
def _replaced(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the head compute something else for a while."""
    own = head.__dict__.get("forward")
    head.forward = forward
    try:
        yield
    finally:
        if own is None:
            del head.__dict__["forward"]
        else:
            head.forward = own


@contextmanager
def _captured(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect the inputs of the head, which returns logits one token wide."""
    captured: list[Tensor] = []

    def sliver(hidden: Tensor) -> Tensor:
        captured.append(hidden)
        # Made from weight and bias, so that DDP, which follows the output's graph, sees the whole model in use.
        bias = None if head.bias is None else head.bias[:1].to(hidden)
        return nn.functional.linear(hidden[..., :1], head.weight[:1, :1].to(hidden), bias)

    with _replaced(head, sliver):
        yield captured


def _candidates(model: Any) -> list[tuple[float, float | None]]:
    """Pairs of scale and soft cap that the configuration allows for, the likeliest first."""
    config = text_config(model)
    caps = [getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap")]
    softcap = next((float(cap) for cap in caps if cap), None)
    factors = [
        float(value)
        for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
        if isinstance(value := getattr(config, name, None), int | float) and value > 0
    ]
    # Granite divides by `logits_scaling`, HyperCLOVA multiplies by it; the probe tells which.
    scales = [scale for factor in factors for scale in (factor, 1.0 / factor)]
    return [(scale, softcap) for scale in dict.fromkeys([*scales, 1.0])]


def _probe_tokens(model: Any) -> Tensor:
    """A small batch of ids spread over the vocabulary, the same each time."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    if rows == 0:
        raise SettingError(f"{type(model).__name__} has an empty embedding; it cannot be probed")
    spread = (torch.arange(10) * 7919 + 3) % rows
    return spread.view(2, 5).to(next(model.parameters()).device)
