"""``sweep.json`` as objects: what a sweep tried and what came out."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from amidkd.errors import SettingError
from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.record import RunFolder
from amidkd.report.words import number

__all__ = [
    "SWEEP_FILE",
    "Objective",
    "Sweep",
    "Trial",
    "drawn_text",
    "is_number",
    "key_text",
    "metric_called",
    "read_sweep",
    "seed_values",
    "value_text",
]

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Objective:
    """A metric that the sweep is about, and which way is better."""

    metric: str
    direction: Literal["minimize", "maximize"]

    def loss(self, value: float) -> float:
        """The value, turned so that less is better."""
        return value if self.direction == "minimize" else -value


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Args:
        number: Its number in the study.
        state: ``complete``, ``pruned``, ``failed`` or ``running``.
        params: Value by key of the run file.
        folder: Its folder.
        values: The objectives' values, of a complete trial.
        metrics: Everything that its evaluation measured, averaged over its runs.
        runs: Folder of each run, by training seed.
        seconds, tokens, steps: What it took.
        error: What a failed trial died of.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    folder: Path
    values: Mapping[str, float]
    metrics: Mapping[str, Estimate]
    runs: Mapping[int, Path]
    seconds: float = 0.0
    tokens: float = 0.0
    steps: float = 0.0
    error: str | None = None

    def estimate(self, metric: str) -> Estimate | None:
        """What it reached in a metric, with its errors; None where it was not measured or is no number."""
        found = self.metrics.get(metric)
        if found is None and metric in self.values:
            found = Estimate(self.values[metric])
        return found if found is not None and math.isfinite(found.value) else None


@dataclass(frozen=True)
class Sweep:
    """A sweep as its ``sweep.json`` has it.

    Args:
        folder: Where it lies.
        name: The study's name.
        space: What was varied: ``low``, ``high``, ``step``, ``log``, or ``choices``, by key.
        objectives: What it is about.
        seeds: Training seeds of each trial.
        trials: All trials, in order.
        best: Number of the best trial, or those of the Pareto front.
        facts: The other entries of the file: sampler, pruner, times, why it stopped.
    """

    folder: Path
    name: str
    space: Mapping[str, Mapping[str, Any]]
    objectives: tuple[Objective, ...]
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]
    best: tuple[int, ...]
    facts: Mapping[str, Any]

    def complete(self) -> list[Trial]:
        """The trials whose every objective is a number."""
        names = [objective.metric for objective in self.objectives]
        return [
            trial
            for trial in self.trials
            if trial.state == "complete" and all(trial.estimate(name) is not None for name in names)
        ]

    def trial(self, wanted: int) -> Trial:
        """The trial of a number."""
        return next(trial for trial in self.trials if trial.number == wanted)

    def values_of(self, key: str, trials: Iterable[Trial] | None = None) -> list[Any]:
        """The different values that trials have of a key: numbers in order, others as the space lists them."""
        found: dict[str, Any] = {}
        for trial in self.trials if trials is None else trials:
            if key in trial.params:
                found.setdefault(value_text(trial.params[key]), trial.params[key])
        if all(is_number(value) for value in found.values()):
            return sorted(found.values())
        listed = [value_text(choice) for choice in self.space.get(key, {}).get("choices", ())]
        return sorted(found.values(), key=lambda v: listed.index(value_text(v)) if value_text(v) in listed else 0)

    def varied(self) -> list[str]:
        """The keys that were varied: α first, then λ, then as the space has them."""
        first = {"objective.alpha": 0, "objective.lam": 1}
        return sorted(self.space, key=lambda key: first.get(key, 2))


def read_sweep(folder: Path) -> Sweep:
    """Read the ``sweep.json`` of a folder.

    Args:
        folder: The sweep's folder.

    Raises:
        SettingError: There is none, or it cannot be read as one.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise SettingError(f"{folder} holds no {SWEEP_FILE}: it is not the folder of a sweep. Make one: amidkd sweep")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return Sweep(
            folder=folder,
            name=str(entry["name"]),
            space=entry["space"],
            objectives=tuple(Objective(each["metric"], each["direction"]) for each in entry["objective"]),
            seeds=tuple(entry.get("seeds") or ()),
            trials=tuple(_trial(folder, each) for each in entry["trials"]),
            best=tuple(entry.get("best") or ()),
            facts={
                key: entry.get(key) for key in ("sampler", "pruner", "budget", "hours", "stopped", "started", "updated")
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} is not what amidkd sweep writes ({type(error).__name__}: {error})") from None


def _trial(folder: Path, entry: Mapping[str, Any]) -> Trial:
    return Trial(
        number=int(entry["number"]),
        state=str(entry["state"]),
        params=entry["params"],
        folder=folder / entry["folder"],
        values={name: float(value) for name, value in (entry.get("values") or {}).items() if value is not None},
        metrics={name: Estimate.from_json(each) for name, each in (entry.get("metrics") or {}).items()},
        runs={int(run["seed"]): folder / run["folder"] for run in entry.get("runs") or ()},
        seconds=float(entry.get("seconds") or 0),
        tokens=float(entry.get("tokens") or 0),
        steps=float(entry.get("steps") or 0),
        error=entry.get("error"),
    )


def seed_values(trial: Trial, metric: str) -> dict[int, float]:
    """What each run of a trial reached in a metric, by training seed, from the runs' records.

    Args:
        trial: The trial.
        metric: A metric, or ``task.metric`` of the suite.
    """
    task, _, name = metric.rpartition(".")
    found = {}
    for seed, path in trial.runs.items():
        evaluation = RunFolder(path).record().get("results", {}).get("evaluation") or {}
        if task:
            evaluation = evaluation.get("suite", {}).get(task) or {}
        entry = (evaluation.get("student") or {}).get("metrics", {}).get(name)
        if entry is not None and math.isfinite(float(entry["value"])):
            found[seed] = float(entry["value"])
    return found


def metric_called(name: str) -> Metric:
    """A metric of the table, or that of a task of the suite with the task in its label.

    Args:
        name: ``metric``, or ``task.metric``; a name that the table does not hold is its own label.
    """
    task, _, plain = name.rpartition(".")
    found = METRICS.get(plain) or Metric(plain, plain.replace("_", " "), "", None, "use", "")
    return replace(found, name=name, label=f"{task}: {found.label}") if task else found


def is_number(value: Any) -> bool:
    """Whether a value of a key is a number (True and False are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def key_text(key: str) -> str:
    """A key as the page names it: α and λ by their letters, else its last words.

    Args:
        key: Key of the run file.
    """
    letters = {"objective.alpha": "α", "objective.lam": "λ"}
    return letters.get(key, key.removeprefix("objective.").removeprefix("training.").replace("_", " "))


def value_text(value: Any) -> str:
    """A value as the page writes it.

    Args:
        value: Value of a key: a number, a word, or a section.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if is_number(value):
        return number(value) if abs(value) >= 1e7 or isinstance(value, float) else str(value).replace("-", "−")
    if isinstance(value, Mapping):
        head = value.get("kind", value.get("name"))
        rest = ", ".join(f"{key} {value_text(each)}" for key, each in value.items() if key not in ("kind", "name"))
        return f"{head} ({rest})" if head and rest else str(head or rest)
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value).replace("||", "‖")


def drawn_text(text: str, most: int = 24) -> str:
    """A value's text as a picture has it: short, and with nothing that would be read as a formula.

    Args:
        text: See :func:`value_text`.
        most: Characters that there is room for.
    """
    line = " ".join(text.split())
    short = line if len(line) <= most else f"{line[: most // 2]}…{line[-(most // 2) :]}"
    return short.replace("$", r"\$")
