"""How a run stops before a step that cannot be made: with what was saved, and a message that says how to go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from amidkd.errors import LossError, SettingError, TeacherError
from amidkd.generation import GenerationError
from amidkd.record import RunFolder
from amidkd.teachers import Aligned, Grouped
from amidkd.training.checkpoint import step_of
from amidkd.training.failure import Pass, describe_failure, likely_cause

if TYPE_CHECKING:
    from amidkd.training.trainer import DistillationTrainer

__all__ = ["stop_on_loss", "stop_on_teacher", "stop_on_writing"]


def stop_on_loss(trainer: "DistillationTrainer", passes: Sequence[Pass], losses: Tensor) -> NoReturn:
    """Say which rows of which step have a loss that is not finite, and why; every rank must call it.

    Args:
        trainer: Whose step it is.
        passes: Forward passes of this rank.
        losses: Loss of each.

    Raises:
        LossError: Always.
    """
    finite = torch.isfinite(losses).tolist()
    bad = [one for one, fine in zip(passes, finite, strict=True) if not fine]
    rows = [int(row) for one in bad or passes for row in one.sequences.rows_B.tolist() if row >= 0]
    told = [(bool(bad), rows, _cause(trainer, (bad or passes)[0]))]
    if trainer.args.world_size > 1:
        from accelerate.utils import gather_object

        told = gather_object(told)
        told = [entry for entry in told if entry[0]] or told
    checkpoints = RunFolder(Path(trainer.args.output_dir)).checkpoints()
    raise LossError(
        describe_failure(
            step=trainer.state.global_step + 1,
            rows=[row for _, found, _ in told for row in found],
            places=trainer.places,
            cause=told[0][2],
            checkpoint=checkpoints[-1] if checkpoints else None,
        )
    )


@torch.no_grad()
def _cause(trainer: "DistillationTrainer", failed: Pass) -> str:
    """Look at the signals of a failed pass once more."""
    sequences, objective = failed.sequences, trainer.loss.objective
    return likely_cause(
        student=trainer.signal_of(sequences),
        teacher=None if trainer.teacher is None else _first_voice(trainer.teacher.signal(sequences)),
        objective=None if objective is None else objective.at(trainer.state.global_step),
        loss=float(failed.loss),
        sound_weights=all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters()),
    )


def _first_voice(said: Any) -> Any:
    """One teacher's signal: its state is looked at, not what it says."""
    if isinstance(said, Aligned):
        return said.teacher
    return said.groups[0].signals[0] if isinstance(said, Grouped) else said


def stop_on_writing(trainer: "DistillationTrainer", failure: GenerationError) -> NoReturn:
    """Save a checkpoint of all steps made, and say how to go on; every rank must call it.

    Args:
        trainer: Whose step it is.
        failure: Why text could not be written.

    Raises:
        GenerationError: Always.
    """
    raise GenerationError(f"{failure}\n{_saved(trainer)}") from failure


def stop_on_teacher(trainer: "DistillationTrainer", failure: TeacherError | SettingError) -> NoReturn:
    """Save a checkpoint of all steps made, and say how to go on; every rank must call it.

    Args:
        trainer: Whose step it is.
        failure: Why the teacher has no answer.

    Raises:
        TeacherError: It may have one later.
        SettingError: It will not.
    """
    raise type(failure)(f"{failure}\n{_saved(trainer)}") from failure


def _saved(trainer: "DistillationTrainer") -> str:
    step, folder = trainer.state.global_step, RunFolder(Path(trainer.args.output_dir))
    if step > 0 and not any(step_of(path) == step for path in folder.checkpoints()):
        trainer.save_now()
    kept = f"checkpoint-{step} in {folder.path} holds all steps made" if step > 0 else "no step had been made"
    return f"The run stopped before step {step + 1}; {kept}. Go on with training.resume_from_checkpoint=true"
