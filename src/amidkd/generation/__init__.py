"""Who writes text: the seam, and the engines behind it."""

from amidkd.generation.base import GenerationError, Generator, Prompts
from amidkd.generation.make import make_generator

__all__ = ["GenerationError", "Generator", "Prompts", "make_generator"]
