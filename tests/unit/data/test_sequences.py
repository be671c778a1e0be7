"""Batches: what is supervised is shifted once, by lengths, never by ids."""

import pickle

import pytest
import torch

from amidkd.data import Collator, Example, ExampleDataset, Sequences, collate
from amidkd.errors import SettingError

PAD = 2  # also the last supervised token of the examples: EOS is the pad token
LONG = Example((1, 5, 6, 7, 2), (False, False, True, True, True), row=4)
SHORT = Example((1, 9, 2), (False, True, True), row=8, origin="teacher")


def test_shift_by_hand() -> None:
    batch = collate([LONG, SHORT], pad_id=PAD)
    assert batch.tokens_BT.tolist() == [[1, 5, 6, 7, 2], [1, 9, 2, 2, 2]]
    assert batch.attention_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.predicts_BT().tolist() == [[False, True, True, True, False], [True, True, False, False, False]]
    assert batch.labels_N().tolist() == [6, 7, 2, 9, 2]
    assert batch.token_count() == 5 == LONG.token_count() + SHORT.token_count()
    assert batch.rows_B.tolist() == [4, 8]
    assert batch.origin_B.tolist() == [0, 1]


def test_labels_are_the_tokens_after_the_predicting_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    examples = []
    for row in range(20):
        length = int(torch.randint(2, 12, (1,), generator=generator))
        tokens = torch.randint(0, 50, (length,), generator=generator).tolist()
        marks = [False, *(torch.rand(length - 1, generator=generator) < 0.5).tolist()]
        examples.append(Example(tuple(tokens), tuple(marks), row))
    batch = collate(examples, pad_id=PAD, multiple_of=8)
    by_hand = [e.tokens[t] for e in examples for t in range(1, len(e.tokens)) if e.targets[t]]
    after = batch.tokens_BT.roll(-1, dims=1)[batch.predicts_BT()]
    assert batch.labels_N().tolist() == by_hand == after.tolist()


def test_padding_changes_nothing_supervised() -> None:
    tight, wide = collate([SHORT], pad_id=PAD), collate([SHORT], pad_id=PAD, multiple_of=16)
    assert wide.tokens_BT.shape == (1, 16)
    assert wide.labels_N().tolist() == tight.labels_N().tolist()
    assert int(wide.attention_BT.sum()) == 3
    assert not wide.predicts_BT()[:, 2:].any()


def test_a_first_token_marked_in_a_batch_is_not_counted() -> None:
    batch = collate([LONG], pad_id=PAD)
    marked = Sequences.from_batch({**batch.as_batch(), "targets": torch.ones_like(batch.targets_BT)})
    assert marked.token_count() == 4 == len(marked.labels_N()) == int(marked.predicts_BT().sum())


def test_batch_of_tensors_and_back() -> None:
    batch = collate([LONG, SHORT], pad_id=PAD)
    assert set(batch.as_batch()) == {"input_ids", "attention_mask", "targets", "rows", "origin"}
    again = Sequences.from_batch(batch.as_batch()).to("cpu")
    for name, tensor in batch.as_batch().items():
        assert torch.equal(tensor, again.as_batch()[name])


def test_collator_pickles_and_gives_tensors() -> None:
    collator = pickle.loads(pickle.dumps(Collator(pad_id=PAD, multiple_of=4)))
    made = collator([LONG, SHORT])
    assert made["input_ids"].shape == (2, 8)
    assert made["targets"].dtype == torch.bool


def test_a_data_loader_takes_the_dataset() -> None:
    data = ExampleDataset([LONG, SHORT, LONG])
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=Collator(pad_id=PAD))
    assert [batch["rows"].tolist() for batch in loader] == [[4, 8], [4]]
    assert data.token_count() == 8


@pytest.mark.parametrize(
    ("tokens", "targets", "message"),
    [((), (), "at least one"), ((1, 2), (False,), "as many"), ((1, 2), (True, True), "nothing comes before")],
)
def test_an_impossible_example_is_refused(tokens, targets, message) -> None:
    with pytest.raises(ValueError, match=message):
        Example(tokens, targets, row=0)


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(SettingError, match="no row is left"):
        ExampleDataset([])
