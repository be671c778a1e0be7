"""Follow a run in progress, in a browser or in the terminal (``amidkd watch``)."""

__all__: list[str] = []
