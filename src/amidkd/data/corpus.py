"""Plain text cut into windows, for a next-token loss beside distillation."""

from collections.abc import Iterator, Sequence
from typing import Any

from amidkd.data.encode import special_prefix
from amidkd.data.rows import Row
from amidkd.data.sequences import Example
from amidkd.errors import SettingError

__all__ = ["corpus_windows"]

_BATCH = 256


def corpus_windows(rows: Sequence[Row], tokenizer: Any, *, max_length: int, limit: int | None = None) -> list[Example]:
    """Join texts, each with its BOS (where the tokenizer has one) and EOS, and cut them into windows of one length.

    Windows overlap by one token, so each token but the very first is supervised exactly once.

    Args:
        rows: Rows with ``text``.
        tokenizer: A tokenizer of ``transformers``.
        max_length: Tokens of a window, at least 2; the last one may be shorter.
        limit: Make at most this many windows.

    Returns:
        Windows; ``row`` is that of the text in which a window begins.

    Raises:
        SettingError: A row without ``text``; a tokenizer without EOS; no window.
    """
    if tokenizer.eos_token_id is None:
        raise SettingError("data.corpus: the tokenizer has no EOS token to part texts by")
    if max_length < 2:
        raise SettingError(f"data.corpus.max_length must be at least 2; got {max_length}")
    windows: list[Example] = []
    tokens: list[int] = []
    owners: list[int] = []
    for row, ids in _encoded(rows, tokenizer):
        tokens += ids
        owners += [row.index] * len(ids)
        start = 0
        while len(tokens) - start >= max_length and (limit is None or len(windows) < limit):
            windows.append(_window(tokens[start : start + max_length], owners[start]))
            start += max_length - 1
        if limit is not None and len(windows) >= limit:
            return windows
        tokens, owners = tokens[start:], owners[start:]
    if len(tokens) > 1:
        windows.append(_window(tokens, owners[0]))
    if not windows:
        raise SettingError("data.corpus: there is no text in it")
    return windows


def _encoded(rows: Sequence[Row], tokenizer: Any) -> Iterator[tuple[Row, list[int]]]:
    prefix = special_prefix(tokenizer)
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        texts = [_text(row) for row in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for row, ids in zip(batch, encoded["input_ids"], strict=True):
            yield row, [*prefix, *ids, int(tokenizer.eos_token_id)]


def _text(row: Row) -> str:
    if row.text is None:
        raise SettingError(f"data.corpus: {row.where}: rows of plain text need a `text` column")
    return row.text


def _window(tokens: list[int], row: int) -> Example:
    return Example(tuple(tokens), (False, *([True] * (len(tokens) - 1))), row, "data")
