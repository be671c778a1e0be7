"""A small seeded sample of a large grid, in which every two settings meet at least once."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["covering", "grid"]


def grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the axes' values."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def covering(axes: Mapping[str, Sequence[Any]], *, seed: int = 0, tries: int = 40) -> list[dict[str, Any]]:
    """Rows in which every pair of values of every two axes occurs, chosen greedily.

    Each row starts from a pair not yet met and keeps, of some random completions, the one that meets most new pairs.

    Args:
        axes: Values by name.
        seed: Of the random completions.
        tries: How many completions are compared for each row.
    """
    random_ = random.Random(seed)
    names = list(axes)
    sizes = [len(axes[name]) for name in names]
    pairs = itertools.combinations(range(len(names)), 2)
    unmet = {(i, a, j, b) for i, j in pairs for a in range(sizes[i]) for b in range(sizes[j])}
    rows = []
    while unmet:
        i, a, j, b = min(unmet)

        def complete() -> list[int]:
            row = [random_.randrange(size) for size in sizes]
            row[i], row[j] = a, b  # noqa: B023
            return row

        def met(row: list[int]) -> set[tuple[int, int, int, int]]:
            return {(m, row[m], n, row[n]) for m, n in itertools.combinations(range(len(row)), 2)} & unmet  # noqa: B023

        best = max((complete() for _ in range(tries)), key=lambda row: len(met(row)))
        unmet -= met(best)
        rows.append({name: axes[name][k] for name, k in zip(names, best, strict=True)})
    return rows
