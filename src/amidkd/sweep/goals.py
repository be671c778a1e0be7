"""What a sweep aims at: metrics that its evaluation will produce, and which way each is better."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from amidkd.config import LiveTeacher, RunConfig, final_config, live_teacher
from amidkd.errors import SettingError

__all__ = ["Goal", "goals_of"]

_OF_REAL_TEXT = ("nll", "perplexity", "ece")
_AGAINST_TEACHER = ("kl_teacher_student", "kl_student_teacher", "top1_agreement", "acceptance", "coverage")
_OF_SAMPLES = ("teacher_nll_of_samples", "kl_student_teacher_on_samples", "acceptance_on_samples")
_FOR_ANSWERS = {
    "distinct_1_sampled": "distinct_n",
    "distinct_2_sampled": "distinct_n",
    "self_bleu_sampled": "self_bleu",
}


@dataclass(frozen=True)
class Goal:
    """One objective.

    Args:
        metric: Its name in :data:`amidkd.evaluation.METRICS`, or ``<task>.<metric>`` of the suite.
        direction: What is done with it.
    """

    metric: str
    direction: Literal["minimize", "maximize"]


def goals_of(config: RunConfig) -> list[Goal]:
    """The objectives of a sweep, each one that every trial's evaluation will produce.

    Reads the held-out rows: whether they have completions and references decides what can be measured.

    Args:
        config: The sweep's run file.

    Raises:
        SettingError: A metric that does not exist, or that this evaluation will not produce and why.
    """
    assert config.sweep is not None
    names = config.sweep.objective
    final = final_config(config)
    rows = _Rows(final) if any("." not in name for name in names) else None
    return [_goal(name, final, rows) for name in names]


def _goal(name: str, config: RunConfig, rows: "_Rows | None") -> Goal:
    from amidkd.evaluation import METRICS

    metric = name.removeprefix("-")
    task, dot, inner = metric.rpartition(".")
    if dot:
        _check_task(metric, task, inner, config)
    elif metric not in METRICS and not metric.startswith("pass_at_"):
        raise SettingError(f"sweep.objective: no metric {metric!r}{_meant(metric, _known(config))}")
    else:
        why = _missing(metric, config, rows)
        if why is not None:
            raise SettingError(f"sweep.objective: {metric}: this run's evaluation will not produce it: {why}")
    found = METRICS.get(inner)
    better = "higher" if metric.startswith("pass_at_") else None if found is None else found.better
    if better is None:
        raise SettingError(f"sweep.objective: {metric}: neither direction is better; choose another metric")
    return Goal(metric, "minimize" if (better == "lower") != name.startswith("-") else "maximize")


def _known(config: RunConfig) -> list[str]:
    from amidkd.evaluation import METRICS

    tasks = [task.name for task in config.evaluation.suite_tasks()]
    return [*METRICS, *(f"{task}.{name}" for task in tasks for name in METRICS)]


def _meant(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _check_task(metric: str, task: str, inner: str, config: RunConfig) -> None:
    from amidkd.evaluation import METRICS

    tasks = {entry.name: entry for entry in config.evaluation.suite_tasks()}
    if task not in tasks:
        hint = _meant(task, list(tasks)) if tasks else "; set evaluation.suite"
        raise SettingError(f"sweep.objective: {metric}: evaluation.suite has no task {task!r}{hint}")
    if inner not in METRICS:
        raise SettingError(f"sweep.objective: {metric}: no metric {inner!r}{_meant(inner, list(METRICS))}")
    asked = tasks[task].metrics or config.evaluation.metrics
    why = _not_asked(inner, asked, config)
    if why is not None:
        raise SettingError(f"sweep.objective: {metric}: this run's evaluation will not produce it: {why}")


def _by_reference(metric: str) -> str | None:
    """Which of ``evaluation.metrics`` gives a metric, where it holds answers against right ones."""
    from amidkd.evaluation.answers import NEEDS_REFERENCES

    return next((name for name in NEEDS_REFERENCES if metric.startswith(f"{name}_")), None)


def _not_asked(metric: str, asked: Iterable[str], config: RunConfig) -> str | None:
    """Whether ``evaluation.metrics``, seeds and teacher speak against a metric; rows aside."""
    needed = _FOR_ANSWERS.get(metric) or _by_reference(metric)
    if needed is not None and needed not in asked:
        return f"add {needed} to evaluation.metrics"
    if metric == "self_bleu_sampled" and len(config.evaluation.sampling_seeds) < 2:
        return "self-BLEU needs two or more evaluation.sampling_seeds"
    if metric in (*_AGAINST_TEACHER, *_OF_SAMPLES):
        return _no_teacher(config)
    return None


def _missing(metric: str, config: RunConfig, rows: "_Rows | None") -> str | None:
    """Why an evaluation will not produce a metric; None: it will."""
    why = _not_asked(metric, config.evaluation.metrics, config) or _section(metric, config)
    if why is not None or rows is None:
        return why
    answers = metric.endswith(("_greedy", "_sampled")) or metric in _OF_SAMPLES
    if answers and not rows.prompts:
        return f"{rows.file} holds plain `text`, and nothing is answered; use rows with `prompt` or `messages`"
    if _by_reference(metric) is not None and not rows.references:
        return f"{rows.file} has no row with `completion` or `references` to hold answers against; add them"
    if metric in (*_OF_REAL_TEXT, *_AGAINST_TEACHER) and not rows.texts:
        return f"{rows.file} has no row with a `completion` (or `text`), whose likelihood it is; add some"
    return None


def _section(metric: str, config: RunConfig) -> str | None:
    """What of ``evaluation`` a metric needs."""
    evaluation = config.evaluation
    if metric.startswith("text_") and evaluation.text is None:
        return "name a file of plain text in evaluation.text"
    if metric.startswith("pass_at_"):
        known = [] if evaluation.code is None else [f"pass_at_{k}" for k in evaluation.code.k]
        return None if metric in known else f"add evaluation.code with k: [{metric.removeprefix('pass_at_')}]"
    if metric == "judge_win_rate" and evaluation.judge is None:
        return "add evaluation.judge"
    if metric in ("acceptance_measured", "acceptance_predicted"):
        return "add evaluation.speculative" if evaluation.speculative is None else _no_teacher(config)
    return None


def _no_teacher(config: RunConfig) -> str | None:
    teacher = live_teacher(config.teacher)
    if config.teacher is None:
        return "it compares with a teacher; add a teacher section"
    if teacher is None:
        return (
            f"it compares with a teacher that can be loaded here, and teacher.kind: {config.teacher.kind} has none; "
            "name its `model`, or choose a metric of the student alone, such as nll"
        )
    if isinstance(teacher, LiveTeacher) and teacher.alignment == "text":
        return "with teacher.alignment: text the teacher has other tokens; choose a metric of the student alone"
    return None


class _Rows:
    """What the held-out rows have."""

    def __init__(self, config: RunConfig) -> None:
        from amidkd.data import evaluation_rows

        rows: list[Any] = evaluation_rows(config)
        self.file = config.evaluation.data or config.data.validation or config.data.train
        self.prompts = any(row.text is None for row in rows)
        self.texts = any(row.labelled for row in rows)
        self.references = any(row.text is None and (row.labelled or row.references) for row in rows)
