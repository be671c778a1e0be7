"""Short trainings under forward KL from a live teacher and from stored ones at equal bytes: what the errors come to."""

import copy
import random
import sys
from typing import Any

import numpy as np
import torch
from teachers_samples import slope, stored, stores
from teachers_world import World
from torch import Tensor

from amidkd.data import collate

__all__ = ["judged", "trained"]

TRAINED = ("top_k", "samples", "top k/2 and samples")


def trained(world: World, ks: list[int], seeds: list[int]) -> list[dict[str, Any]]:
    """A row for each store and seed: KL of the student from the live teacher on held-out rows, after the same steps."""
    first = next(world.batches(world.train, world.batch))
    some = world.teacher_log_probs(first).exp()[:2048]
    chosen = [None, *(store for store in stores(some, ks) if store.name in TRAINED)]
    said: list[Tensor] = []
    for sequences in world.batches(world.train, world.batch):
        counts = sequences.targets_BT[:, 1:].sum(-1).tolist()
        said += world.teacher_log_probs(sequences).exp().split(counts)
    rows = [{"world": world.name, "store": "untrained", "k": None, "seed": None, **judged(world, world.untrained)}]
    for store in chosen:
        # What is stored is the same in every epoch and for every seed.
        kept = said if store is None else [stored(store, p, np.random.default_rng(row)) for row, p in enumerate(said)]
        for seed in seeds:
            student, steps = _train(world, kept, seed)
            name, k, size = ("live", None, None) if store is None else (store.name, store.k, store.bytes)
            row = {"world": world.name, "store": name, "k": k, "bytes": size, "seed": seed, "steps": steps}
            rows.append(row | judged(world, student))
            print(f"{world.name}, {name}, k = {k}, seed {seed}", file=sys.stderr, flush=True)
    return rows


def _train(world: World, kept: list[Any], seed: int) -> tuple[Any, int]:
    student = copy.deepcopy(world.untrained).train()
    order, steps = random.Random(seed), len(world.train) // world.batch * world.epochs
    optimizer = torch.optim.AdamW(student.parameters(), lr=world.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(world.epochs):
        places = list(range(len(world.train)))
        order.shuffle(places)
        for start in range(0, len(places) - world.batch + 1, world.batch):
            chosen = places[start : start + world.batch]
            logits = world.logits(student, collate([world.train[place] for place in chosen], pad_id=0))
            parts = zip(chosen, logits.detach().split([len(kept[place]) for place in chosen]), strict=True)
            logits.backward(torch.cat([slope(kept[place], part) for place, part in parts]) / len(logits))
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return student.eval(), steps


@torch.no_grad()
def judged(world: World, student: Any) -> dict[str, float]:
    """Means over the held-out tokens, against the live teacher."""
    totals, tokens = np.zeros(4), 0
    for sequences in world.batches(world.held_out, 64):
        log_p = world.teacher_log_probs(sequences)
        log_q = world.logits(student, sequences).log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        found = (
            (p * (log_p - log_q)).sum(),
            (q * (log_q - log_p)).sum(),
            (log_p.argmax(-1) == log_q.argmax(-1)).sum(),
            -log_q.gather(-1, sequences.labels_N()[:, None]).sum(),
        )
        totals += np.array([float(value) for value in found])
        tokens += len(p)
    names = ("kl_teacher_student", "kl_student_teacher", "top1_agreement", "nll")
    return dict(zip(names, (totals / tokens).tolist(), strict=True))
