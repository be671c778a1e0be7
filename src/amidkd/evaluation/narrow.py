"""A model that speaks of the shared vocabulary alone, for whatever generates or scores with it from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amidkd.errors import SettingError
from amidkd.models.facts import base_of, text_config

__all__ = ["narrowed"]


@contextmanager
def narrowed(model: Any, vocab_size: int) -> Iterator[None]:
    """Cut a model's logits to the shared vocabulary for a while: its head's padded rows stay out of every softmax.

    Two models whose heads are padded to different widths have one width so, which assisted generation asks for.

    Args:
        model: A causal model.
        vocab_size: V; a head that is narrower stays as it is.

    Raises:
        SettingError: The model has no head that can be found.
    """
    head = base_of(model).get_output_embeddings()
    if head is None:
        raise SettingError(
            f"{type(base_of(model)).__name__} names no output head, so its padded tokens cannot be left out"
        )
    config = text_config(model)
    width = config.vocab_size
    handle = head.register_forward_hook(lambda _module, _inputs, logits: logits[..., :vocab_size])
    config.vocab_size = min(width, vocab_size)
    try:
        yield
    finally:
        config.vocab_size = width
        handle.remove()
