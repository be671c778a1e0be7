"""Plain text in windows: every token is supervised exactly once."""

import pytest

from amidkd.data import Row, corpus_windows, load_rows
from amidkd.errors import SettingError

TEXTS = ["once upon a time", "x", "", "there was a model that learnt"]


def rows():
    return [Row(index=i, where=f"line {i + 1}", text=text) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("length", [2, 3, 7, 16, 1000])
def test_windows_supervise_each_token_once(characters, length) -> None:
    stream = [t for text in TEXTS for t in [*characters(text).input_ids, characters.eos_token_id]]
    windows = corpus_windows(rows(), characters, max_length=length)
    said = [t for w in windows for t, mark in zip(w.tokens, w.targets, strict=True) if mark]
    assert said == stream[1:]
    assert all(len(window.tokens) == length for window in windows[:-1])
    assert not any(window.targets[0] for window in windows)


def test_a_window_names_the_row_it_begins_in(characters) -> None:
    windows = corpus_windows(rows(), characters, max_length=9)
    assert windows[0].row == 0
    assert windows[-1].row == 3


def test_limit_stops_early_and_gives_the_same_windows(characters) -> None:
    every = corpus_windows(rows(), characters, max_length=5)
    assert corpus_windows(rows(), characters, max_length=5, limit=4) == every[:4]
    assert corpus_windows(rows(), characters, max_length=5, limit=10_000) == every


def test_rows_without_text_are_refused(characters) -> None:
    with pytest.raises(SettingError, match="line 1: rows of plain text need a `text` column"):
        corpus_windows([Row(index=0, where="line 1", prompt="a", completion="b")], characters, max_length=8)


def test_real_stories(shared) -> None:
    from amidkd.models import load_tokenizer

    tokenizer = load_tokenizer(shared / "models" / "stories260K-hf")
    stories = load_rows(shared / "data" / "tinystories_dev.jsonl", max_rows=20)
    windows = corpus_windows(stories, tokenizer, max_length=128)
    ids = [t for story in stories for t in [*tokenizer(story.text).input_ids, tokenizer.eos_token_id]]
    assert sum(sum(window.targets) for window in windows) == len(ids) - 1
    assert list(windows[0].tokens) == ids[:128]
