"""The one subclass of ``transformers.Trainer``: distillation and fine-tuning through the same step.

What is its own: batches that depend on seed and epoch alone; the loss of a step divided by the supervised tokens of all
its forward passes and ranks; checkpoints that are whole or not there, from which a run goes on exactly; a stop
before the optimizer's step where the loss is not finite.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from amidkd.data import Collator, Example, Sequences
from amidkd.errors import SettingError, SettingWarning, TeacherError
from amidkd.generation import GenerationError
from amidkd.kernels import LossOutput
from amidkd.models import Backbone, eos_ids_of, pad_id_of
from amidkd.policies import DatasetPolicy, Policy
from amidkd.record import RunFolder
from amidkd.teachers import Teacher
from amidkd.training.arguments import steps_of
from amidkd.training.asking import Asking
from amidkd.training.batches import CorpusBatches, CorpusRows, EpochBatches, Rows
from amidkd.training.checkpoint import (
    cut_metrics,
    keep_newest,
    load_tensors,
    new_checkpoint,
    read_state,
    save_tensors,
    step_of,
    write_state,
)
from amidkd.training.choosing import Chooser
from amidkd.training.failure import STUCK, Pass, describe_stuck, gradient_is_finite
from amidkd.training.fingerprint import check_same_run
from amidkd.training.hooks import Journal, StepHooks
from amidkd.training.losses import hard_loss, soft_loss
from amidkd.training.metrics import Measured, Progress
from amidkd.training.settings import Corpus, LossSettings, Tokens
from amidkd.training.stopping import stop_on_loss, stop_on_teacher, stop_on_writing
from amidkd.training.validation import validation_loss

__all__ = ["DistillationTrainer"]


class DistillationTrainer(Trainer):
    """Trains a student on a teacher's signal, or without a teacher by cross-entropy.

    The loss of an optimizer step is Σ_n ℓ_n / N over its N supervised tokens, on all ranks and in all accumulation
    steps; so the gradient does not depend on how the rows are spread over them.

    Args:
        student: A causal model, not wrapped for distribution.
        tokenizer: Its tokenizer.
        arguments: See :func:`~amidkd.training.training_arguments`.
        examples: The rows.
        loss: What to minimise.
        teacher: What to learn from; None: cross-entropy alone.
        policy: Whose sequences are learnt from.
        validation: Rows of the validation loss that some policies ask for.
        corpus: Plain text beside the rows.
        settings: What decides the run's numbers; a checkpoint made with others is refused.
        places: File and line of each row, by ``Row.index``, for messages.
        name: What the progress bar calls the stage.
        show_progress: Whether there is a progress bar.

    Raises:
        SettingError: Sharded training, or a teacher without an objective.
    """

    def __init__(
        self,
        *,
        student: Any,
        tokenizer: Any,
        arguments: TrainingArguments,
        examples: Sequence[Example],
        loss: LossSettings,
        teacher: Teacher | None = None,
        policy: Policy | None = None,
        validation: Sequence[Example] = (),
        corpus: Corpus | None = None,
        settings: dict[str, Any] | None = None,
        places: Sequence[str] | None = None,
        name: str = "training",
        show_progress: bool = False,
    ) -> None:
        if (teacher is None) != (loss.objective is None):
            raise SettingError("a teacher and an objective belong together: give both, or neither (cross-entropy)")
        super().__init__(
            model=student, args=arguments, train_dataset=Rows(examples), data_collator=Collator(pad_id_of(tokenizer))
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SettingError("FSDP and DeepSpeed are not supported in this version; use plain data parallelism")
        # The loss is divided by the tokens of the whole step already; Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.teacher, self.loss, self.settings = teacher, loss, settings or {}
        self.policy: Policy = DatasetPolicy() if policy is None else policy
        self.places, self.tokenizer = places, tokenizer
        self.progress, self.last_backend = Progress(), ""
        self.total_steps = steps_of(arguments, len(examples))
        self._backbone = Backbone(student)
        self._examples, self._corpus = examples, corpus
        self._make_batches(len(examples))
        self._chooser = Chooser(
            self.policy,
            self._batches,
            passes=arguments.gradient_accumulation_steps,
            total=self.total_steps,
            validate=lambda: validation_loss(self, validation),
            add_up=self.add_up,
            eos_ids=frozenset(eos_ids_of(tokenizer, student)),
        )
        self._asking = None if teacher is None else Asking(teacher, self.add_up, self._upcoming)
        self._begin_step(Tokens(0))
        self._saving_to: Path | None = None
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(StepHooks(self))
        self._journal = Journal(RunFolder(Path(arguments.output_dir)), name=name, show=show_progress)
        self.add_callback(self._journal)
        # Ranks must not drop the same units out.
        torch.manual_seed(arguments.seed + arguments.process_index)

    # Batches

    def _make_batches(self, count: int) -> None:
        arguments, corpus = self.args, self._corpus
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        place = {"rank": arguments.process_index, "world": arguments.world_size}
        size = arguments.per_device_train_batch_size
        self._batches = EpochBatches(count, batch_size=size, seed=seed, **place)
        self._corpus_batches: CorpusBatches | None = None
        if corpus is not None:
            whole = size * arguments.gradient_accumulation_steps * arguments.world_size
            # Another stream than the rows', whatever their number.
            rows = CorpusRows(len(corpus.windows), per_step=corpus.per_step or whole, seed=seed + 2**32, **place)
            self._corpus_batches = CorpusBatches(corpus.windows, rows, self.data_collator)

    def get_train_dataloader(self) -> DataLoader:
        """The rows in batches of this rank; places and tensors stay on the CPU until they are used."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=self.args.dataloader_prefetch_factor,
            # A generator of its own, so that starting an epoch draws nothing from the one that dropout uses.
            generator=torch.Generator(),
        )

    def choose_epoch(self) -> None:
        """Set the order of the epoch that the next step belongs to."""
        per_epoch = self._batches.steps_per_epoch(self.args.gradient_accumulation_steps)
        self._batches.set_epoch(self.state.global_step // per_epoch)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Sequences | None]], Tokens]:
        """Draw the forward passes of an optimizer step, as the policy chooses, and count over all ranks.

        Args:
            epoch_iterator: The data loader's.
            num_batches: Forward passes of the step.
            device: Where the tensors go.
        """
        drawn = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        try:
            rows = self._chooser.rows(self.state.global_step)
        except GenerationError as error:
            stop_on_writing(self, error)
        if rows is not None:
            drawn = [self.data_collator(list(part)) for part in rows]
        sequences = [Sequences.from_batch(batch).to(device) for batch in drawn]
        corpus: list[Sequences | None] = [None] * len(drawn)
        if self._corpus_batches is not None:
            corpus = [batch.to(device) for batch in self._corpus_batches.of(self.state.global_step, len(drawn))]
        tokens = self._chooser.count(rows, sequences, [text for text in corpus if text is not None])
        try:
            if self._asking is not None:
                self._asking.begin(self.state.global_step, sequences)
        except (TeacherError, SettingError) as error:
            self._chooser.take_back()
            stop_on_teacher(self, error)
        self._begin_step(tokens)
        passes = [{"sequences": one, "corpus": text} for one, text in zip(sequences, corpus, strict=True)]
        return passes, tokens

    def _upcoming(self, step: int) -> list[Sequences]:
        """The forward passes of a step whose rows are known beforehand."""
        if self._chooser.writes or step >= self.total_steps:
            return []
        rows, places = Rows(self._examples), self._batches.of_step(step, self.args.gradient_accumulation_steps)
        return [Sequences.from_batch(self.data_collator([rows[place] for place in part])) for part in places]

    def add_up(self, values: list[float]) -> list[float]:
        """Sum numbers over all ranks; every rank must call it."""
        if self.args.world_size == 1:
            return values
        kind = torch.float32 if self.args.device.type == "mps" else torch.float64
        total = self.accelerator.reduce(torch.tensor(values, dtype=kind, device=self.args.device), reduction="sum")
        return [float(value) for value in total.tolist()]

    # One step

    def _begin_step(self, tokens: Tokens) -> None:
        self.step_tokens = tokens
        self._passes: list[Pass] = []
        self._corpus_losses: list[Tensor] = []
        self._measured = Measured()
        self._step_settings = {**self.loss.report(self.state.global_step), **self.policy.report()}

    def will_log(self, step: int) -> bool:
        """Whether a log line follows an optimizer step.

        Args:
            step: Optimizer steps made after it.
        """
        first = step == 1 and self.args.logging_first_step
        return first or step % max(1, self.state.logging_steps) == 0 or step >= self.total_steps

    @property
    def _is_watched(self) -> bool:
        """Whether the first step is measured, to warn where it can teach nothing."""
        return self.loss.warn_where_stuck and self.state.global_step == 0

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The part of one forward pass in the loss of its optimizer step.

        Args:
            model: The student as it is wrapped for distribution.
            inputs: ``sequences`` and ``corpus``.
            return_outputs: Not used: the logits never exist.
            num_items_in_batch: The step's :class:`Tokens`.
        """
        sequences, tokens = inputs["sequences"], num_items_in_batch
        measure = self.will_log(self.state.global_step + 1) or self._is_watched
        out = self._loss_of(model, sequences, tokens, measure=measure)
        self.last_backend = out.backend
        self._measured.add(out.metrics)
        loss = out.loss
        text = inputs["corpus"]
        if text is not None and self._corpus is not None:
            corpus = hard_loss(self.loss, student=self._signal(model, text), sequences=text, count=tokens.corpus).loss
            self._corpus_losses.append(corpus.detach())
            loss = loss + self._corpus.weight * corpus
        self._passes.append(Pass(loss.detach(), sequences))
        # Gradients are averaged over the ranks; the sum is wanted.
        return loss * self.args.world_size

    def _loss_of(self, model: nn.Module, sequences: Sequences, tokens: Tokens, *, measure: bool) -> LossOutput:
        student = self._signal(model, sequences)
        if self._asking is None:
            return hard_loss(
                self.loss,
                student=student,
                sequences=sequences,
                count=tokens.data,
                step=self.state.global_step,
                measure=measure,
                weighted=True,
            )
        return soft_loss(
            self.loss,
            student=student,
            teacher=self._asking.signal(sequences),
            sequences=sequences,
            step=self.state.global_step,
            count=tokens.data,
            measure=measure,
        )

    def signal_of(self, sequences: Sequences) -> Any:
        """What the student says at the supervised positions of a batch."""
        return self._signal(self.model, sequences)

    def _signal(self, model: nn.Module, sequences: Sequences) -> Any:
        return self._backbone(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT(), through=model)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: tokens are counted instead."""
        return 0

    def finish_step(self) -> None:
        """Add up the step's loss over all ranks; called when all gradients are there, before the optimizer's step.

        Raises:
            LossError: The loss or the gradient is not finite.
        """
        losses = torch.stack([one.loss for one in self._passes]).double()
        corpus = torch.stack(self._corpus_losses).double().sum() if self._corpus_losses else losses.new_zeros(())
        sound = torch.isfinite(losses).all()
        # Under a gradient scaler an overflow is normal: the scaler leaves that step out.
        if not self.args.fp16:
            sound &= gradient_is_finite(self.model).to(sound.device)
        values = torch.stack([losses.sum(), corpus, (~sound).double()]).tolist()
        loss, corpus_loss, unsound = self.add_up(values)
        if unsound > 0:
            stop_on_loss(self, self._passes, losses)
        self.progress.add(loss=loss, corpus=corpus_loss, tokens=self.step_tokens)
        self.loss.observe(self.state.global_step, loss, self.add_up)
        if self._is_watched:
            self._warn_where_stuck()

    def _warn_where_stuck(self) -> None:
        mean = self._measured.means(self.add_up).get("responsibility")
        if mean is not None and mean < STUCK and self.is_world_process_zero():
            warn(describe_stuck(mean), SettingWarning, stacklevel=2)

    # Checkpoints

    def fit(self, checkpoint: Path | None) -> TrainOutput | None:
        """Train, from the start or from where a checkpoint stands; a stage that is finished only loads its weights.

        Args:
            checkpoint: A checkpoint folder of this stage, or None.

        Raises:
            SettingError: The checkpoint is another run's.
            LossError: The loss is not finite.
        """
        folder = Path(self.args.output_dir)
        state = None
        if checkpoint is not None:
            state = read_state(checkpoint)
            check_same_run(state["settings"], self.settings, where=str(checkpoint))
            self._load_ours(checkpoint, state)
        step = 0 if checkpoint is None else step_of(checkpoint)
        if self.is_world_process_zero():
            cut_metrics(folder, step)
        self.accelerator.wait_for_everyone()
        if checkpoint is not None and step >= self.total_steps:
            self._load_from_checkpoint(str(checkpoint))
            self.state.global_step = step
            return None
        self.progress.start()
        try:
            return self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            self._journal.close()

    def _load_ours(self, checkpoint: Path, state: dict[str, Any]) -> None:
        self.progress.load_state(state["progress"])
        self.last_backend = state["backend"]
        self.loss.load_state(state["loss"])
        self.policy.load_state(load_tensors(checkpoint, self.args.process_index))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint under a temporary name, all ranks, and move it into place."""
        folder, step = Path(self.args.output_dir), self.state.global_step
        first = self.is_world_process_zero()
        with new_checkpoint(folder, step, first=first, wait=self.accelerator.wait_for_everyone) as temporary:
            self._saving_to = temporary
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving_to = None
            target = temporary / f"checkpoint-{step}"
            save_tensors(target, self.args.process_index, self.policy.state())
            if first:
                self.tokenizer.save_pretrained(target)
                write_state(target, self._our_state())
        if first:
            keep_newest(folder, self.args.save_total_limit)

    def save_now(self) -> None:
        """Write a checkpoint of the steps made so far; every rank must call it."""
        self._save_checkpoint(self.model, None)

    def _our_state(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "progress": self.progress.state(),
            "loss": self.loss.state(),
            "backend": self.last_backend,
        }

    def _get_output_dir(self, trial: Any) -> str:
        """Where the checkpoint folder of this moment goes: into the temporary folder while one is written."""
        return str(super()._get_output_dir(trial) if self._saving_to is None else self._saving_to)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete the trainer's line with all that is measured; every logger gets the same."""
        if "loss" in logs:
            window = self.progress.line(corpus=self._corpus is not None, writes=self._chooser.writes)
            logs = {**logs, **self._measured.means(self.add_up), **self._step_settings, **window}
        super().log(logs, start_time)
