"""Stages of a run file, one after the other: each is a run of its own that starts from the last one's student."""

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig, dump_yaml, stage_configs
from amidkd.errors import SettingError
from amidkd.record import RunFolder, write_atomic
from amidkd.training.arguments import check_training_settings, training_arguments
from amidkd.training.folders import check_folder

__all__ = ["run_stages"]

_log = logging.getLogger("amidkd")

Train = Callable[[RunConfig, str, RunConfig], RunFolder]


def run_stages(config: RunConfig, train: Train) -> RunFolder:
    """Run the stages of a run file; those that are complete are left as they are.

    A stage is complete when its record says that it is finished, after its student got its name; the next one always
    starts from the saved student. So a run that is killed anywhere, in a stage or between two, goes on to the same
    result.

    Args:
        config: A run with stages.
        train: Runs one stage: its settings, its verb, the whole run file.

    Returns:
        The run folder, which is the last stage's too.

    Raises:
        SettingError: A stage that cannot be run, before any starts where that can be known.
        LossError: The loss is not finite; what was saved before stays good.
    """
    assert config.stages is not None
    whole = RunFolder(Path(config.output.folder))
    stages = _going_on(config)
    arguments = training_arguments(config, whole.path)
    for number, (stage, given) in enumerate(zip(stages, config.stages, strict=True), start=1):
        try:
            check_training_settings(stage)
        except SettingError as error:
            raise SettingError(f"stages[{number}] ({given.name}): {error}") from error
        folder = RunFolder(Path(stage.output.folder))
        check_folder(stage, folder, verb=given.verb, processes=arguments.world_size)
    if arguments.process_index == 0:
        write_atomic(whole.run_file, dump_yaml(config))
    for number, (stage, given) in enumerate(zip(stages, config.stages, strict=True), start=1):
        _log.info("Stage %d of %d, %s: into %s", number, len(stages), given.name, stage.output.folder)
        train(stage, given.verb, config)
        if arguments.process_index == 0:
            whole.update_record(chain=_chain(config, number))
        # The models of a stage are in cycles with its trainer; two stages' would not fit where one's do.
        _let_go()
    return whole


def _going_on(config: RunConfig) -> list[RunConfig]:
    """The stages, each told whether to go on; a checkpoint that is named belongs to the stage in whose folder it is."""
    resume = config.training.resume_from_checkpoint
    found = []
    for stage in stage_configs(config):
        own: bool | str = bool(resume)
        if isinstance(resume, str) and Path(resume).resolve().parent == Path(stage.output.folder).resolve():
            own = resume
        training = stage.training.model_copy(update={"resume_from_checkpoint": own})
        found.append(stage.model_copy(update={"training": training}))
    if isinstance(resume, str) and all(stage.training.resume_from_checkpoint is True for stage in found):
        raise SettingError(
            f"training.resume_from_checkpoint: {resume} lies in the folder of none of the stages: "
            + ", ".join(stage.output.folder for stage in found)
        )
    return found


def _chain(config: RunConfig, done: int) -> list[dict[str, Any]]:
    """The stages that are done, as the record of the run folder lists them."""
    assert config.stages is not None
    whole = Path(config.output.folder)
    entries = []
    for stage, given in list(zip(stage_configs(config), config.stages, strict=True))[:done]:
        folder = RunFolder(Path(stage.output.folder))
        parts = folder.record().get("stages", {})
        entries.append(
            {
                "name": given.name,
                "verb": given.verb,
                "policy": stage.policy.kind,
                "folder": folder.path.relative_to(whole).as_posix(),
                "steps": sum(part.get("steps", 0) for part in parts.values()),
                "seconds": sum(part.get("seconds") or 0.0 for part in parts.values()),
            }
        )
    return entries


def _let_go() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
