"""``amidkd generate``: text to prompts, into a folder that any run with the same prompts can learn from."""

from pathlib import Path

from amidkd.config import RunConfig
from amidkd.data import Encoder
from amidkd.errors import SettingError
from amidkd.training.answering import given_folder, student_writes, write_text
from amidkd.training.context import answering_of, begin, load_teacher
from amidkd.training.lessons import read_rows, rows_to_answer

__all__ = ["run_generate"]


def run_generate(config: RunConfig) -> Path:
    """Write text to ``generated/`` of the run folder, or go on with it.

    With ``policy.kind: sequence_level``, ``policy.writer`` answers all prompts; so does the teacher with
    ``contrastive`` where that learns from the teacher's answers. Otherwise the teacher answers the rows without a
    completion, or all rows where all have one.

    Args:
        config: The run.

    Returns:
        The folder.

    Raises:
        SettingError: Nobody to write, no prompt, or a folder made with other settings.
        GenerationError: The engine is gone; what was saved stays, and the same call goes on.
    """
    _check(config)
    run = begin(config, "generate")
    encoder = Encoder(run.tokenizer, config.data)
    rows = rows_to_answer(config, read_rows(config, encoder), "generate")
    if not rows:
        raise SettingError(f"{config.data.train}: rows of plain `text` have no prompt to answer")
    if not student_writes(config):
        load_teacher(run)
    write_text(rows, answering_of(run, encoder))
    run.wait()
    return run.folder.generated


def _check(config: RunConfig) -> None:
    if config.stages is not None:
        raise SettingError(
            "generate: stages have their text written when they begin; to have it written before, use a run file "
            "without `stages`, and name its folder in the stage's policy.folder"
        )
    if given_folder(config) is not None:
        raise SettingError(
            f"policy.folder: {given_folder(config)} holds the text already, and generate writes to `generated` in "
            "output.folder; leave policy.folder out"
        )
    if config.teacher is None and not student_writes(config):
        raise SettingError("generate needs a `teacher` section: whose answers?")
