"""Who writes text: the seam, and the engines behind it."""

from amidkd.generation.base import GenerationError, Generator, Prompts

__all__ = ["GenerationError", "Generator", "Prompts"]
