"""A teacher for other machines: `amidkd serve` (extra ``serve``)."""

from amidkd.serving.run import serve

__all__ = ["serve"]
