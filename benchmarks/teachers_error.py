"""Error of each objective when a teacher is stored, against the same teacher in memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from teachers_samples import stores
from teachers_world import World, stored_hidden, stored_top_k
from torch import Tensor

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.maths.coarse import truncate
from amidkd.maths.objective import AnyObjective
from amidkd.signals import Hidden, Logits, Signal, TopK

__all__ = ["OBJECTIVES", "errors"]

KS = (8, 16, 32, 64, 128, 256, 512)

AMID = {"between": "teacher||assistant", "lam": 0.1}
SKEWED: Any = {"divergence": divergence("kl"), "alpha": -1.0}

OBJECTIVES: dict[str, AnyObjective] = {
    "forward KL": Objective(divergence=divergence("kl"), between="teacher||student"),
    "reverse KL": Objective(divergence=divergence("kl"), between="student||teacher"),
    "Jeffreys": Objective(divergence=divergence("jeffreys"), between="teacher||student"),
    "skew forward KL, κ = 0.1": Objective(between="teacher||assistant", lam=0.1, **SKEWED),
    "skew reverse KL, κ = 0.1": Objective(between="student||assistant", lam=0.9, **SKEWED),
    "TAID, t = 0.5": Objective(
        divergence=divergence("kl"), between="assistant||student", alpha=1.0, lam=0.5, detach_assistant=True
    ),
    "Jensen–Shannon, GKD β = 0.5": Objective(divergence=divergence("jensen_shannon"), between="teacher||student"),
    "total variation": Objective(divergence=divergence("total_variation"), between="teacher||student"),
    "squared Hellinger": Objective(divergence=divergence("squared_hellinger"), between="teacher||student"),
    "χ²": Objective(divergence=divergence("chi_squared"), between="teacher||student"),
    "ABKD, (0.2, 0.7)": Objective(divergence=divergence("alpha_beta", a=0.2, b=0.7), between="teacher||student"),
    "AMiD, α = −0.5": Objective(divergence=divergence("kl"), alpha=-0.5, **AMID),
    "AMiD, α = −3": Objective(divergence=divergence("kl"), alpha=-3.0, **AMID),
    "AMiD, α = −5": Objective(divergence=divergence("kl"), alpha=-5.0, **AMID),
    "AMiD, α = −3, αβ(0.2, 0.7)": Objective(divergence=divergence("alpha_beta", a=0.2, b=0.7), alpha=-3.0, **AMID),
}

Form = Callable[[Tensor, AnyObjective], Tensor]


def _loss(signal: Signal) -> Form:
    def form(logits: Tensor, objective: AnyObjective) -> Tensor:
        return distillation_loss(
            student=Logits(logits), teacher=signal, objective=objective, backend="naive", reduction="sum"
        ).loss

    return form


def _both_renormalised(top: TopK) -> Form:
    """Teacher and student cut to the K tokens and renormalised there: what lies beyond does not exist."""

    def form(logits: Tensor, objective: AnyObjective) -> Tensor:
        return _loss(Logits(top.log_probs))(logits.gather(-1, top.ids), objective)

    return form


def _partial_sum(top: TopK) -> Form:
    """Σ over the K tokens alone of p (log p − log q), nothing renormalised: no divergence, it can be negative."""

    def form(logits: Tensor, objective: AnyObjective) -> Tensor:
        log_q = logits.log_softmax(-1).gather(-1, top.ids)
        return (top.log_probs.exp() * (top.log_probs - log_q)).sum()

    return form


def _forms(log_p: Tensor, hidden: Hidden, ks: list[int]) -> Iterator[tuple[str, int | None, Form]]:
    yield "hidden", None, _loss(stored_hidden(hidden))
    yield "hidden, float16", None, _loss(replace(hidden, states=hidden.states.half().float()))
    for k in ks:
        top = stored_top_k(log_p, k)
        yield "top_k", k, _loss(top)
        certain = torch.full_like(log_p[:, 0], -torch.inf)
        yield "teacher renormalised, 0 elsewhere", k, _loss(TopK(top.ids, top.log_probs.log_softmax(-1), certain))
        yield "both renormalised", k, _both_renormalised(top)
        yield "partial sum", k, _partial_sum(top)
    p, generator = log_p.exp(), np.random.default_rng(0)
    for store in stores(p, [k for k in ks if k <= 64]):
        if store.name == "samples" and store.estimate is not None:
            yield store.name, store.k, _loss(Logits(store.estimate(p, generator).log()))


def errors(world: World, tokens: int) -> list[dict[str, Any]]:
    """A row for each objective, form and k: error of the loss, of the logits' and of the parameters' gradient."""
    sequences = next(world.batches(world.held_out, _rows_for(world, tokens)))
    logits = world.logits(world.student, sequences)
    log_p, hidden = world.teacher_log_probs(sequences), world.teacher_states(sequences)
    parameters = [p for p in world.student.parameters() if p.requires_grad]
    ks = sorted({min(k, world.vocab_size) for k in KS})
    tails = {k: float(truncate(log_p, k)[2].exp().mean()) for k in ks}
    leaf = logits.detach().requires_grad_()

    def measure(form: Form, objective: AnyObjective) -> tuple[float, Tensor, Tensor]:
        loss = form(leaf, objective)
        (slope,) = torch.autograd.grad(loss, leaf)
        through = torch.autograd.grad(logits, parameters, slope, retain_graph=True)
        return float(loss.detach()) / len(leaf), slope, torch.cat([part.flatten() for part in through])

    rows = []
    for name, objective in OBJECTIVES.items():
        live = measure(_loss(Logits(log_p)), objective)
        for form_name, k, form in _forms(log_p, hidden, ks):
            if form_name == "partial sum" and name != "forward KL":
                continue
            found = measure(form, objective)
            rows.append(
                {
                    "world": world.name,
                    "tokens": len(leaf),
                    "objective": name,
                    "form": form_name,
                    "k": k,
                    "teacher_tail_mass": tails.get(k) if k else None,
                    "live_loss": live[0],
                    "loss": found[0],
                    "loss_error": found[0] / live[0] - 1,
                    **_compared("logits", found[1], live[1]),
                    **_compared("parameters", found[2], live[2]),
                }
            )
    return rows


def _rows_for(world: World, tokens: int) -> int:
    total = 0
    for count, example in enumerate(world.held_out, start=1):
        total += example.token_count()
        if total >= tokens:
            return count
    return len(world.held_out)


def _compared(name: str, found: Tensor, true: Tensor) -> dict[str, float]:
    found, true = found.double().flatten(), true.double().flatten()
    return {
        f"{name}_gradient_error": float((found - true).norm() / true.norm()),
        f"{name}_gradient_cosine": float(found @ true / (found.norm() * true.norm())),
    }
