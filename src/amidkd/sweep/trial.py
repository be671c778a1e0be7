"""One trial: a run file with some settings changed, trained and evaluated once for each seed, in a folder of its own.

Nothing here knows where the settings came from or where the numbers go, so that a study in this process, a worker
process or a Ray task can run it. Everything that goes in but ``report`` can be pickled; what comes out is JSON.
"""

import copy
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig, final_config, parse
from amidkd.config.load import models_in
from amidkd.record import RunFolder

__all__ = ["Pruned", "Report", "Shared", "run_trial", "seed_folder", "trial_config", "trial_tree"]

Report = Callable[[int, float], bool]
"""Gets optimizer steps made and validation loss (nats a token); True: give the trial up."""


class Pruned(Exception):  # noqa: N818 - an outcome, not an error
    """The trial fell behind and was given up.

    Args:
        step: Optimizer steps of its first run until then.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"given up at step {step}")
        self.step = step


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common; None: each has its own.

    Args:
        text: Folder of text that was written before training (``generated``).
        cache: Folder of the teacher's cache.
        start: Folder where the warm start of each seed is made once.
    """

    text: Path | None = None
    cache: Path | None = None
    start: Path | None = None


def run_trial(
    tree: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    folder: Path,
    shared: Shared | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train and evaluate a trial; where it was cut off before, go on from its last checkpoint.

    Args:
        tree: The sweep's run file, as :func:`amidkd.config.dump_yaml` resolves it; its ``sweep`` says how often the
            validation loss is measured.
        params: Value of each key that the trial sets, such as ``{"objective.alpha": -0.5}``.
        seeds: ``training.seed`` of each of its runs.
        folder: The trial's folder; its runs go to ``seed-<seed>`` in it.
        shared: What is made already, or made once.
        report: Told the validation loss of the first run while it trains; may give the trial up. A trial that goes on
            reports only the steps that are made anew. None: nothing is validated.

    Returns:
        ``metrics``: by name, ``{"value", "errors": [{"over", "stderr", "n"}]}``, the mean of the seeds; ``seconds``,
        ``tokens`` and ``steps`` of training (without a warm start that another trial made); ``runs``: seed and folder
        of each, from the sweep's folder.

    Raises:
        Pruned: ``report`` gave it up.
        SettingError: The settings cannot be used together.
        LossError: A loss is not finite.
    """
    found = []
    for place, seed in enumerate(seeds):
        config = trial_config(tree, params, seed=seed, folder=folder, shared=shared)
        # A trial that survives its first run is measured whole.
        found.append(_run(config, tree, shared or Shared(), seed, report if place == 0 else None))
    return {
        "metrics": _means([entry["metrics"] for entry in found]),
        **{name: sum(entry[name] for entry in found) for name in ("seconds", "tokens", "steps")},
        "runs": [
            {"seed": seed, "folder": seed_folder(folder, seed).relative_to(folder.parents[1]).as_posix()}
            for seed in seeds
        ],
    }


def seed_folder(folder: Path, seed: int) -> Path:
    """The run folder of one seed.

    Args:
        folder: The trial's.
        seed: ``training.seed``.
    """
    return folder / f"seed-{seed}"


def trial_config(
    tree: Mapping[str, Any], params: Mapping[str, Any], *, seed: int, folder: Path, shared: Shared | None = None
) -> RunConfig:
    """The run file of one of a trial's runs.

    Args:
        tree: The sweep's run file, resolved.
        params: Value of each key that the trial sets.
        seed: ``training.seed``.
        folder: The trial's folder.
        shared: What the trials have in common.

    Raises:
        SettingError: The settings cannot be used together.
    """
    changed = trial_tree(tree, params)
    changed["training"] = {**changed["training"], "seed": seed, "resume_from_checkpoint": True}
    changed["evaluation"] = {**changed["evaluation"], "after_training": False}
    changed["output"] = {"folder": str(seed_folder(folder, seed))}
    if shared is not None and shared.cache is not None:
        changed["teacher"] = {**changed["teacher"], "folder": str(shared.cache)}
    shown = ", ".join(f"{key} = {value}" for key, value in params.items())
    return parse(changed, where=f"the run file with {shown}" if params else "the run file")


def trial_tree(tree: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """A run file's tree with a trial's settings in their places, and without ``sweep``.

    A section whose ``kind`` changes keeps only what the new kind has too. Whole sections come before keys in them.

    Args:
        tree: The run file, resolved.
        params: Value of each key, by dotted name.
    """
    changed = copy.deepcopy({name: section for name, section in tree.items() if name != "sweep"})
    for key in sorted(params, key=lambda key: (key.count("."), not key.endswith(".kind"))):
        *parents, leaf = key.split(".")
        node, models = changed, [RunConfig]
        for parent in parents:
            inner = node.get(parent)
            node[parent] = inner if isinstance(inner, dict) else {}
            node, models = node[parent], _inside(models, parent)
        if leaf == "kind" and node.get("kind") != params[key]:
            fields = {name for model in models if _is_kind(model, params[key]) for name in model.model_fields}
            for name in [name for name in node if name not in fields]:
                del node[name]
        node[leaf] = copy.deepcopy(params[key])
    return changed


def _inside(models: list[Any], name: str) -> list[Any]:
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    return [model for field in fields for model in models_in(field.annotation)]


def _is_kind(model: Any, kind: Any) -> bool:
    field = model.model_fields.get("kind")
    return field is not None and field.default == kind


def _run(
    config: RunConfig, tree: Mapping[str, Any], shared: Shared, seed: int, report: Report | None
) -> dict[str, Any]:
    """Train and evaluate one run, as far as it is not done."""
    from amidkd.evaluation import evaluate_run
    from amidkd.training import distill, link, sft

    folder = RunFolder(Path(config.output.folder))
    if shared.text is not None and not folder.generated.exists():
        link(folder.generated, shared.text)
    observer = None if report is None else _observer(tree, report)
    start = None if shared.start is None else seed_folder(shared.start, seed)
    if config.teacher is None and config.stages is None:
        sft(config, observer=observer)
    else:
        distill(config, observer=observer, shared=start)
    if "evaluation" not in folder.record().get("results", {}):
        evaluate_run(final_config(config), folder, teacher_results=_teacher_results())
    for checkpoint in folder.checkpoints():
        shutil.rmtree(checkpoint, ignore_errors=True)
    return _entry(folder.record())


@cache
def _teacher_results() -> Any:
    """What this process knows of the teacher: often the larger part of an evaluation, and the same in every trial."""
    from amidkd.evaluation import TeacherResults

    return TeacherResults()


def _observer(tree: Mapping[str, Any], report: Report) -> Any:
    from amidkd.training import Observer

    def validated(step: int, loss: float) -> None:
        if report(step, loss):
            raise Pruned(step)

    pruner = tree["sweep"]["pruner"]
    return Observer(validated, every=pruner["every"], rows=pruner["rows"])


def _entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a run's student, those of the suite as ``<task>.<metric>``, and what training it took."""
    evaluation = record["results"]["evaluation"]
    metrics = dict(evaluation["student"]["metrics"])
    for task, results in (evaluation.get("suite") or {}).items():
        metrics |= {f"{task}.{name}": entry for name, entry in results["student"]["metrics"].items()}
    stages = [stage for stage in record.get("stages", {}).values() if not stage.get("reused")]
    return {
        "metrics": metrics,
        "seconds": sum(stage.get("seconds") or 0.0 for stage in stages),
        "tokens": sum(stage.get("tokens", 0) for stage in stages),
        "steps": sum(stage.get("steps", 0) for stage in stages),
    }


def _means(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each metric as the mean over runs that differ in their seed alone, with the error that the seeds give it."""
    if len(runs) == 1:
        return dict(runs[0])
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: _mean([run[name] for run in runs]) for name in names}


def _mean(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of estimates on the same prompts.

    The runs share prompts and sampling seeds, so the mean of their errors over those bounds the mean's own.
    """
    values = [float(entry["value"]) for entry in entries]
    errors = []
    if all(math.isfinite(value) for value in values):
        spread = statistics.stdev(values) / math.sqrt(len(values))
        errors.append({"over": "training seeds", "stderr": spread, "n": len(values)})
    for first in entries[0]["errors"]:
        same = [error for entry in entries for error in entry["errors"] if error["over"] == first["over"]]
        sizes = [float(error["stderr"]) for error in same]
        if len(same) == len(entries) and all(math.isfinite(size) for size in sizes):
            errors.append({"over": first["over"], "stderr": statistics.fmean(sizes), "n": first["n"]})
    value = statistics.fmean(values)
    return {"value": value if math.isfinite(value) else str(value), "errors": errors}
