"""A student cut out of its teacher: evenly spaced layers, with embeddings, norms and head."""

import copy
from typing import Any

import torch
from torch import nn

from amidkd.errors import SettingError

__all__ = ["depth_pruned", "kept_layers"]


def kept_layers(layers: int, of: int) -> list[int]:
    """Which of ``of`` layers to keep: evenly spaced, with the first and the last (one alone: the first).

    Example:
        >>> kept_layers(4, 12)
        [0, 4, 7, 11]

    Raises:
        SettingError: More are wanted than there are.
    """
    if not 1 <= layers <= of:
        raise SettingError(f"student.layers: {layers}, but the teacher has {of} layers; give 1 to {of}")
    if layers == 1:
        return [0]
    gaps = layers - 1
    return [(2 * index * (of - 1) + gaps) // (2 * gaps) for index in range(layers)]


def depth_pruned(teacher: Any, layers: int, *, dtype: str = "auto") -> Any:
    """Copy a model with only some of its layers.

    Args:
        teacher: A transformers causal model in plain weights: not quantised, adapters merged.
        layers: How many layers to keep.
        dtype: Type of the copy's weights; ``auto`` is the teacher's.

    Returns:
        A model of the teacher's class that shares no memory with it.

    Raises:
        SettingError: Too many layers; a teacher whose weights cannot be copied layer by layer.
    """
    if hasattr(teacher, "peft_config"):
        raise SettingError("student.kind: depth_pruned needs merged weights; set teacher.merge_adapter: true")
    if getattr(teacher, "is_quantized", False):
        raise SettingError("student.kind: depth_pruned cannot copy quantised weights; leave teacher.quantization out")
    config = copy.deepcopy(teacher.config)
    total = config.num_hidden_layers
    kept = kept_layers(layers, total)
    path = _layer_list(teacher, total)
    _shorten(config, total, kept)
    try:
        student = type(teacher)(config)
        student.load_state_dict(_kept_weights(teacher, path, kept))
    except (RuntimeError, ValueError, IndexError) as error:
        raise SettingError(
            f"student.kind: depth_pruned does not fit {type(teacher).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(teacher.dtype if dtype == "auto" else getattr(torch, dtype))


def _layer_list(model: nn.Module, total: int) -> str:
    """Path of the one list that holds the model's layers (``model.layers``, ``transformer.h``, …)."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total and any(True for _ in module.parameters())
    ]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        raise SettingError(
            f"student.kind: depth_pruned finds {len(outer)} lists of {total} layers in {type(model).__name__} "
            f"({', '.join(outer) or 'none'}); it needs one"
        )
    return outer[0]


def _shorten(config: Any, total: int, kept: list[int]) -> None:
    """Set the number of layers, and cut every list with one entry a layer (``layer_types``, …) likewise."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total and not name.startswith("_"):
            setattr(config, name, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def _kept_weights(teacher: nn.Module, path: str, kept: list[int]) -> dict[str, torch.Tensor]:
    place = {str(old): str(new) for new, old in enumerate(kept)}
    weights = {}
    for name, tensor in teacher.state_dict().items():
        if name.startswith(f"{path}."):
            index, _, rest = name[len(path) + 1 :].partition(".")
            if index not in place:
                continue
            name = f"{path}.{place[index]}.{rest}"
        weights[name] = tensor
    return weights
