"""The loss of N tokens and its gradient, from logits or hidden states: one function, several backends."""

from amidkd.kernels.loss import LossOutput, available, check_backend, describe, distillation_loss

__all__ = ["LossOutput", "available", "check_backend", "describe", "distillation_loss"]
