"""What a model says of itself, whatever is wrapped around it."""

import inspect
from typing import Any

__all__ = ["base_of", "forward_parameters", "text_config"]


def base_of(model: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def forward_parameters(model: Any) -> frozenset[str]:
    """Names that the model's ``forward`` takes; of its class, since accelerate replaces the instance's."""
    return frozenset(inspect.signature(type(base_of(model)).forward).parameters)


def text_config(model: Any) -> Any:
    """The configuration of the language model, which is a part of it where a model also sees or hears."""
    config = base_of(model).config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
