"""Which teachers take part in a step: each is left out at random, at least one stays.

Densely guided distillation (Son et al., "Densely Guided Knowledge Distillation using Multiple Teacher Assistants",
ICCV 2021) drops some of a student's teachers at each step, so that it does not lean on one of them.
"""

import random
from collections.abc import Sequence

__all__ = ["staying"]


def staying(members: Sequence[int], *, drop: float, seed: int, step: int) -> tuple[int, ...]:
    """The teachers of one step: a function of seed and step alone, so the same on all processes and after a resume.

    Args:
        members: Numbers of the teachers that count at all, at least one.
        drop: Probability in [0, 1) that each is left out. Where all would be, one of them stays.
        seed: Of the draw.
        step: How many steps were made.
    """
    if drop == 0:
        return tuple(members)
    draw = random.Random(f"{seed}|{step}|teachers")
    kept = tuple(member for member in members if draw.random() >= drop)
    return kept or (draw.choice(list(members)),)
