"""Large weights in the layout that the CPU's matrix product wants, for as long as they do not change.

A product of a few rows with a large matrix, as in each step of generation, spends about half its time on bringing the
matrix into that layout, again each time.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["packed_weights"]

# Below this many elements the call costs more than the layout saves.
_SMALLEST = 2**20
# The copies live as long as the generation; beyond this many bytes the matrices keep their own layout.
_MEMORY = 2**30


@contextmanager
def packed_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Let the large linear layers of a model read packed copies of their weights; afterwards they are as before.

    Nothing happens where there is no oneDNN, on another device than the CPU or in another dtype than float32.
    The weights must not change meanwhile, and no gradient flows.

    Args:
        model: Any model.
        rows: Rows of the products to expect.
    """
    layers: list[nn.Linear] = []
    left = _MEMORY
    for layer in filter(_suits, model.modules()) if _possible() else ():
        if layer.weight.nbytes <= left:
            left -= layer.weight.nbytes
            layers.append(layer)
    try:
        for layer in layers:
            vars(layer)["forward"] = _packed(layer, rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _possible() -> bool:
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return known and platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available()


def _suits(layer: nn.Module) -> TypeGuard[nn.Linear]:
    # A `forward` of the instance's own means that something else is already around it, such as offloading.
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= _SMALLEST


def _packed(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    # The layout for one row differs from that for all other numbers, and is slow for them.
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), max(rows, 2))
    plain = layer.forward

    def forward(input: Tensor) -> Tensor:
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return plain(input)
        return torch.ops.mkldnn._linear_pointwise(input, weight, layer.bias, "none", [], "")

    return forward
