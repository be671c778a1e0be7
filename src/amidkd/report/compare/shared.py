"""What several runs can be compared by: the prompts that all of them answered, and the metrics that mean the same."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amidkd.errors import SettingError
from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.compare import Gap, Runs, Spread, compare_with, metric_of, with_perplexities
from amidkd.evaluation.entry import DISTANCES
from amidkd.evaluation.metrics import METRICS
from amidkd.evaluation.row_sets import MAIN, TEXT
from amidkd.evaluation.scores import StoredScores, choose
from amidkd.evaluation.statistics import Estimate, Scores
from amidkd.report.compare.load import Loaded, differing_settings, grouped, load_runs, named

__all__ = ["Compared", "Side", "compared"]

_ON_GIVEN_TEXT = ("real text", "distance", "calibration")
"""Groups of metrics whose counts are tokens of the held-out text: the same for all, unless they are cut otherwise."""
_AGAINST_TEACHER = ("distance", "samples", "use")
_DECIDED_BY = {"coverage": "coverage_epsilon", "ece": "calibration_bins", "judge_win_rate": "judge"}
"""Metrics that are another number under another setting of the evaluation."""
_OF_THE_JUDGE = ("model", "against", "answers", "instruction")
_MEASURED_HOW = ("temperature", "sampling_seeds", "max_new_tokens", "no_repeat_ngram_size")


@dataclass(frozen=True)
class Side:
    """One configuration of a comparison.

    Args:
        name: What it is called.
        runs: Its runs, one for each training seed.
        settings: Its values of the settings that are not the same in all.
        estimates: Every metric on the prompts that all share.
        spreads: By metric, how far its runs are apart; empty for a single run.
        gaps: How it differs from the baseline, metric by metric; empty for the baseline.
    """

    name: str
    runs: list[Loaded]
    settings: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    spreads: Mapping[str, Spread]
    gaps: list[Gap]


@dataclass(frozen=True)
class Compared:
    """A comparison, ready to be shown.

    Args:
        sides: The configurations; the first is the baseline.
        teacher: Estimates of the teacher on the same prompts, where all runs have the same one.
        prompts: How many prompts all share, by set of rows; ``""`` is the evaluation's own.
        level: Level of intervals and tests.
        notes: What a reader must know, such as how many prompts are shared.
        omitted: What was left out, and why.
    """

    sides: list[Side]
    teacher: Mapping[str, Estimate]
    prompts: Mapping[str, int]
    level: float
    notes: list[str] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> Side:
        """What the others are compared with."""
        return self.sides[0]

    @property
    def metrics(self) -> list[str]:
        """Every metric that a side has: the evaluation's own, then task by task, in the order of the table."""
        known = list(METRICS)
        names = dict.fromkeys(name for side in self.sides for name in side.estimates)
        tasks = list(dict.fromkeys(name.rpartition(".")[0] for name in sorted(names, key=lambda name: "." in name)))

        def place(name: str) -> tuple[int, int]:
            task, _, metric = name.rpartition(".")
            return tasks.index(task), known.index(metric)

        return sorted(names, key=place)


def compared(paths: Sequence[Any]) -> Compared:
    """Read runs and compare them with the first.

    Args:
        paths: Folders of runs.

    Raises:
        SettingError: Fewer than two of them can be compared; with a line for each that cannot, and why.
    """
    runs, omitted = load_runs(paths)
    runs, strangers = _on_common_prompts(runs)
    omitted += strangers
    if len(runs) < 2:
        lines = "".join(f"\n  {line}" for line in omitted)
        raise SettingError(f"nothing to compare {runs[0].name} with{lines}")
    shared, notes = _shared_rows(runs)
    cut = {run.folder.path: _cut(run, shared) for run in runs}
    groups = named(grouped(runs))
    settings = runs[0].evaluation.get("settings", {})
    bootstrap = Bootstrap(int(settings.get("bootstrap", 2000)), float(settings.get("confidence", 0.95)))
    first = cut[groups[0][1][0].folder.path]
    sides = [
        Runs(
            name, tuple(r.seed for r in group), tuple(_alike(cut[r.folder.path].student, first.student) for r in group)
        )
        for name, group in groups
    ]
    skip, reasons = _not_comparable(groups, cut)
    gaps = [[], *compare_with(sides[0], sides[1:], bootstrap=bootstrap, skip=skip)]
    apart = differing_settings([group for _, group in groups])
    same_teacher = not any("another teacher" in reason for reason in reasons)
    return Compared(
        [
            Side(name, list(group), apart[n], side.estimates(bootstrap), _spreads(side), gaps[n])
            for n, ((name, group), side) in enumerate(zip(groups, sides, strict=True))
        ],
        _teacher(first, bootstrap) if same_teacher else {},
        {name: len(hashes) for name, hashes in shared.items()},
        bootstrap.level,
        [*notes, *reasons, *_measured_otherwise(runs)],
        omitted,
    )


