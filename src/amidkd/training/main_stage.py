"""What the main stage minimises, and whose text it learns from: from the run file to the trainer's parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from amidkd.config import (
    AdaptivePolicy,
    ContrastivePolicy,
    RunConfig,
    SequenceLevelPolicy,
    StudentSampling,
    TransformersEngine,
    VllmEngine,
)
from amidkd.data import Encoder, Example
from amidkd.errors import SettingError, SettingWarning
from amidkd.generation import Generator, make_generator
from amidkd.models import eos_ids_of, pad_id_of
from amidkd.policies import Policy, PolicyRoom, make_policy, writes_while_training
from amidkd.policies.adaptive import check_capacity
from amidkd.training.hooks import Counter
from amidkd.training.lessons import Lessons, warm_start_of
from amidkd.training.objective import ScheduledObjective, learns_through_assistant, make_schedule
from amidkd.training.observing import Observer
from amidkd.training.settings import LossSettings
from amidkd.training.teaching import check_teacher, held_out_examples
from amidkd.training.warmup import check_warmup
from amidkd.training.weighting import AdaptiveSkew, TokenWeights

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = [
    "check_policy",
    "check_writer",
    "main_loss",
    "main_policy",
    "model_sizes",
    "validation_examples",
    "watched_examples",
]


def check_policy(config: RunConfig, verb: str, processes: int = 1) -> None:
    """Refuse settings of policy and objective that do not go together, before anything is loaded.

    Args:
        config: The run.
        verb: ``distill`` or ``sft``.
        processes: How many share the run.

    Raises:
        SettingError: Naming the setting.
    """
    policy, objective = config.policy, config.objective
    check_teacher(config, verb)
    check_warmup(config)
    writes = writes_while_training(policy)
    if writes and verb == "sft":
        raise SettingError(
            f"policy.kind: {policy.kind} has the student learn from its own text, which cross-entropy cannot teach it "
            "anything about; use amidkd distill, or policy.kind: dataset or sequence_level"
        )
    if verb == "sft" and objective.weighting.by in ("teacher_entropy", "disagreement"):
        raise SettingError(
            f"objective.weighting.by: {objective.weighting.by} needs the teacher's distributions, which amidkd sft "
            "does not ask for; use student_entropy or none, or amidkd distill"
        )
    if objective.student_text is not None and not _may_be_the_students(config):
        warn(
            f"objective.student_text has no effect with policy.kind: {policy.kind}, where the student writes no text",
            SettingWarning,
            stacklevel=2,
        )
    if writes_while_training(policy):
        _warn_of_other_numbers(policy.generation)
    if isinstance(policy, ContrastivePolicy) and policy.adaptive_skew:
        _check_skew(config)
    if isinstance(policy, AdaptivePolicy):
        _check_adaptive(config, policy, processes)


def _warn_of_other_numbers(sampling: StudentSampling) -> None:
    """Exact resume needs answers that hang on seed and stream alone."""
    engine = sampling.engine
    if isinstance(engine, TransformersEngine) and engine.continuous_batching and sampling.temperature > 0:
        warn(
            "policy.generation.engine.continuous_batching: sampled answers then depend on what else is written at the "
            "time, so a run that is killed and resumed does not end exactly as an uninterrupted one",
            SettingWarning,
            stacklevel=3,
        )


def _check_adaptive(config: RunConfig, policy: AdaptivePolicy, processes: int) -> None:
    data, training = config.data, config.training
    if data.validation is None and data.validation_rows is None:
        raise SettingError(
            "policy.kind: adaptive watches the validation loss; name rows in data.validation, or hold rows of the "
            "training file out with data.validation_rows"
        )
    check_capacity(
        policy.capacity // processes, training.per_device_train_batch_size * training.gradient_accumulation_steps
    )


def _may_be_the_students(config: RunConfig) -> bool:
    policy = config.policy
    return writes_while_training(policy) or (isinstance(policy, SequenceLevelPolicy) and policy.writer == "student")


def _check_skew(config: RunConfig) -> None:
    sides = {"objective": config.objective, "objective.student_text": config.objective.student_text}
    for name, side in sides.items():
        if side is None:
            continue
        skews = side.between in ("teacher||assistant", "student||assistant") and side.alpha == -1
        if side.terms is not None or not skews or not isinstance(side.lam, float):
            raise SettingError(
                f"policy.adaptive_skew needs {name} to be one skewed divergence: between teacher||assistant or "
                f"student||assistant, alpha: -1, lam a number; got between: {side.between}, alpha: {side.alpha}, lam: "
                f"{side.lam}{', terms' if side.terms is not None else ''}"
            )


def main_loss(config: RunConfig, *, verb: str, steps: int, vocab_size: int, corpus: bool) -> LossSettings:
    """What the main stage minimises.

    Args:
        config: The run.
        verb: ``distill`` or ``sft``.
        steps: Optimizer steps of the stage.
        vocab_size: Vocabulary shared by teacher and student.
        corpus: Whether there is plain text beside the rows.
    """
    objective, policy = config.objective, config.policy
    beta = make_schedule(policy.beta) if isinstance(policy, ContrastivePolicy) else None
    weights = TokenWeights(objective.weighting, beta)
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "kernels": config.kernels,
        "weights": None if weights.neutral else weights,
        "steps": steps,
    }
    if verb == "sft":
        return LossSettings(**shared)
    own = objective.student_text
    return LossSettings(
        objective=ScheduledObjective(objective, steps=steps),
        student_objective=None if own is None else ScheduledObjective(own, steps=steps),
        cross_entropy_weight=objective.cross_entropy_weight,
        temperature=objective.temperature,
        skew=AdaptiveSkew() if isinstance(policy, ContrastivePolicy) and policy.adaptive_skew else None,
        warn_where_stuck=warm_start_of(config) is None and learns_through_assistant(objective) and not corpus,
        **shared,
    )


def main_policy(
    config: RunConfig,
    *,
    student: Any,
    tokenizer: Any,
    lessons: Lessons,
    arguments: "TrainingArguments",
    vocab_size: int,
    folder: Path,
) -> Policy:
    """Whose text the main stage learns from.

    Args:
        config: The run.
        student: The model that is trained, not wrapped.
        tokenizer: Its tokenizer.
        lessons: The rows.
        arguments: The trainer's.
        vocab_size: Ids from here on are never written.
        folder: The run folder.

    Raises:
        SettingError: What the policy cannot work with.
    """
    room = PolicyRoom(
        examples=lessons.examples,
        prompts=lessons.prompts,
        max_length=config.data.max_length,
        generator=lambda sampling: _generator(
            sampling, student=student, tokenizer=tokenizer, arguments=arguments, vocab_size=vocab_size, folder=folder
        ),
        seed=arguments.seed,
        rank=arguments.process_index,
        world=arguments.world_size,
        counter=(lambda total: Counter(total, name="the student's text")) if arguments.process_index == 0 else None,
        rows_per_step=arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps,
    )
    return make_policy(config.policy, room)


def check_writer(
    config: RunConfig, student: Any, tokenizer: Any, *, arguments: "TrainingArguments", vocab_size: int, folder: Path
) -> None:
    """Make sure that the student can write, before hours go into other stages: a server must be there, and fit.

    Args:
        config: The run.
        student: The model that is trained.
        tokenizer: Its tokenizer.
        arguments: The trainer's.
        vocab_size: Ids from here on are never written.
        folder: The run folder.

    Raises:
        SettingError: A student without a generation config, or an engine that is not there.
    """
    policy = config.policy
    if not writes_while_training(policy):
        return
    if getattr(student, "generation_config", None) is None:
        raise SettingError(
            f"policy.kind: {policy.kind}: the student has no generation config, so it does not say how it ends an "
            "answer; save one beside its weights (GenerationConfig.from_model_config(model.config).save_pretrained)"
        )
    if isinstance(policy.generation.engine, VllmEngine) and policy.generation.engine.mode == "server":
        _generator(
            policy.generation,
            student=student,
            tokenizer=tokenizer,
            arguments=arguments,
            vocab_size=vocab_size,
            folder=folder,
        ).close()


def _generator(
    sampling: StudentSampling,
    *,
    student: Any,
    tokenizer: Any,
    arguments: "TrainingArguments",
    vocab_size: int,
    folder: Path,
) -> Generator:
    return make_generator(
        sampling,
        model=student,
        tokenizer=tokenizer,
        eos_ids=eos_ids_of(tokenizer, student),
        pad_id=pad_id_of(tokenizer),
        vocab_size=vocab_size,
        run_folder=folder,
        first=arguments.process_index == 0,
        rank=arguments.process_index,
        world=arguments.world_size,
        autocast=_autocast(arguments),
    )


def _autocast(arguments: "TrainingArguments") -> Any:
    import torch

    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None


def validation_examples(config: RunConfig, encoder: Encoder, vocab_size: int) -> Sequence[Example]:
    """The rows of the validation loss that ``policy.kind: adaptive`` watches; none under another policy.

    Args:
        config: The run.
        encoder: How rows become tokens.
        vocab_size: Ids from here on cannot be learnt.

    Raises:
        SettingError: No row with a completion, or one with an id that cannot be learnt.
    """
    policy = config.policy
    if not isinstance(policy, AdaptivePolicy):
        return ()
    why = "policy.kind: adaptive watches the validation loss"
    return held_out_examples(config, encoder, vocab_size, policy.validation_rows, why)


def watched_examples(
    observer: Observer | None, config: RunConfig, tokenizer: Any, vocab_size: int
) -> Sequence[Example]:
    """The rows of the validation loss that an observer asks for; none where nobody does.

    Args:
        observer: Who follows the training.
        config: The run.
        tokenizer: The student's.
        vocab_size: Ids from here on cannot be learnt.

    Raises:
        SettingError: No row with a completion, or one with an id that cannot be learnt.
    """
    if observer is None:
        return ()
    why = "sweep.pruner watches the validation loss"
    return held_out_examples(config, Encoder(tokenizer, config.data), vocab_size, observer.rows, why)


def model_sizes(student: Any, teacher: Any) -> dict[str, Any]:
    """Parameters of the models, as the record holds them.

    Args:
        student: The student.
        teacher: The teacher's model, or None.
    """
    parameters = list(student.parameters())
    sizes: dict[str, Any] = {
        "student": {
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        }
    }
    if teacher is not None:
        sizes["teacher"] = {"parameters": sum(p.numel() for p in teacher.parameters())}
    return sizes
