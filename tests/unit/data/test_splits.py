"""Rows held out of the training file are never learnt from."""

import json

import pytest

from amidkd.config import parse
from amidkd.data import evaluation_rows, training_rows
from amidkd.errors import SettingError


def config(folder, **data):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) + "\n" for i in range(50)))
    other = folder / "other.jsonl"
    other.write_text(json.dumps({"prompt": "q", "completion": "d"}) + "\n")
    return parse({"student": "s", "teacher": "t", "data": {"train": str(path), **data}, "output": "o"})


def test_held_out_rows_are_disjoint_and_stable(tmp_path) -> None:
    held = config(tmp_path, validation_rows=12)
    learnt, measured = training_rows(held), evaluation_rows(held)
    assert len(learnt) == 38
    assert len(measured) == 12
    assert not {row.prompt for row in learnt} & {row.prompt for row in measured}
    assert [row.index for row in evaluation_rows(held)] == [row.index for row in measured]


def test_held_out_rows_keep_their_labels(tmp_path) -> None:
    held = config(tmp_path, validation_rows=12, label_fraction=0.0)
    assert not any(row.labelled for row in training_rows(held))
    assert all(row.labelled for row in evaluation_rows(held))


def test_a_named_file_is_used_whole(tmp_path) -> None:
    named = config(tmp_path, validation=str(tmp_path / "other.jsonl"))
    assert len(training_rows(named)) == 50
    assert [row.prompt for row in evaluation_rows(named)] == ["q"]


def test_nothing_to_evaluate_on_says_what_to_set(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"evaluation\.data or data\.validation.*data\.validation_rows"):
        evaluation_rows(config(tmp_path))


def test_holding_out_everything_is_refused(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"data\.validation_rows: 50 of 50 rows"):
        training_rows(config(tmp_path, validation_rows=50))


def test_both_ways_of_naming_validation_rows_is_refused(tmp_path) -> None:
    with pytest.raises(SettingError, match="no effect beside `validation`"):
        config(tmp_path, validation="x.jsonl", validation_rows=3)
