"""Which rows make which batch: a function of seed and step alone, each row once an epoch on any number of ranks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from amidkd.data import Example, Sequences, idle

__all__ = ["CorpusBatches", "CorpusRows", "EpochBatches", "Rows"]


class Rows(Dataset[Example]):
    """Examples by place; place −1−i is example i with nothing supervised, for a rank that is left without a row.

    Args:
        examples: At least one.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> Example:
        if place >= 0:
            return self.examples[place]
        return idle(self.examples[~place])


class EpochBatches(Sampler[list[int]]):
    """Batches of one rank: a permutation for each epoch, cut into global batches, each shared out among the ranks.

    The order hangs on seed and epoch alone, so nothing of it needs saving. The last global batch may be short; no row
    comes twice to fill it.

    Args:
        count: Rows.
        batch_size: Rows in a batch of one rank.
        seed: Seed of the order.
        rank: Which process this is.
        world: How many there are.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._count, self._seed, self._rank, self._world = count, seed, rank, world
        self._global = batch_size * world
        self.epoch = 0
        self._held: tuple[int, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self._count // self._global)

    def __iter__(self) -> Iterator[list[int]]:
        order = _order(self._count, self._seed, self.epoch)
        for start in range(0, self._count, self._global):
            yield _share(order[start : start + self._global], self._rank, self._world)

    def steps_per_epoch(self, passes: int) -> int:
        """Optimizer steps of an epoch.

        Args:
            passes: Batches in an optimizer step; the last one of an epoch may have fewer.
        """
        return -(-len(self) // passes)

    def of_step(self, step: int, passes: int) -> list[list[int]]:
        """The batches of any optimizer step.

        Args:
            step: Optimizer steps made before it.
            passes: Batches in an optimizer step.
        """
        epoch, place = divmod(step, self.steps_per_epoch(passes))
        if self._held is None or self._held[0] != epoch:
            self._held = (epoch, _order(self._count, self._seed, epoch))
        order = self._held[1]
        starts = range(place * passes * self._global, self._count, self._global)[:passes]
        return [_share(order[start : start + self._global], self._rank, self._world) for start in starts]


class CorpusRows:
    """Which windows of plain text go with which forward pass: a function of the step alone.

    Args:
        count: Windows.
        per_step: Windows of an optimizer step, over all its forward passes and ranks.
        seed: Seed of the order.
        rank: Which process this is.
        world: How many there are.
    """

    def __init__(self, count: int, *, per_step: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._count, self._per_step, self._seed = count, per_step, seed
        self._rank, self._world = rank, world
        self._orders: dict[int, np.ndarray] = {}

    def of(self, step: int, part: int, parts: int) -> list[int]:
        """Places of the windows of one forward pass; −1−i is window i with nothing supervised, where none is left.

        Args:
            step: Optimizer steps already made.
            part: Which forward pass of the step.
            parts: How many the step has.
        """
        first = step * self._per_step
        places = np.array([self._at(first + place) for place in range(self._per_step)])
        return _share(places, part * self._world + self._rank, parts * self._world)

    def _at(self, position: int) -> int:
        turn, place = divmod(position, self._count)
        if turn not in self._orders:
            # A step spans few passes over the corpus; older orders are not needed again.
            self._orders = {kept: order for kept, order in self._orders.items() if kept == turn - 1}
            self._orders[turn] = _order(self._count, self._seed, turn)
        return int(self._orders[turn][place])


class CorpusBatches:
    """Plain text beside the rows, as batches.

    Args:
        windows: Windows of text.
        rows: Which of them go with which forward pass.
        collator: Makes the named tensors of a batch.
    """

    def __init__(
        self, windows: Sequence[Example], rows: CorpusRows, collator: Callable[[list[Example]], dict[str, Any]]
    ) -> None:
        self._windows, self._rows, self._collator = Rows(windows), rows, collator

    def of(self, step: int, parts: int) -> list[Sequences]:
        """The batch of each forward pass of a step, on the CPU.

        Args:
            step: Optimizer steps already made.
            parts: Forward passes of the step.
        """
        places = [self._rows.of(step, part, parts) for part in range(parts)]
        return [Sequences.from_batch(self._collator([self._windows[p] for p in each])) for each in places]


def _order(count: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng((seed, turn)).permutation(count)


def _share(places: np.ndarray, part: int, parts: int) -> list[int]:
    """One of ``parts`` nearly equal runs of the places; where it is empty, the first place with nothing supervised."""
    found = [int(place) for place in np.array_split(places, parts)[part]]
    return found or [~int(places[0])]