def _keys(stored: StoredScores) -> list[tuple[str, int]]:
    """A name for each row: its hash, and how many rows before it have the same one."""
    seen: dict[str, int] = {}
    keys = []
    for prompt in stored.prompts:
        keys.append((prompt, seen.get(prompt, 0)))
        seen[prompt] = seen.get(prompt, 0) + 1
    return keys


def _on_common_prompts(runs: Sequence[Loaded]) -> tuple[list[Loaded], list[str]]:
    """Runs that share a prompt with the first, in a set of rows that both have; and a line for each other one."""
    kept, omitted = [runs[0]], []
    for run in runs[1:]:
        sets = [name for name in runs[0].stored if name in run.stored]
        if any(set(runs[0].stored[name].prompts) & set(run.stored[name].prompts) for name in sets):
            kept.append(run)
        else:
            files = " and ".join(os.path.basename(str(r.evaluation["data"]["file"])) for r in (runs[0], run))
            omitted.append(
                f"{run.name}: measured on other prompts than {runs[0].name} ({files}); measure both on the same rows: "
                "amidkd eval RUN evaluation.data=FILE"
            )
    return kept, omitted


def _shared_rows(runs: Sequence[Loaded]) -> tuple[dict[str, list[tuple[str, int]]], list[str]]:
    """By set of rows, the rows that all runs have, in the order of the first; and what to say about it."""
    shared: dict[str, list[tuple[str, int]]] = {}
    notes = []
    for name in dict.fromkeys(each for run in runs for each in run.stored):
        having = [run for run in runs if name in run.stored]
        what = {MAIN: "the evaluation's own rows", TEXT: "the plain text"}.get(name, f"task {name}")
        if len(having) < len(runs):
            lacking = ", ".join(run.name for run in runs if run not in having)
            notes.append(f"Left out: {what}, which {lacking} did not measure.")
            continue
        keys = [set(_keys(run.stored[name])) for run in runs]
        common = set.intersection(*keys)
        if not common:
            notes.append(f"Left out: {what}, of which the runs share no prompt.")
            continue
        if any(len(own) > len(common) for own in keys):
            counts = ", ".join(f"{run.name} {len(own)}" for run, own in zip(runs, keys, strict=True))
            notes.append(
                f"Of {what}, all numbers are over the {len(common)} prompts that every run answered ({counts}); "
                "so they differ from those of the runs' own reports."
            )
        shared[name] = [key for key in _keys(runs[0].stored[name]) if key in common]
    return shared, notes


def _cut(run: Loaded, shared: Mapping[str, Sequence[tuple[str, int]]]) -> StoredScores:
    """Scores of the shared rows, with metrics of a task named after it."""
    sides: dict[str, dict[str, Scores]] = {"student": {}, "teacher": {}}
    for name, keys in shared.items():
        stored = run.stored[name]
        place = {key: number for number, key in enumerate(_keys(stored))}
        rows = [place[key] for key in keys]
        for side, found in sides.items():
            for metric, scores in getattr(stored, side).items():
                whole = choose(scores, rows)
                if metric_of(metric) is not None and whole.counts.any():
                    found[metric if name in (MAIN, TEXT) else f"{name}.{metric}"] = whole
    return StoredScores((), sides["student"], sides["teacher"])


def _alike(scores: Mapping[str, Scores], pattern: Mapping[str, Scores]) -> dict[str, Scores]:
    """Those that are the same kind of number as the first run's: of the same formula, with as many parts."""

    def kind(entry: Scores) -> tuple[Any, ...]:
        return (entry.formula, entry.statistics.shape[-1])

    return {name: entry for name, entry in scores.items() if name not in pattern or kind(entry) == kind(pattern[name])}


