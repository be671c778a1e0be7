"""The validation loss that a policy may ask for while it trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from amidkd.data import Example, Sequences
from amidkd.models import evaluating
from amidkd.training.losses import hard_loss

if TYPE_CHECKING:
    from amidkd.training.trainer import DistillationTrainer

__all__ = ["validation_loss"]


@torch.no_grad()
def validation_loss(trainer: "DistillationTrainer", examples: Sequence[Example]) -> float:
    """Cross-entropy of held-out rows, nats per supervised token, in evaluation mode; every rank must call it.

    Args:
        trainer: Whose student is measured.
        examples: All rows; each rank takes its share.
    """
    arguments, device = trainer.args, trainer.args.device
    mine = examples[arguments.process_index :: arguments.world_size]
    size = arguments.per_device_train_batch_size
    total = tokens = 0.0
    with evaluating(trainer.model), trainer.compute_loss_context_manager():
        for start in range(0, len(mine), size):
            batch = trainer.data_collator(list(mine[start : start + size]))
            sequences = Sequences.from_batch(batch).to(device)
            signal = trainer.signal_of(sequences)
            # Divided by 1: the sum.
            total += float(hard_loss(trainer.loss, student=signal, sequences=sequences, count=1).loss)
            tokens += sequences.token_count()
    total, tokens = trainer.add_up([total, tokens])
    return total / max(1.0, tokens)
