"""The loss of N tokens and its gradient, from logits or hidden states: one function, several backends."""

from amidkd.kernels.loss import LossOutput, distillation_loss

__all__ = ["LossOutput", "distillation_loss"]