def _not_comparable(
    groups: Sequence[tuple[str, Sequence[Loaded]]], cut: Mapping[Any, StoredScores]
) -> tuple[dict[str, list[str]], list[str]]:
    """Metrics that mean another thing in a group than in the first, and why."""
    first = cut[groups[0][1][0].folder.path]
    skip: dict[str, list[str]] = {}
    reasons = []
    for name, group in groups:
        tokens, teachers, settings = set(), set(), set()
        for run in group:
            other = cut[run.folder.path]
            tokens |= {m for m in other.student if m in first.student and _other_tokens(m, first, other)}
            settings |= _decided_otherwise(other.student, groups[0][1][0], run)
            if _other_teacher(first, other, groups[0][1][0], run):
                teachers |= {m for m in other.student if _group_of(m) in _AGAINST_TEACHER or _wins_over_teacher(m, run)}
        skip[name] = sorted(tokens | teachers | settings)
        if tokens:
            reasons.append(
                f"{name} and {groups[0][0]} cut the held-out text into other tokens (another tokenizer, template or "
                f"length limit), so these are not compared: {_labels(tokens)}."
            )
        if teachers - tokens:
            reasons.append(
                f"{name} was held against another teacher than {groups[0][0]}, so these are not compared: "
                f"{_labels(teachers - tokens)}."
            )
        if settings - tokens - teachers:
            reasons.append(
                f"{name} and {groups[0][0]} were measured with other settings (coverage_epsilon, calibration_bins, the "
                "judge, or the number of sampling_seeds), so these are not compared: "
                f"{_labels(settings - tokens - teachers)}."
            )
    return skip, reasons


def _decided_otherwise(names: Iterable[str], one: Loaded, two: Loaded) -> set[str]:
    """Metrics that the settings of two evaluations make two things."""
    ours, theirs = (_deciding(run) for run in (one, two))
    kinds = {name: "diversity" if _group_of(name) == "diversity" else name.rpartition(".")[2] for name in names}
    return {name for name, kind in kinds.items() if kind in ours and kind in theirs and ours[kind] != theirs[kind]}


def _deciding(run: Loaded) -> dict[str, Any]:
    """What decides a metric, or a group of them, in a run; a record of an earlier version may not say it."""
    settings = run.evaluation.get("settings", {})
    found = {metric: settings[key] for metric, key in _DECIDED_BY.items() if settings.get(key) is not None}
    if "judge_win_rate" in found:
        found["judge_win_rate"] = [found["judge_win_rate"].get(key) for key in _OF_THE_JUDGE]
    if "sampling_seeds" in settings:
        # The more answers to a prompt, the more they repeat.
        found["diversity"] = len(settings["sampling_seeds"])
    return found


def _wins_over_teacher(name: str, run: Loaded) -> bool:
    judge = run.evaluation.get("settings", {}).get("judge") or {}
    return name.rpartition(".")[2] == "judge_win_rate" and judge.get("against") == "teacher"


def _group_of(name: str) -> str:
    metric = metric_of(name)
    return "" if metric is None else metric.group


def _labels(names: set[str]) -> str:
    found = (metric_of(name) for name in sorted(names))
    return ", ".join(metric.label for metric in found if metric is not None)


def _other_tokens(name: str, first: StoredScores, other: StoredScores) -> bool:
    if _group_of(name) not in _ON_GIVEN_TEXT:
        return False
    ours, theirs = (side.student[name].counts for side in (first, other))
    return ours.shape != theirs.shape or not np.array_equal(ours, theirs)


def _other_teacher(first: StoredScores, other: StoredScores, one: Loaded, two: Loaded) -> bool:
    """Whether the teachers differ: by what they give to the same text; where neither was asked, by their names."""
    for name in first.teacher:
        if _group_of(name) == "real text" and name in other.teacher:
            ours, theirs = first.teacher[name], other.teacher[name]
            if np.array_equal(ours.counts, theirs.counts):
                return not np.allclose(ours.sums, theirs.sums, rtol=1e-3, atol=1e-4)
    models = [run.evaluation.get("teacher", {}).get("model") for run in (one, two)]
    return models[0] != models[1]


def _teacher(first: StoredScores, bootstrap: Bootstrap) -> dict[str, Estimate]:
    alone = {name: scores for name, scores in first.teacher.items() if name.rpartition(".")[2] not in DISTANCES}
    return with_perplexities(bootstrap.estimates(alone))


def _spreads(side: Runs) -> dict[str, Spread]:
    found = {name: side.spread(name) for name in side.metrics}
    return {name: spread for name, spread in found.items() if spread is not None}


def _measured_otherwise(runs: Sequence[Loaded]) -> list[str]:
    lines = []
    for key in _MEASURED_HOW:
        values = {run.name: run.evaluation.get("settings", {}).get(key) for run in runs}
        if len({str(value) for value in values.values()}) > 1:
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            lines.append(f"Measured with other settings: evaluation.{key} is {shown}.")
    return lines
