"""The seam through which all text is written: who runs the model is one choice, who asks is another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from amidkd.errors import GenerationError

__all__ = ["GenerationError", "Generator", "Prompts"]


@dataclass(frozen=True)
class Prompts:
    """What to continue.

    Args:
        tokens: Ids of each prompt, at least one each.
        limits: Longest answer to each, EOS included, at least 1.
        streams: Names the random numbers of each answer: with one seed, equal streams draw equal numbers. Where the
            engine runs the model in this process, an answer depends on seed, stream, prompt and weights alone (beyond
            the rounding of the logits), not on the batch or the process that it is made in.
        seed: Seed of the sampling.
    """

    tokens: Sequence[Sequence[int]]
    limits: Sequence[int]
    streams: Sequence[int]
    seed: int

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.limits) == len(self.streams):
            raise ValueError(
                f"Prompts needs a limit and a stream for each prompt; got {len(self.tokens)} prompts, "
                f"{len(self.limits)} limits and {len(self.streams)} streams"
            )


@runtime_checkable
class Generator(Protocol):
    """Writes answers to prompts."""

    def __call__(self, prompts: Prompts, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
        """Ids of each answer, in the prompts' order; EOS is there where it came, and nothing after it.

        Args:
            prompts: What to continue.
            progress: Called now and then with the answers and the tokens made since the last call.

        Raises:
            SettingError: A prompt that the model's context has no room for.
            GenerationError: The engine is gone.
        """

    def update_weights(self, version: int) -> None:
        """Write with the model's weights as they are now. Every rank calls it, at the same steps.

        Args:
            version: Optimizer steps made; where it is the version held already, there is nothing to do.

        Raises:
            GenerationError: The engine is gone.
        """

    def close(self) -> None:
        """Let go of what the engine holds."""
