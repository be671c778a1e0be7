"""A whole training step: forward of student and teacher, loss, backward, optimizer."""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import peers
import torch
from context import Context
from names import ALPHAS, LOOP, TRAINER, alpha_case, group
from sizes import Sizes
from small import small_llama
from timing import Row, reason
from torch import Tensor

from amidkd.kernels import distillation_loss
from amidkd.models import Backbone

__all__ = ["run"]


@dataclass(frozen=True)
class Batch:
    """Token ids [B, T], and where the token at t + 1 is supervised [B, T]."""

    tokens: Tensor
    predicts: Tensor

    @property
    def count(self) -> Tensor:
        """How many tokens are supervised."""
        return self.predicts.sum()


def _batch(sizes: Sizes, *, device: str) -> Batch:
    tokens = torch.randint(3, sizes.vocabulary, (sizes.batch, sizes.length), device=device)
    predicts = torch.zeros_like(tokens, dtype=torch.bool)
    predicts[:, sizes.prompt - 1 : -1] = True
    return Batch(tokens, predicts)


def _optimized(model: Any, loss_and_backward: Callable[[], None]) -> Callable[[], None]:
    """A step: the same optimizer around everybody's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_and_backward()
        optimizer.step()

    return call


def _own_loop(student: Any, teacher: Backbone, batch: Batch, *, case: str, backend: str) -> Callable[[], None]:
    backbone, objective, attention = Backbone(student), peers.objective_of(case), torch.ones_like(batch.tokens)

    def loss_and_backward() -> None:
        with torch.no_grad():
            teaching = teacher(batch.tokens, attention, batch.predicts)
        learning = backbone(batch.tokens, attention, batch.predicts)
        distillation_loss(student=learning, teacher=teaching, objective=objective, backend=backend).loss.backward()

    return _optimized(student, loss_and_backward)


def _textbook_loop(student: Any, teacher: Any, batch: Batch) -> Callable[[], None]:
    """Logits of all positions of both models, the textbook loss of all, and a mask at the end."""
    mask = batch.predicts[:, :-1].reshape(-1).float()

    def loss_and_backward() -> None:
        with torch.no_grad():
            teaching = teacher(input_ids=batch.tokens).logits[:, :-1].flatten(0, 1)
        learning = student(input_ids=batch.tokens).logits[:, :-1].flatten(0, 1)
        values = peers.textbook(ALPHAS[0], learning, teaching)
        ((values * mask).sum() / mask.sum()).backward()

    return _optimized(student, loss_and_backward)


def _trainer_step(student: Any, teacher: Any, batch: Batch, folder: str) -> Callable[[], None]:
    """TRL's own training step (β = ½, nothing generated), without the collator and the logging around it."""
    found = peers.trl_trainer()
    if isinstance(found, peers.Missing):
        raise RuntimeError(found.why)
    from datasets import Dataset

    from amidkd.demo.tokenizer import build_tokenizer

    try:
        from trl.experimental.gkd import GKDConfig
    except ImportError:
        from trl import GKDConfig
    half = student.dtype == torch.bfloat16
    with warnings.catch_warnings():
        # Advice to its users; nothing of it changes what the step computes.
        warnings.simplefilter("ignore")
        arguments = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=0.5,
            report_to=[],
            use_cpu=batch.tokens.device.type == "cpu",
            bf16=half,
            gradient_checkpointing=False,
            max_steps=1,
        )
        trainer = found(
            model=student,
            teacher_model=teacher,
            args=arguments,
            train_dataset=Dataset.from_list([{"input_ids": batch.tokens[0].tolist()}]),
            processing_class=build_tokenizer(),
            data_collator=lambda rows: rows,
        )
    trainer.model.train()
    labels = torch.full_like(batch.tokens, -100)
    labels[:, 1:] = batch.tokens[:, 1:].masked_fill(~batch.predicts[:, :-1], -100)
    inputs = {"input_ids": batch.tokens, "attention_mask": torch.ones_like(batch.tokens), "labels": labels}
    return _optimized(student, lambda: trainer.training_step(trainer.model, dict(inputs), batch.count))


def run(context: Context) -> Iterator[tuple[str, str, list[Row]]]:
    """Groups with the name of their yardstick and their rows."""
    sizes, dtype = context.sizes, context.sizes.dtypes[0]
    torch.manual_seed(context.seed)
    made = {"device": context.device, "dtype": getattr(torch, dtype), "positions": sizes.length, "use_cache": False}
    start, teacher = (small_llama(width * sizes.step_width, sizes, **made) for width in (1, 2))
    teacher.eval()
    teacher.requires_grad_(False)
    batch, own = _batch(sizes, device=context.device), peers.own_backends(context.device)
    signal = Backbone(teacher)
    with tempfile.TemporaryDirectory() as folder:
        for case in (alpha_case(ALPHAS[0]), "jsd"):
            calls, missing = {}, {}
            yardstick = TRAINER if case == "jsd" else LOOP
            try:
                student = copy.deepcopy(start)
                if case == "jsd":
                    calls[yardstick] = _trainer_step(student, copy.deepcopy(teacher), batch, folder)
                else:
                    calls[yardstick] = _textbook_loop(student, teacher, batch)
            except Exception as error:  # Whatever a trainer's construction raises is its row's answer.
                missing[yardstick] = reason(error)
            for backend in own.names:
                calls[backend] = _own_loop(copy.deepcopy(start), signal, batch, case=case, backend=backend)
            name = group(case, dtype)
            yield name, yardstick, context.timed("step", name, calls, rounds=sizes.rounds[2], missing=missing)
