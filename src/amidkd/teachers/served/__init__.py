"""A teacher on another machine."""

__all__: list[str] = []
