"""Whole trainers for on-policy training, each run in its own way for some steps: TRL's two and this package's."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from small import Pair, own_generator, quiet
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from amidkd.config import ObjectiveConfig, OnPolicy, StudentSampling
from amidkd.data import Example
from amidkd.generation import Generator, Prompts
from amidkd.policies import PolicyRoom, make_policy
from amidkd.teachers import LiveTeacher
from amidkd.training import DistillationTrainer, LossSettings, ScheduledObjective

__all__ = ["Run", "Work", "distillation_trainer", "gkd_trainer", "own_trainer"]


@dataclass(frozen=True)
class Work:
    """What everybody trains.

    Args:
        pair: Models, tokenizer and prompts.
        answer: Tokens of each answer.
        passes: Sequences in a forward pass.
        accumulation: Forward passes in a step.
        steps: Steps that are timed, after one that is not.
        folder: Where a trainer may keep files.
    """

    pair: Pair
    answer: int
    passes: int
    accumulation: int
    steps: int
    folder: str

    def arguments(self) -> dict[str, Any]:
        """What all trainers are told alike: float32, AdamW, no log and no checkpoint within the steps."""
        return {
            "output_dir": self.folder,
            "per_device_train_batch_size": self.passes,
            "gradient_accumulation_steps": self.accumulation,
            # The clock stops it long before.
            "max_steps": 100 * self.steps,
            "learning_rate": 1e-4,
            "optim": "adamw_torch",
            "bf16": self.pair.student.dtype == torch.bfloat16,
            "gradient_checkpointing": False,
            "use_cpu": self.pair.student.device.type == "cpu",
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }


@dataclass
class Writing:
    """How long a run has spent writing."""

    seconds: float = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


@dataclass
class Clock(TrainerCallback):
    """Seconds from the end of the first step to the end of the last, and how many of them were spent writing.

    The last is far from the last of the trainer's plan, so nobody logs or saves at it.
    """

    writing: Writing
    steps: int
    seconds: float = 0.0
    written: float = 0.0
    _began: float = field(default=0.0, repr=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start or stop."""
        if state.global_step == 1 + self.steps:
            control.should_training_stop = True
        elif state.global_step != 1:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        if state.global_step == 1:
            self.writing.seconds = 0.0
            self._began = time.perf_counter()
        else:
            self.seconds, self.written = time.perf_counter() - self._began, self.writing.seconds


@dataclass
class Run:
    """Trains with a new trainer and a new student each time.

    Args:
        make: Makes the trainer; all of this is outside the time.
        work: What it trains.
        shares: The part of the time spent writing, of each round.
    """

    make: Callable[[Work, Writing], Any]
    work: Work
    shares: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """One step and another, untimed."""
        self._train(1)

    def seconds(self) -> float:
        """Seconds of a step."""
        clock = self._train(self.work.steps)
        self.shares.append(clock.written / clock.seconds)
        return clock.seconds / self.work.steps

    def _train(self, steps: int) -> Clock:
        writing = Writing()
        clock = Clock(writing, steps)
        with quiet():
            torch.manual_seed(0)
            trainer = self.make(self.work, writing)
            for callback in (PrinterCallback, ProgressCallback):
                trainer.remove_callback(callback)
            trainer.add_callback(clock)
            trainer.train()
        if not clock.seconds:
            raise RuntimeError(f"stopped after {trainer.state.global_step} steps")
        return clock


def own_trainer(work: Work, writing: Writing, *, objective: ObjectiveConfig, reused: int = 1) -> DistillationTrainer:
    """This package's trainer with its on-policy policy.

    Args:
        work: What it trains.
        writing: Learns how long the student writes.
        objective: What it minimises.
        reused: Steps that the student writes for at once.
    """
    pair, student = work.pair, work.pair.new_student()
    answer, targets = (3,) * work.answer, (True,) * work.answer
    examples = [
        Example((*prompt, *answer), ((False,) * len(prompt)) + targets, row) for row, prompt in enumerate(pair.prompts)
    ]
    room = PolicyRoom(
        examples=examples,
        prompts=dict(enumerate(pair.prompts)),
        max_length=max(map(len, pair.prompts)) + work.answer,
        generator=lambda config: Timed(own_generator(pair, config, model=student), writing),
        seed=0,
        rows_per_step=work.passes * work.accumulation,
    )
    sampling = StudentSampling(max_new_tokens=work.answer)
    return DistillationTrainer(
        student=student,
        tokenizer=pair.tokenizer,
        arguments=TrainingArguments(remove_unused_columns=False, **work.arguments()),
        examples=examples,
        loss=LossSettings(objective=ScheduledObjective(objective, steps=100), vocab_size=pair.vocabulary),
        teacher=LiveTeacher(pair.teacher, pair.tokenizer, vocab_size=pair.vocabulary),
        policy=make_policy(OnPolicy(generation=sampling, steps_per_generation=reused), room),
    )


@dataclass
class Timed:
    """A generator whose calls are timed."""

    generator: Generator
    writing: Writing

    def __call__(self, prompts: Prompts, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
        """The generator's answers."""
        return self.writing.around(self.generator)(prompts, progress)

    def update_weights(self, version: int) -> None:
        """The generator's."""
        self.generator.update_weights(version)

    def close(self) -> None:
        """The generator's."""
        self.generator.close()


def _student(work: Work, writing: Writing) -> Any:
    """A new student whose ``generate`` is timed."""
    student = work.pair.new_student()
    student.generate = writing.around(student.generate)
    return student


def gkd_trainer(work: Work, writing: Writing) -> Any:
    """TRL's ``GKDTrainer``, on-policy in every step (λ = 1), Jensen–Shannon (β = ½).

    Its own collator wants chats; this one gives it the same prompts, ready as token ids.
    """
    from datasets import Dataset

    try:
        from trl.experimental.gkd import GKDConfig, GKDTrainer
    except ImportError:
        from trl import GKDConfig, GKDTrainer
    tokenizer = work.pair.tokenizer

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padded = tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt")
        prompts, attention = padded["input_ids"], padded["attention_mask"]
        # The data's own answers, which are never read but for their number.
        answers = torch.full((len(rows), work.answer), 3)
        labels = torch.cat([torch.full_like(prompts, -100), answers], dim=1)
        return {
            "prompts": prompts,
            "prompt_attention_mask": attention,
            "input_ids": torch.cat([prompts, answers], dim=1),
            "attention_mask": torch.cat([attention, torch.ones_like(answers)], dim=1),
            "labels": labels,
        }

    arguments = GKDConfig(
        lmbda=1.0, beta=0.5, temperature=1.0, max_new_tokens=work.answer, max_length=None, **work.arguments()
    )
    return GKDTrainer(
        model=_student(work, writing),
        teacher_model=work.pair.teacher,
        args=arguments,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in work.pair.prompts]),
        processing_class=tokenizer,
        data_collator=collate,
    )


def distillation_trainer(work: Work, writing: Writing) -> Any:
    """TRL's ``DistillationTrainer``, which is always on-policy; it writes once for all forward passes of a step."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    arguments = DistillationConfig(beta=0.5, temperature=1.0, max_completion_length=work.answer, **work.arguments())
    return DistillationTrainer(
        model=_student(work, writing),
        teacher_model=work.pair.teacher,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": text} for text in work.pair.texts]),
        processing_class=work.pair.tokenizer,
    )
