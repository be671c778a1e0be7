"""Distillation without a Trainer: plain PyTorch around one call, ``distillation_loss``.

    python examples/bare_loop.py recipes/g2p.yaml training.max_steps=50 data.label_fraction=1

Reads the same run file as ``amidkd distill`` and makes the same losses for its labelled rows: the trainer adds
checkpoints, several processes, logs, stages and a policy, not another objective.
"""

import math
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from amidkd.config import LiveTeacher, RunConfig, load
from amidkd.data import Encoder, Example, Sequences, collate, training_rows
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.models import Backbone, load_tokenizer, make_student, pad_id_of, student_tokenizer
from amidkd.teachers import make_live


def batches(examples: list[Example], config: RunConfig, pad_id: int) -> Iterator[list[Sequences]]:
    """The forward passes of one optimizer step after the other, epoch by epoch, in a new order each time."""
    size, parts = config.training.per_device_train_batch_size, config.training.gradient_accumulation_steps
    epoch = 0
    while True:
        order = np.random.default_rng((config.training.seed, epoch)).permutation(len(examples))
        made = [
            collate([examples[place] for place in order[start : start + size]], pad_id=pad_id)
            for start in range(0, len(order), size)
        ]
        yield from (made[start : start + parts] for start in range(0, len(made), parts))
        epoch += 1


def learning_rate(step: int, warmup: int, steps: int) -> float:
    """Factor on the peak: a straight line up, then half a cosine down."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def main(config: RunConfig) -> list[float]:
    """Train for ``training.max_steps`` steps and return the loss of each."""
    training, settings = config.training, config.objective
    assert isinstance(config.teacher, LiveTeacher), "a teacher in memory is needed"
    assert isinstance(settings.alpha, float), "this loop has no schedules"
    assert isinstance(settings.lam, float), "this loop has no schedules"

    # Text to tokens. Each example knows which of its tokens are supervised.
    tokenizer = load_tokenizer(student_tokenizer(config.student, config.teacher.model))
    examples = Encoder(tokenizer, config.data).encode(training_rows(config)).examples

    # Two models; a Backbone gives hidden states and head, so that logits over the vocabulary need never exist whole.
    teacher = make_live(config.teacher, student_tokenizer=tokenizer)
    model = make_student(config.student, tokenizer=tokenizer, seed=training.seed, teacher_model=teacher.model)
    student = Backbone(model)

    # D(teacher ‖ assistant), the assistant an α-mixture of teacher and student.
    objective = Objective(
        divergence=divergence(settings.divergence.name, **settings.divergence.parameters),
        between=settings.between,
        alpha=settings.alpha,
        lam=settings.lam,
        detach_assistant=settings.detach_assistant,
    )

    steps = training.max_steps
    warmup = math.ceil(training.warmup_steps * steps) if training.warmup_steps < 1 else int(training.warmup_steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, warmup, steps))

    torch.manual_seed(training.seed)
    losses = []
    model.train()
    for step, passes in zip(range(steps), batches(examples, config, pad_id_of(tokenizer)), strict=False):
        # One normaliser for the whole step, so that the gradient does not depend on how its rows are cut into passes.
        tokens = sum(sequences.token_count() for sequences in passes)
        total = 0.0
        for sequences in passes:
            out = distillation_loss(
                student=student(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT()),
                teacher=teacher.signal(sequences),
                objective=objective,
                labels=sequences.labels_N() if settings.cross_entropy_weight > 0 else None,
                cross_entropy_weight=settings.cross_entropy_weight,
                temperature=settings.temperature,
                denominator=tokens,
                vocab_size=teacher.vocab_size,
                backend=config.kernels.backend,
                memory_mb=config.kernels.memory_mb,
            )
            out.loss.backward()
            total += float(out.loss.detach())
        if not math.isfinite(total):
            raise RuntimeError(f"the loss is {total} at step {step + 1}")
        nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
        print(f"step {step + 1:5d}  loss {total:.6f}  tokens {tokens}")
    return losses


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(load(sys.argv[1], sys.argv[2:]))
