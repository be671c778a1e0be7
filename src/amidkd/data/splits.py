"""Which rows a run learns from, and which it is measured on."""

import hashlib
import json
from collections.abc import Sequence

from amidkd.config import RunConfig
from amidkd.data.rows import Row, choose_labels, load_rows
from amidkd.errors import SettingError

__all__ = ["evaluation_rows", "training_rows"]


def training_rows(config: RunConfig) -> list[Row]:
    """The rows of ``data.train``, less those held out, with the labels that ``data.label_fraction`` leaves.

    Raises:
        SettingError: A file that cannot be used, or nothing left to learn from.
    """
    rows, _ = _split(config)
    return choose_labels(rows, fraction=config.data.label_fraction, seed=config.data.label_seed)


def evaluation_rows(config: RunConfig) -> list[Row]:
    """The rows that ``evaluation`` asks for: its own ``data``, else ``data.validation``, else those held out.

    Raises:
        SettingError: None of the three is named, or a file cannot be used.
    """
    data, evaluation = config.data, config.evaluation
    keep = () if evaluation.code is None else (evaluation.code.tests, evaluation.code.entry_point)
    if evaluation.data is not None:
        return load_rows(evaluation.data, split=evaluation.split, max_rows=evaluation.max_rows, keep=keep)
    if data.validation is not None:
        return load_rows(data.validation, split=data.validation_split, max_rows=evaluation.max_rows, keep=keep)
    if data.validation_rows is None:
        raise SettingError(
            "nothing to evaluate on: name a file in evaluation.data or data.validation, "
            "or hold rows out of the training file with data.validation_rows"
        )
    return _split(config)[1][: evaluation.max_rows]


def _split(config: RunConfig) -> tuple[list[Row], list[Row]]:
    data = config.data
    rows = load_rows(data.train, split=data.train_split, max_rows=data.max_rows)
    if data.validation_rows is None:
        return rows, []
    if data.validation_rows >= len(rows):
        raise SettingError(
            f"data.validation_rows: {data.validation_rows} of {len(rows)} rows leaves none to learn from; lower it"
        )
    held = set(_chosen(rows, data.validation_rows, data.label_seed))
    kept = [row for place, row in enumerate(rows) if place not in held]
    return kept, [row for place, row in enumerate(rows) if place in held]


def _chosen(rows: Sequence[Row], count: int, seed: int) -> list[int]:
    """Places of the rows held out: by a hash of seed and content, so that equal prompts fall on one side."""

    def rank(place: int) -> str:
        row = rows[place]
        content = json.dumps([row.prompt, row.text, row.messages], sort_keys=True)
        return hashlib.sha256(f"held out|{seed}|{content}".encode()).hexdigest()

    return sorted(range(len(rows)), key=rank)[:count]
