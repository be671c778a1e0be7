"""Tasks of EleutherAI's lm-evaluation-harness on the student and its teacher (extra ``lm-eval``)."""

import difflib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from amidkd.config import LmEvalConfig
from amidkd.errors import SettingError
from amidkd.evaluation.narrow import narrowed
from amidkd.evaluation.statistics import Estimate, Scores, StandardError, difference
from amidkd.models import evaluating
from amidkd.models.facts import base_of

__all__ = ["Harness"]

_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Harness:
    """The harness with its tasks found.

    Args:
        config: The run file's ``evaluation.lm_eval``.
        manager: The harness's index of tasks.
    """

    config: LmEvalConfig
    manager: Any

    @staticmethod
    def ready(config: LmEvalConfig) -> "Harness":
        """Find the tasks and load their data, before any model is.

        Args:
            config: The run file's ``evaluation.lm_eval``.

        Raises:
            SettingError: The extra is missing; a task of no such name, or one whose data cannot be had.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise SettingError("evaluation.lm_eval needs the harness: pip install 'amidkd[lm-eval]'")
        if config.include_path is not None and not Path(config.include_path).is_dir():
            raise SettingError(f"evaluation.lm_eval.include_path: {config.include_path}: there is no such folder")
        with _quiet():
            manager = _index(config)
            known = set(manager.all_tasks)
            for name in config.tasks:
                if name not in known:
                    raise SettingError(_unknown(name, sorted(known)))
            for name in config.tasks:
                _load(manager, name)
        return Harness(config, manager)

    def run(self, models: Mapping[str, tuple[Any, Any]], *, vocab_size: int) -> dict[str, Any]:
        """Ask models.

        Args:
            models: Model and tokenizer by side: ``student``, and ``teacher`` where it is asked too.
            vocab_size: Shared vocabulary; heads are cut to it.

        Returns:
            ``harness`` (its version), ``num_fewshot``, ``limit`` and ``tasks``: of each task ``rows``, ``version`` and
            ``metrics``: of each metric ``label``, ``better``, and an estimate of each side; with both, their paired
            ``difference`` where the metric is a mean over rows.
        """
        found = {
            side: self._evaluate(model, tokenizer, vocab_size)
            for side, (model, tokenizer) in models.items()
            if side == "student" or self.config.teacher
        }
        return {
            "harness": metadata.version("lm_eval"),
            "num_fewshot": self.config.num_fewshot,
            "limit": self.config.limit,
            "tasks": {task: _task(task, found) for task in found["student"]["results"]},
        }

    def _evaluate(self, model: Any, tokenizer: Any, vocab_size: int) -> dict[str, Any]:
        with _quiet(), evaluating(model), narrowed(model, vocab_size):
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            wrapped = HFLM(pretrained=base_of(model), tokenizer=tokenizer, batch_size=self.config.batch_size)
            found = simple_evaluate(
                wrapped,
                tasks=list(self.config.tasks),
                num_fewshot=self.config.num_fewshot,
                batch_size=self.config.batch_size,
                limit=self.config.limit,
                task_manager=self.manager,
                bootstrap_iters=_BOOTSTRAP,
            )
        return dict(found)


def _index(config: LmEvalConfig) -> Any:
    """The tasks of the user's folder where they are all there: to read the harness's own takes seconds."""
    from lm_eval.tasks import TaskManager

    if config.include_path is not None:
        own = TaskManager(include_path=config.include_path, include_defaults=False)
        if set(config.tasks) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=config.include_path)


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `lm_eval ls tasks` lists them"
    return f"evaluation.lm_eval.tasks: the harness has no task {name!r}{hint}"


def _load(manager: Any, name: str) -> None:
    load = manager.load if hasattr(manager, "load") else manager.load_task_or_group
    try:
        loaded = load([name])
    except Exception as error:
        # Whatever a task's own code, the hub or a file raises.
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise SettingError(f"evaluation.lm_eval.tasks: {name} cannot be loaded: {cause}") from error
    if any(getattr(task, "UNSAFE_CODE", False) for task in _leaves(loaded)):
        raise SettingError(
            f"evaluation.lm_eval.tasks: {name} runs code that a model wrote, without a sandbox; evaluation.code runs "
            "it in one"
        )


def _leaves(loaded: Any) -> Iterator[Any]:
    """The tasks in what the harness's index gives: mappings in mappings."""
    if not isinstance(loaded, Mapping):
        yield loaded
        return
    for inner in loaded.values():
        yield from _leaves(inner)


def _task(task: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    first = found["student"]
    rows = first.get("n-samples", {}).get(task, {}).get("effective")
    higher = first.get("higher_is_better", {}).get(task, {})
    metrics: dict[str, Any] = {}
    for key in first["results"][task]:
        estimates = {side: _estimate(key, result["results"][task], rows) for side, result in found.items()}
        if estimates["student"] is None:
            continue
        name, _, chosen = key.partition(",")
        better = higher.get(name)
        entry: dict[str, Any] = {
            "label": name if chosen in ("", "none") else f"{name} ({chosen})",
            "better": None if better is None else "higher" if better else "lower",
        }
        entry |= {side: estimate.to_json() for side, estimate in estimates.items() if estimate is not None}
        if "teacher" in estimates:
            gap = _gap(task, name, chosen, found, estimates)
            if gap is not None:
                entry["difference"] = gap.to_json()
        metrics[key] = entry
    return {"rows": rows, "version": first.get("versions", {}).get(task), "metrics": metrics}


def _estimate(key: str, values: Mapping[str, Any], rows: int | None) -> Estimate | None:
    """A metric with its standard error over rows; None for what is none, such as a name or an error itself."""
    name, _, chosen = key.partition(",")
    value, error = values.get(key), values.get(f"{name}_stderr,{chosen}")
    if name.endswith("_stderr") or not chosen or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if rows is None or not isinstance(error, int | float):
        return Estimate(float(value))
    return Estimate(float(value), (StandardError("prompts", float(error), rows),))


def _gap(
    task: str,
    name: str,
    chosen: str,
    found: Mapping[str, Mapping[str, Any]],
    estimates: Mapping[str, Estimate | None],
) -> Estimate | None:
    """Student − teacher, paired by row; None where the metric is no mean of what each row got."""
    columns = {}
    for side, result in found.items():
        lines = [line for line in result.get("samples", {}).get(task, []) if line.get("filter", chosen) == chosen]
        values = {line["doc_id"]: line[name] for line in lines if isinstance(line.get(name), int | float)}
        if not values or len(values) < len(lines):
            return None
        column = np.array([float(values[row]) for row in sorted(values)])
        estimate = estimates[side]
        if estimate is None or not np.isclose(column.mean(), estimate.value, rtol=1e-9, atol=1e-12):
            return None
        columns[side] = Scores(column, np.ones_like(column))
    return difference(columns["student"], columns["teacher"])


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness tells every step of its work; its errors are enough, and its bars where there is a terminal."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        try:
            yield
        finally:
            logger.setLevel(before)
