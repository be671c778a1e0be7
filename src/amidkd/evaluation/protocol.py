"""The protocol of the MiniLLM, DistiLLM and AMiD papers: five sets of instructions, one prompt template, two limits.

Answers are drawn at temperature 1 with the seeds 10 to 50 and scored by ROUGE-L with stemmer, best over the references.
Of a prompt over the limit the papers' code keeps the beginning, so that no row is left out; so does this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amidkd.config import DataConfig, EvaluationConfig
from amidkd.config.evaluation import SuiteTaskConfig
from amidkd.data import Row, load_rows
from amidkd.errors import SettingError

__all__ = ["read_task", "task_data"]


@dataclass(frozen=True)
class _Known:
    """A set of the papers: its data set on the hub, the file in it, and names of a file of one's own."""

    hub: str
    file: str
    names: tuple[str, ...]


# The papers report Super-Natural and Unnatural Instructions on the rows whose right answer has 11 words or more.
_KNOWN = {
    "dolly": _Known("MiniLLM/dolly", "valid.jsonl", ("dolly_test", "dolly_dev", "dolly")),
    "self_instruct": _Known("MiniLLM/self-inst", "valid.jsonl", ("self_instruct", "selfinst", "selfinst_seed175")),
    "vicuna": _Known("MiniLLM/Vicuna", "valid.jsonl", ("vicuna",)),
    "super_natural": _Known("MiniLLM/sinst", "11_/valid.jsonl", ("super_natural", "sinst")),
    "unnatural": _Known("MiniLLM/uinst", "11_/valid.jsonl", ("unnatural", "uinst")),
}
_SUFFIXES = (".jsonl", ".json", ".parquet")
_COLUMNS = {"output": "references"}
"""The papers' files name right answers so, one or a list of them."""


def task_data(data: DataConfig, evaluation: EvaluationConfig) -> DataConfig:
    """How the suite's rows become tokens, whatever the run was trained on.

    Args:
        data: The run's own.
        evaluation: The limits.
    """
    return data.model_copy(
        update={
            "prompt_template": "instruction",
            "completion_template": None,
            "add_special_tokens": None,
            "max_length": evaluation.suite_max_length,
            "max_prompt_length": evaluation.suite_max_prompt_length,
            "long_prompts": "keep_start",
        }
    )


def read_task(task: SuiteTaskConfig, evaluation: EvaluationConfig) -> tuple[str, list[Row]]:
    """Where a task's rows are, and the rows.

    Args:
        task: The task.
        evaluation: Its folder, and how many rows.

    Raises:
        SettingError: They are nowhere, or cannot be used.
    """
    most = task.max_rows or evaluation.max_rows
    if task.data is not None:
        source = task.data
        rows = load_rows(source, split=task.split or "test", max_rows=most, rename=_COLUMNS)
    else:
        source = _source(task, evaluation)
        rows = load_rows(source, split=task.split or "validation", max_rows=most, rename=_COLUMNS)
    plain = next((row for row in rows if row.text is not None), None)
    if plain is not None:
        raise SettingError(
            f"evaluation.suite, {task.name}: {plain.where} is plain text; a task needs a column `prompt`"
        )
    return source, [_plain_lines(row) for row in rows]


def _plain_lines(row: Row) -> Row:
    """A row whose first right answer is also its completion; ``<n>`` stands for a new line in the papers' files."""
    references = tuple(text.replace("<n>", "\n") for text in row.references)
    prompt = None if row.prompt is None else row.prompt.replace("<n>", "\n")
    completion = row.completion
    if completion is None and row.messages is None and references:
        completion = references[0]
    return replace(row, prompt=prompt, completion=completion, references=references)


def _source(task: SuiteTaskConfig, evaluation: EvaluationConfig) -> str:
    """The first file of the suite's folder that is there, else the hub's."""
    known = _KNOWN[task.name]
    folder = evaluation.suite_folder
    looked: Sequence[Path] = ()
    if folder is not None:
        if not Path(folder).is_dir():
            raise SettingError(f"evaluation.suite_folder: there is no folder {folder}")
        own = [Path(folder) / f"{name}{suffix}" for name in known.names for suffix in _SUFFIXES]
        # As the hub's data sets lie when each is downloaded whole.
        looked = [*own, Path(folder) / known.hub.split("/")[1] / known.file]
        looked = [*looked, *(Path(folder) / name / known.file for name in known.names)]
        found = next((path for path in looked if path.is_file()), None)
        if found is not None:
            return str(found)
    return _downloaded(task, known, folder)


def _downloaded(task: SuiteTaskConfig, known: _Known, folder: str | None) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(known.hub, known.file, repo_type="dataset"))
    # The hub, the network or a proxy may fail in any way; whatever it is, the file cannot be had.
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        here = f"no {known.names[0]}.jsonl in {folder}" if folder else "evaluation.suite_folder names no folder"
        raise SettingError(
            f"evaluation.suite, {task.name}: {here}, and {known.file} of the hub's data set {known.hub} could not be "
            f"fetched ({cause}). Put a file of prompts with right answers into evaluation.suite_folder, name it as "
            f"{{name: {task.name}, data: FILE}}, or leave the task out"
        ) from error
