"""Follow a run in progress, in a browser or in the terminal (``amidkd watch``)."""

from amidkd.watch.run import watch

__all__ = ["watch"]
