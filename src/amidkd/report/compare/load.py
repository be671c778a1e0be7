"""The runs of a comparison as their folders hold them, grouped by configuration, and what had to be left out."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from amidkd.errors import SettingError
from amidkd.evaluation.scores import StoredScores, read_scores
from amidkd.record import RunFolder

__all__ = ["Loaded", "differing_settings", "flat", "grouped", "load_runs", "named", "names_of", "settings_of"]

_OWN = ("output.", "evaluation.", "sweep.", "serving.", "training.seed", "training.resume_from_checkpoint")
"""Settings in which two runs of one configuration may differ: where they are, how they were measured, their seed."""


@dataclass(frozen=True)
class Loaded:
    """One evaluated run.

    Args:
        name: What the comparison calls it.
        folder: Its folder.
        record: Its record.
        stored: Its scores by set of rows; ``""`` is the evaluation's own.
    """

    name: str
    folder: RunFolder
    record: Mapping[str, Any]
    stored: Mapping[str, StoredScores]

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """``results.evaluation`` of its record."""
        found: Mapping[str, Any] = self.record["results"]["evaluation"]
        return found

    @property
    def seed(self) -> int:
        """Its training seed."""
        return int(settings_of(self.record).get("training.seed", 0))


def load_runs(paths: Sequence[Path]) -> tuple[list[Loaded], list[str]]:
    """Read evaluated runs.

    Args:
        paths: Folders of runs; an earlier comparison among them, as ``runs/*`` gives it, is passed over.

    Returns:
        The runs, and a line for each path that was left out, with the reason and what would help.

    Raises:
        SettingError: Fewer than two runs can be compared.
    """
    places = list(dict.fromkeys(path.resolve() for path in paths if not (path.is_file() and path.stem == "comparison")))
    names = names_of(places)
    found, omitted = [], []
    for path in places:
        try:
            found.append(_load(path, names[path]))
        except SettingError as error:
            omitted.append(f"{names[path]}: {error}")
    if len(found) < 2:
        lines = "".join(f"\n  {line}" for line in omitted)
        raise SettingError(
            f"a comparison needs two evaluated runs; {len(found) or 'none'} of {len(places)} can be used{lines}"
        )
    return found, omitted


def _load(path: Path, name: str) -> Loaded:
    folder, shown = RunFolder(path), os.path.relpath(path)
    if not path.exists():
        raise SettingError("there is no such folder")
    if path.is_file():
        raise SettingError("a file; name the folder of a run")
    if (path / "sweep.json").is_file():
        raise SettingError(f"a sweep; its trials are runs: amidkd report --compare {shown}/trials/*/seed-*")
    if not folder.record_file.is_file():
        raise SettingError("not the folder of a run: it holds no record.json")
    try:
        record = folder.record()
    except json.JSONDecodeError as error:
        raise SettingError(f"record.json is not JSON ({error.msg})") from error
    if not record.get("results", {}).get("evaluation", {}).get("student"):
        raise SettingError(f"not evaluated yet: amidkd eval {shown}")
    if not folder.scores_file.is_file():
        raise SettingError(f"evaluated without scores prompt by prompt (scores.npz); again: amidkd eval {shown}")
    return Loaded(name, folder, record, read_scores(folder.scores_file))


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """What each folder is called: its path below the folder that all share.

    Args:
        paths: Absolute paths.
    """
    if len(paths) < 2:
        return {path: path.name for path in paths}
    shared = os.path.commonpath([path.parent for path in paths])
    return {path: os.path.relpath(path, shared) for path in paths}


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by their dotted key.

    Args:
        record: Its record.
    """
    return flat(record.get("config") or {})


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level of dotted keys; lists stay whole.

    Args:
        tree: Sections by name.
        prefix: What stands before every key.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found


def _configuration(record: Mapping[str, Any]) -> str:
    settings = {key: value for key, value in settings_of(record).items() if not key.startswith(_OWN)}
    return json.dumps([record.get("verb"), settings], sort_keys=True, default=str)


def grouped(runs: Sequence[Loaded]) -> list[list[Loaded]]:
    """Runs of one configuration together, where they differ in their training seed; in the order given.

    Where that would leave nothing to compare, every run stands alone.

    Args:
        runs: The runs.
    """
    groups: list[tuple[str, list[Loaded]]] = []
    for run in runs:
        key = _configuration(run.record)
        # A run made twice with one seed is no second draw.
        home = next((g for k, g in groups if k == key and run.seed not in [other.seed for other in g]), None)
        if home is None:
            groups.append((key, [run]))
        else:
            home.append(run)
    found = [sorted(group, key=lambda run: run.seed) for _, group in groups]
    return found if len(found) > 1 else [[run] for run in runs]


def named(groups: Iterable[Sequence[Loaded]]) -> list[tuple[str, list[Loaded]]]:
    """Groups by name: that of the single run, or what the names of several begin with.

    Args:
        groups: Runs of one configuration each.
    """
    found: list[tuple[str, list[Loaded]]] = []
    for group in groups:
        names = [run.name for run in group]
        name = names[0]
        if len(names) > 1:
            name = _SEED.sub("", _beginning(names)) or name
        if name in [other for other, _ in found]:
            name = names[0]
        found.append((name, list(group)))
    return found


_SEED = re.compile(r"[-_./= ]*((training[-_ ]?)?seed|s)?[-_= ]*\d*$")
"""The end of a name that says which seed it is."""


def _beginning(names: Sequence[str]) -> str:
    """What all names begin with."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike)


def differing_settings(groups: Sequence[Sequence[Loaded]]) -> list[dict[str, Any]]:
    """For each group, its values of the settings that are not the same in all.

    Args:
        groups: Runs of one configuration each.
    """
    settings = [settings_of(group[0].record) for group in groups]
    keys = [key for key in dict.fromkeys(k for each in settings for k in each) if not key.startswith(_OWN)]
    varied = [key for key in keys if len({json.dumps(each.get(key), default=str) for each in settings}) > 1]
    return [{key: each[key] for key in varied if key in each} for each in settings]
