"""``scores.npz``: what every metric gave for every prompt, so that two runs can be compared prompt by prompt."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from amidkd.data import Row
from amidkd.errors import SettingError
from amidkd.evaluation.formulas import Formula
from amidkd.evaluation.statistics import Scores
from amidkd.record import write_atomic

if TYPE_CHECKING:
    from amidkd.evaluation.suite import ModelResult

__all__ = ["StoredScores", "choose", "prompt_hash", "read_scores", "write_scores"]

_VERSION = 1


@dataclass(frozen=True)
class StoredScores:
    """Scores of one set of rows, all metrics over the same rows in the same order.

    Args:
        prompts: A hash of each row's prompt and references; the same row in another file has the same one.
        student: Scores of the student by metric; a row that has no part in a metric has a count of 0.
        teacher: Those of the teacher; empty where there was none.
    """

    prompts: tuple[str, ...]
    student: dict[str, Scores]
    teacher: dict[str, Scores]


def prompt_hash(row: Row, references: Sequence[str]) -> str:
    """What two rows share when they ask the same and have the same right answers.

    Args:
        row: A row.
        references: Right answers to it.
    """
    content = json.dumps([row.prompt, row.messages, row.text, list(references)], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_scores(path: Path, results: Mapping[str, tuple["ModelResult", "ModelResult | None"]]) -> None:
    """Write scores atomically, compressed.

    Args:
        path: Where the file goes.
        results: Results of student and teacher on the same rows: ``""`` is the evaluation's own rows, other names
            are tasks of the suite.
    """
    arrays: dict[str, Any] = {}
    index: dict[str, Any] = {"version": _VERSION, "sets": {}}
    for number, (name, (student, teacher)) in enumerate(results.items()):
        held_out = student.held_out
        pairs = zip(held_out.rows, held_out.references, strict=True)
        entry: dict[str, Any] = {"prompts": [prompt_hash(row, references) for row, references in pairs], "sides": {}}
        for side, result in (("student", student), ("teacher", teacher)):
            metrics: dict[str, Any] = {}
            for metric, scores in (result.scores if result is not None else {}).items():
                if scores.counts.shape[-1] not in (len(held_out.rows), len(held_out.asked)):
                    # Over other rows than these, so there is no prompt to pair by.
                    continue
                whole = _over_all_rows(scores, held_out.asked, len(held_out.rows))
                key = f"{number}.{side}.{metric}"
                arrays[f"{key}.sums"], arrays[f"{key}.counts"] = whole.sums, whole.counts
                metrics[metric] = {"key": key, "axes": list(whole.axes), "formula": whole.formula}
            entry["sides"][side] = metrics
        index["sets"][name] = entry
    buffer = io.BytesIO()
    np.savez_compressed(buffer, index=np.array(json.dumps(index)), **arrays)
    write_atomic(path, buffer.getvalue())


def _over_all_rows(scores: Scores, asked: Sequence[int], rows: int) -> Scores:
    """Scores of answers are over the rows with a prompt alone; the others are put in, with a count of 0."""
    if scores.counts.shape[-1] == rows:
        return scores
    place = np.full(rows, -1)
    place[list(asked)] = np.arange(len(asked))
    whole = choose(scores, np.maximum(place, 0).tolist())
    counts = np.where(place < 0, 0.0, whole.counts)
    absent = place < 0 if scores.formula == "ratio" else (place < 0)[:, None]
    return Scores(np.where(absent, 0.0, whole.sums), counts, scores.axes, scores.formula)


def read_scores(path: Path) -> dict[str, StoredScores]:
    """Read what :func:`write_scores` wrote.

    Args:
        path: The file.

    Returns:
        Scores by name of the set of rows: ``""`` and the tasks of the suite.

    Raises:
        SettingError: The file is missing or cannot be read; the message says how to make it.
    """
    fix = f"write it again: amidkd eval {path.parent}"
    if not path.is_file():
        raise SettingError(f"{path.parent} has no {path.name}, the scores prompt by prompt; {fix}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            index = json.loads(str(stored["index"]))
            if index["version"] != _VERSION:
                raise SettingError(f"{path} was written by another version of amidkd; {fix}")
            return {name: _read_set(entry, stored) for name, entry in index["sets"].items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SettingError(f"{path} cannot be read ({type(error).__name__}: {error}); {fix}") from error


def _read_set(entry: Mapping[str, Any], stored: Any) -> StoredScores:
    sides = {
        side: {
            metric: Scores(
                stored[f"{how['key']}.sums"], stored[f"{how['key']}.counts"], tuple(how["axes"]), how["formula"]
            )
            for metric, how in metrics.items()
            # A metric of a later version has a formula that is not known here.
            if how["formula"] in get_args(Formula)
        }
        for side, metrics in entry["sides"].items()
    }
    return StoredScores(tuple(entry["prompts"]), sides["student"], sides["teacher"])


def choose(scores: Scores, places: Sequence[int]) -> Scores:
    """Scores of some prompts, in the order given.

    Args:
        scores: Scores of every prompt.
        places: Which.
    """
    axis = scores.axes.index("prompts")
    sums, counts = scores.sums.take(places, axis=axis), scores.counts.take(places, axis=axis)
    return Scores(sums, counts, scores.axes, scores.formula)
