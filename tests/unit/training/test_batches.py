from collections import Counter

import pytest

from amidkd.data import Example
from amidkd.training.batches import CorpusRows, EpochBatches, Rows


@pytest.mark.parametrize(("count", "size", "world"), [(22, 2, 1), (22, 2, 3), (23, 4, 2), (5, 4, 4), (1, 2, 2)])
def test_each_row_comes_once_an_epoch_and_ranks_keep_step(count, size, world) -> None:
    ranks = [EpochBatches(count, batch_size=size, seed=3, rank=rank, world=world) for rank in range(world)]
    batches = [list(rank) for rank in ranks]
    assert len({len(found) for found in batches}) == 1 == len({len(rank) for rank in ranks})
    assert len(batches[0]) == len(ranks[0])
    places = [place for found in batches for batch in found for place in batch]
    assert sorted(place for place in places if place >= 0) == list(range(count))
    assert all(1 <= len(batch) <= size for found in batches for batch in found)


def test_ranks_together_have_the_rows_of_one_process() -> None:
    whole = list(EpochBatches(21, batch_size=4, seed=5))
    halves = [list(EpochBatches(21, batch_size=2, seed=5, rank=rank, world=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert batch == [place for part in parts for place in part if place >= 0]


def test_order_hangs_on_seed_and_epoch() -> None:
    batches = EpochBatches(30, batch_size=5, seed=1)
    first = list(batches)
    assert first == list(batches)
    batches.set_epoch(1)
    assert list(batches) != first
    assert list(EpochBatches(30, batch_size=5, seed=2)) != first


def test_a_rank_without_a_row_gets_one_that_teaches_nothing() -> None:
    example = Example((1, 2, 3), (False, True, True), 0)
    rows = Rows([example])
    assert rows[0] == example
    assert rows[~0].tokens == example.tokens
    assert rows[~0].token_count() == 0


@pytest.mark.parametrize(("parts", "world"), [(1, 1), (2, 1), (2, 2), (5, 3)])
def test_corpus_is_a_function_of_the_step(parts, world) -> None:
    def windows(step):
        ranks = [CorpusRows(7, per_step=4, seed=1, rank=rank, world=world) for rank in range(world)]
        found = [place for rank in ranks for part in range(parts) for place in rank.of(step, part, parts)]
        return sorted(place for place in found if place >= 0)

    alone = CorpusRows(7, per_step=4, seed=1)
    assert all(windows(step) == sorted(alone.of(step, 0, 1)) for step in range(9))
    # Seven steps of four are four passes over seven windows.
    seen = Counter(place for step in range(7) for place in alone.of(step, 0, 1))
    assert set(seen.values()) == {4}
    assert len(seen) == 7
