"""How a run stops before a step that cannot be made: with what was saved, and a message that says how to go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from amidkd.errors import LossError
from amidkd.generation import GenerationError
from amidkd.record import RunFolder
from amidkd.training.checkpoint import step_of
from amidkd.training.failure import Pass, describe_failure

if TYPE_CHECKING:
    from amidkd.training.trainer import DistillationTrainer

__all__ = ["stop_on_loss", "stop_on_writing"]


def stop_on_loss(trainer: "DistillationTrainer", *, failed: bool, passes: Sequence[Pass], cause: str) -> NoReturn:
    """Say which rows of which step have a loss that is not finite, and why; every rank must call it.

    Args:
        trainer: Whose step it is.
        failed: Whether it failed on this rank.
        passes: Forward passes of this rank that failed, or all.
        cause: What is likely behind it on this rank.

    Raises:
        LossError: Always.
    """
    rows = [int(row) for one in passes for row in one.sequences.rows_B.tolist() if row >= 0]
    told = [(failed, rows, cause)]
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


def stop_on_writing(trainer: "DistillationTrainer", failure: GenerationError) -> NoReturn:
    """Save a checkpoint of all steps made, and say how to go on; every rank must call it.

    Args:
        trainer: Whose step it is.
        failure: Why text could not be written.

    Raises:
        GenerationError: Always.
    """
    step, folder = trainer.state.global_step, RunFolder(Path(trainer.args.output_dir))
    if step > 0 and not any(step_of(path) == step for path in folder.checkpoints()):
        trainer.save_now()
    kept = f"checkpoint-{step} in {folder.path} holds all steps made" if step > 0 else "no step had been made"
    raise GenerationError(
        f"{failure}\nThe run stopped before step {step + 1}; {kept}. Go on with training.resume_from_checkpoint=true"
    ) from failure
