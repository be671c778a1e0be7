"""Try settings of a run and compare what comes out (``amidkd sweep``)."""

__all__: list[str] = []
