"""Who writes text: the seam, and the engines behind it."""

from amidkd.generation.base import GenerationFailed, Generator, Prompts

__all__ = ["GenerationFailed", "Generator", "Prompts"]
