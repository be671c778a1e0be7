"""On-policy training, whole steps: this package's trainer against TRL's ``GKDTrainer`` and ``DistillationTrainer``."""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from context import Context
from names import DISTILLATION, ON_POLICY_ALPHA, OWN_AMID, OWN_REUSE, OWN_TRAINER, REUSED, TRAINER
from small import Pair, pairs
from timing import Row, reason
from trainers import Run, Work, distillation_trainer, gkd_trainer, own_trainer

from amidkd.config import ObjectiveConfig

__all__ = ["run"]

METHODS = (TRAINER, DISTILLATION, OWN_TRAINER, OWN_AMID, OWN_REUSE)


def _makers() -> dict[str, Callable[..., Any]]:
    """Who trains, by name. GKD's divergence with β = ½ is a sum of two with α = −1 and λ = ½."""
    half = {"alpha": -1.0, "lam": 0.5, "weight": 0.5}
    terms = [{"between": between, **half} for between in ("teacher||assistant", "student||assistant")]
    gkd = ObjectiveConfig.model_validate({"terms": terms})
    return {
        TRAINER: gkd_trainer,
        DISTILLATION: distillation_trainer,
        OWN_TRAINER: partial(own_trainer, objective=gkd),
        OWN_AMID: partial(own_trainer, objective=ObjectiveConfig(alpha=ON_POLICY_ALPHA)),
        OWN_REUSE: partial(own_trainer, objective=gkd, reused=REUSED),
    }


def _rows(context: Context, pair: Pair, folder: str) -> list[Row]:
    sizes = context.sizes
    work = Work(
        pair=pair,
        answer=sizes.answer,
        passes=pair.passes,
        accumulation=sizes.accumulation,
        steps=sizes.on_policy_steps,
        folder=folder,
    )
    runs = {name: Run(make, work) for name, make in _makers().items()}
    rows = context.timed(
        "on_policy",
        pair.name,
        runs,
        rounds=sizes.rounds[2],
        missing={},
        timer=lambda run: run.seconds(),
        seconds=sizes.training_seconds,
    )
    tokens = pair.passes * sizes.accumulation * sizes.answer
    for row in rows:
        if row.rounds:
            row.figures = {"tokens": float(tokens), "writing": statistics.median(runs[row.method].shares)}
    return rows


def run(context: Context) -> Iterator[tuple[str, str, list[Row]]]:
    """Groups with the name of their yardstick and their rows."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.manual_seed(context.seed)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in pairs(context.sizes, device=context.device):
            try:
                rows = _rows(context, make(), folder)
            except Exception as error:  # Whatever keeps the models from being there is the rows' answer.
                rows = [Row("on_policy", context.heap, name, method, missing=reason(error)) for method in METHODS]
            yield name, TRAINER, rows
