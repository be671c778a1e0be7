"""Evaluation mode for a while, and back exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in evaluation mode; afterwards each has its own flag again.

    In evaluation mode there is no dropout, and transformers neither recomputes activations nor switches
    the key-value cache off.
    """
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True
