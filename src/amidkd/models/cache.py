"""A key-value cache with room to grow: transformers' own copies everything it holds at each token."""

from typing import Any

from torch import Tensor

__all__ = ["growing_cache"]

_ROOM = 64


def growing_cache(model: Any) -> Any:
    """A ``DynamicCache`` for a model, whose full-attention layers append in place.

    Layers of another kind (sliding windows, states) keep transformers' implementation.

    Args:
        model: A causal model that takes ``past_key_values``.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.update = _Appending(layer)
    return cache


class _Appending:
    """The ``update`` of one cache layer. Put in its place on the instance, since the layer's class is looked at."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._first = layer.update
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def __call__(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, width]; give all that are held."""
        layer = self._layer
        if not layer.is_initialized or layer.keys.numel() == 0:
            self._first(key_states, value_states, *args, **kwargs)
        else:
            self._keys = _appended(self._keys, layer.keys, key_states)
            self._values = _appended(self._values, layer.values, value_states)
            length = layer.keys.shape[-2] + key_states.shape[-2]
            layer.keys, layer.values = self._keys[..., :length, :], self._values[..., :length, :]
        return layer.keys, layer.values


def _appended(room: Tensor | None, held: Tensor, new: Tensor) -> Tensor:
    """The buffer behind ``held``, or a larger one, with ``new`` written after what is held."""
    start = held.shape[-2]
    end = start + new.shape[-2]
    # A selection of rows leaves the layer with a copy of its own.
    if room is None or room.data_ptr() != held.data_ptr() or room.shape[-2] < end:
        room = held.new_empty(*held.shape[:-2], end + max(_ROOM, start // 2), held.shape[-1])
        room[..., :start, :] = held
    room[..., start:end, :] = new
    return room
