"""Samples of the teacher's distribution in place of its top k, at equal bytes, under forward KL.

The source is Sparse Logit Sampling (Anshumann et al., ACL 2025): n draws from a proposal made from p, each weighed by
p / proposal, are an unbiased estimate of p, hence of forward KL's gradient q − p. `top_k` with its tail has no noise,
but a bias within the tail. Noise averages out over tokens, bias does not: both errors are shown, of one token and of
a batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from teachers_world import World, stored_top_k
from torch import Tensor

from amidkd.maths.coarse import coarse_grain, with_tail

__all__ = ["Store", "Top", "batch_errors", "drawn", "slope", "stored", "stores", "top_k_bytes"]

ID = 2
"""Bytes of a token's id: both vocabularies fit uint16."""

COUNT, MANY, WEIGHT = 1, 2, 2
"""Bytes of a count up to 255, of a larger one, and of a weight or log-probability in float16."""

MOST = 65_535
"""Draws: the largest count in two bytes."""

Estimate = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Store:
    """A way to store a teacher.

    Args:
        name: What tables call it.
        k: At whose bytes.
        bytes: Of a token, as measured on the teacher's distributions.
        draws: Samples of a token, 0 for none.
        estimate: From p [N, V] to an estimate of p [N, V]; None: `top_k` with its tail.
    """

    name: str
    k: int
    bytes: float
    draws: int
    estimate: Estimate | None


def top_k_bytes(k: int) -> int:
    """Bytes of a token: ids, float16 log-probabilities, float32 tail."""
    return k * (ID + WEIGHT) + 4


def drawn(proposal: Tensor, draws: int, generator: np.random.Generator) -> Tensor:
    """How often each token was drawn [N, V]; nothing where the proposal has no mass."""
    chances = proposal.double().numpy()
    total = chances.sum(-1, keepdims=True)
    counts = generator.multinomial(
        draws, np.where(total > 0, chances / np.maximum(total, 1e-300), 1 / chances.shape[-1])
    )
    return torch.from_numpy(counts * (total > 0)).float()


def _samples(draws: int, power: float) -> Estimate:
    def estimate(p: Tensor, generator: np.random.Generator) -> Tensor:
        if power == 1.0:
            return drawn(p, draws, generator) / draws
        proposal = p**power / (p**power).sum(-1, keepdim=True)
        weighed = drawn(proposal, draws, generator) / draws * (p / proposal)
        return weighed.half().float()

    return estimate


def _top_and_samples(k: int, draws: int) -> Estimate:
    """The k likeliest as they are; what is beyond them by samples of the tail. Unbiased too."""

    def estimate(p: Tensor, generator: np.random.Generator) -> Tensor:
        top = stored_top_k(p.log(), k)
        known = top.log_probs.exp()
        rest = p.scatter(-1, top.ids, 0.0)
        beyond = drawn(rest, draws, generator) / draws * rest.sum(-1, keepdim=True)
        return beyond.scatter(-1, top.ids, known)

    return estimate


def _most_draws(p: Tensor, budget: float, size: Callable[[Tensor, int], Tensor]) -> tuple[int, float]:
    """The most draws whose mean bytes stay within the budget (to 3 %), and those bytes."""
    best, cost, draws = 0, 0.0, 1.0
    while draws <= MOST:
        found = float(size(p, int(draws)).mean())
        if found > budget:
            break
        best, cost = int(draws), found
        draws = max(draws + 1, draws * 1.03)
    return best, cost


