"""Which rows an evaluation is on: the held-out ones, plain text, and the tasks of the suite, read before any model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amidkd.config import DataConfig, EvaluationConfig, RunConfig
from amidkd.config.evaluation import AnswerMetric
from amidkd.data import Row, evaluation_rows, load_rows
from amidkd.errors import SettingError
from amidkd.evaluation.answers import NEEDS_REFERENCES
from amidkd.evaluation.protocol import read_task, task_data
from amidkd.models.facts import text_config

__all__ = ["MAIN", "TEXT", "RowSet", "check_context", "check_references", "context_of", "row_sets"]

MAIN = ""
"""Name of the held-out rows."""
TEXT = "text"
"""Name of the rows of ``evaluation.text``."""


@dataclass(frozen=True)
class RowSet:
    """Rows to evaluate on, and how.

    Args:
        name: ``""`` for the held-out rows, ``"text"``, or the name of a task of the suite.
        file: Where they came from.
        rows: The rows.
        data: How they become tokens.
        evaluation: What is measured.
        max_new_tokens: Longest answer, end token included.
    """

    name: str
    file: str
    rows: list[Row]
    data: DataConfig
    evaluation: EvaluationConfig
    max_new_tokens: int


def row_sets(config: RunConfig) -> list[RowSet]:
    """Everything that ``amidkd eval`` will measure on, the held-out rows first.

    Args:
        config: The run's settings.

    Raises:
        SettingError: A file is missing or cannot be used; rows lack the right answers that a metric needs.
    """
    evaluation, data = config.evaluation, config.data
    longest = evaluation.max_new_tokens or data.generation.max_new_tokens
    file = evaluation.data or data.validation or data.train
    sets = [RowSet(MAIN, str(file), evaluation_rows(config), data, evaluation, longest)]
    if "metrics" in evaluation.model_fields_set:
        # Metrics that nobody chose are only reported as missing.
        check_references(sets[0].rows, evaluation.metrics, file=str(file), setting="evaluation.metrics")
    if evaluation.text is not None:
        sets.append(RowSet(TEXT, evaluation.text, _texts(evaluation), data, evaluation, longest))
    for task in evaluation.suite_tasks():
        found, rows = read_task(task, evaluation)
        setting = f"evaluation.suite, {task.name}"
        metrics = task.metrics or evaluation.metrics
        check_references(rows, metrics, file=found, setting=setting)
        own = evaluation.model_copy(update={"metrics": metrics})
        room = evaluation.suite_max_length - evaluation.suite_max_prompt_length
        sets.append(RowSet(task.name, found, rows, task_data(data, evaluation), own, room))
    return sets


def _texts(evaluation: EvaluationConfig) -> list[Row]:
    rows = load_rows(str(evaluation.text), split=evaluation.split, max_rows=evaluation.max_rows)
    other = next((row for row in rows if row.text is None), None)
    if other is not None:
        raise SettingError(f"evaluation.text: {other.where}: plain text is in a column `text`; this row has none")
    if not any(row.text for row in rows):
        raise SettingError(f"evaluation.text: all texts of {evaluation.text} are empty")
    return rows


def check_references(rows: Sequence[Row], metrics: Sequence[AnswerMetric], *, file: str, setting: str) -> None:
    """Refuse metrics that hold answers against right ones where no row has any.

    Args:
        rows: Rows to evaluate on.
        metrics: What is to be measured of their answers.
        file: Where they came from.
        setting: Which setting asks for the metrics.

    Raises:
        SettingError: With the column that is needed, and the metrics that would do without.
    """
    wanted = [metric for metric in metrics if metric in NEEDS_REFERENCES]
    asked = [row for row in rows if row.text is None]
    if not wanted or not asked or any(row.references or row.answer is not None for row in asked):
        return
    raise SettingError(
        f"{setting}: {', '.join(wanted)}: no row of {file} has a right answer to measure by; add a column `completion` "
        "(or `references`, a list), or measure only "
        + (", ".join(metric for metric in metrics if metric not in NEEDS_REFERENCES) or "distinct_n and self_bleu")
    )


def check_context(sets: Sequence[RowSet], models: Sequence[Any]) -> None:
    """Refuse a suite whose rows are longer than a model can read.

    Args:
        sets: What is measured on.
        models: The models that are.

    Raises:
        SettingError: With the settings to lower.
    """
    context = context_of(models)
    for rows in sets:
        if rows.name not in (MAIN, TEXT) and context is not None and rows.data.max_length > context:
            raise SettingError(
                f"evaluation.suite_max_length: {rows.data.max_length} tokens are more than the {context} that the "
                "student and its teacher can read; lower it and evaluation.suite_max_prompt_length"
            )


def context_of(models: Sequence[Any]) -> int | None:
    """Tokens that all models can read; None where none says.

    Args:
        models: Causal models.
    """
    limits = (getattr(text_config(model), "max_position_embeddings", None) for model in models)
    return min((int(limit) for limit in limits if limit is not None), default=None)