def stores(p: Tensor, ks: list[int]) -> Iterator[Store]:
    """Every way to store the teacher at the bytes of each k.

    Args:
        p: Some of the teacher's distributions [N, V], from which the number of draws is set.
        ks: Values of k.
    """

    def expected(proposal: Tensor, draws: int) -> Tensor:
        """Expected number of distinct tokens [N]."""
        return (1 - (1 - proposal) ** draws).sum(-1)

    def plain(p: Tensor, draws: int) -> Tensor:
        return expected(p, draws) * (ID + (COUNT if draws < 256 else MANY))

    def flatter(p: Tensor, draws: int) -> Tensor:
        proposal = p**0.5
        return expected(proposal / proposal.sum(-1, keepdim=True), draws) * (ID + WEIGHT)

    for k in ks:
        budget = top_k_bytes(k)
        yield Store("top_k", k, budget, 0, None)
        draws, cost = _most_draws(p, budget, plain)
        yield Store("samples", k, cost, draws, _samples(draws, 1.0))
        draws, cost = _most_draws(p, budget, flatter)
        yield Store("samples, flatter", k, cost, draws, _samples(draws, 0.5))
        rest = p.scatter(-1, p.topk(k // 2).indices, 0.0)
        tail = rest / rest.sum(-1, keepdim=True)
        draws, cost = _most_draws(tail, budget - top_k_bytes(k // 2), plain)
        yield Store(
            "top k/2 and samples", k, cost + top_k_bytes(k // 2), draws, _top_and_samples(k // 2, max(draws, 1))
        )


@dataclass(frozen=True)
class Top:
    """`top_k` as it is read back, with its tail renormalised: K + 1 outcomes."""

    ids: Tensor
    probs: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def stored(store: Store, p: Tensor, generator: np.random.Generator) -> Tensor | Top:
    """What a store gives back of p [N, V]: an estimate of p [N, V], or the top k."""
    if store.estimate is not None:
        return store.estimate(p, generator)
    top = stored_top_k(p.log(), store.k)
    return Top(top.ids, with_tail(top.log_probs, top.log_tail).exp())


def slope(teacher: Tensor | Top, logits: Tensor) -> Tensor:
    """Gradient of Σ KL(p‖q) for the student's logits [N, V].

    Args:
        teacher: p, an estimate of it [N, V], or the top k.
        logits: The student's [N, V].
    """
    q = logits.softmax(-1)
    if isinstance(teacher, Tensor):
        return teacher.sum(-1, keepdim=True) * q - teacher
    merged = coarse_grain(logits, teacher.ids).softmax(-1)
    # Within the tail the student's own shape: what was stored says nothing about it.
    scaled = q * (teacher.probs[:, -1:] / merged[:, -1:])
    return q - scaled.scatter(-1, teacher.ids, teacher.probs[:, :-1])


def batch_errors(world: World, ks: list[int], *, pieces: int, rows: int, redraws: int = 16) -> list[dict[str, Any]]:
    """Error of the parameters' gradient over batches of growing size, and of the logits' gradient of one token.

    Args:
        world: Whose student and teacher.
        ks: At whose bytes.
        pieces: Pieces that batches are made of; a power of 2.
        rows: Rows of a piece.
        redraws: How often samples are drawn anew for the bias.
    """
    batches = [batch for batch, _ in zip(world.batches(world.train, rows), range(pieces), strict=False)]
    some = world.teacher_log_probs(batches[0]).exp()
    parameters = list(world.student.parameters())
    chosen = list(stores(some, ks))
    generator = np.random.default_rng(0)
    live: list[Tensor] = []
    wrong: list[list[Tensor]] = [[] for _ in chosen]
    squares, tokens = torch.zeros(len(chosen) + 1, dtype=torch.float64), 0
    bias = [torch.zeros(0)] * len(chosen)
    for place, batch in enumerate(batches):
        logits = world.logits(world.student, batch)
        p, detached = world.teacher_log_probs(batch).exp(), logits.detach()
        tokens += len(p)

        def through(slopes: Tensor, logits: Tensor = logits) -> Tensor:
            found = torch.autograd.grad(logits, parameters, slopes, retain_graph=True)
            return torch.cat([part.flatten() for part in found])

        true = slope(p, detached)
        squares[-1] += true.double().square().sum()
        live.append(through(true))
        for index, store in enumerate(chosen):
            off = slope(stored(store, p, generator), detached) - true
            squares[index] += off.double().square().sum()
            wrong[index].append(through(off))
            if place == 0:
                again = [
                    slope(stored(store, p, generator), detached) - true for _ in range(redraws if store.draws else 1)
                ]
                bias[index] = through(torch.stack(again).mean(0))
    return [
        {
            "world": world.name,
            "store": store.name,
            "k": store.k,
            "bytes": store.bytes,
            "draws": store.draws,
            "token_error": float((squares[index] / squares[-1]).sqrt()),
            "batch_errors": _by_size(wrong[index], live, tokens / len(batches)),
            "one_batch": float(wrong[index][0].norm() / live[0].norm()),
            "one_batch_mean_of_redraws": float(bias[index].norm() / live[0].norm()),
            "redraws": redraws,
        }
        for index, store in enumerate(chosen)
    ]


def _by_size(wrong: list[Tensor], live: list[Tensor], tokens: float) -> dict[str, float]:
    """Error of the gradient over groups of 1, 2, 4 … pieces, by tokens of a group; mean over the groups."""
    found, size = {}, 1
    while size <= len(live):
        ratios = []
        for start in range(0, len(live) - size + 1, size):
            off = torch.stack(wrong[start : start + size]).sum(0).norm()
            ratios.append(float(off / torch.stack(live[start : start + size]).sum(0).norm()))
        found[str(round(tokens * size))] = sum(ratios) / len(ratios)
        size *= 4
    return found
