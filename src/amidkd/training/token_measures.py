"""What a model says of single tokens: log-probability, entropy, distance from another; of any kind of teacher."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.maths.coarse import log_complement
from amidkd.signals import Hidden, Logits, Signal, TopK
from amidkd.teachers import Aligned, Grouped, Said

__all__ = ["token_entropy", "token_log_probs", "token_variation"]


def token_log_probs(said: Said, labels_N: Tensor, *, vocab_size: int | None, **kernels: Any) -> Tensor:
    """What is given to each token, as natural logarithm [N].

    Of a truncated teacher, a token outside the list has the mass of the rest, shared evenly among the ids that are
    left; of several teachers, it is their weighted mean probability.

    Args:
        said: What is said before each.
        labels_N: The tokens.
        vocab_size: Ids from here on do not exist.
        kernels: ``backend`` and ``memory_mb`` of the loss.
    """
    if isinstance(said, Grouped):

        def one(signal: Signal, place_n: Tensor | None) -> Tensor:
            labels_n = labels_N if place_n is None else labels_N[place_n]
            return token_log_probs(signal, labels_n, vocab_size=vocab_size, **kernels).exp()

        return _by_group(said, one, count=len(labels_N)).log()
    if isinstance(said, TopK):
        return _listed(said, labels_N, vocab_size)
    out = distillation_loss(
        student=_full(said),
        labels=labels_N,
        cross_entropy_weight=1.0,
        reduction="none",
        vocab_size=vocab_size,
        **kernels,
    )
    return -out.loss


def _listed(said: TopK, labels_N: Tensor, vocab_size: int | None) -> Tensor:
    """The log-probability of each label in a list of the likeliest, or its share of the rest [N]."""
    log_p = said.log_probs.float()
    tail_N = log_complement(log_p) if said.log_tail is None else said.log_tail.float()
    width = said.ids.shape[1] + 1 if vocab_size is None else vocab_size
    share_N = tail_N - math.log(max(1, width - said.ids.shape[1]))
    found_NK = said.ids == labels_N[:, None]
    listed_N = log_p.masked_fill(~found_NK, -torch.inf).amax(-1)
    return torch.where(found_NK.any(-1), listed_N, share_N)


def token_entropy(said: Said, *, vocab_size: int | None, **kernels: Any) -> Tensor:
    """Entropy of each token's distribution [N], in nats: log V − KL(p‖uniform).

    Of a truncated teacher it is that of its list and the rest as one outcome, a lower bound; of several teachers, their
    weighted mean.

    Args:
        said: What is said.
        vocab_size: V; None: the width of the head.
        kernels: ``backend`` and ``memory_mb`` of the loss.
    """
    if isinstance(said, Grouped):
        return _by_group(said, lambda signal, _: token_entropy(signal, vocab_size=vocab_size, **kernels))
    if isinstance(said, TopK):
        log_p = said.log_probs.float()
        tail_N = log_complement(log_p) if said.log_tail is None else said.log_tail.float()
        return torch.special.entr(torch.cat([log_p, tail_N[:, None]], dim=-1).softmax(-1)).sum(-1)
    said = _full(said)
    if isinstance(said, Hidden):
        width, flat = said.weight.shape[0], Logits(said.states.new_zeros(1, said.weight.shape[0]))
        flat = Logits(flat.logits.expand(said.states.shape[0], width))
    else:
        width, flat = said.logits.shape[-1], Logits(torch.zeros_like(said.logits[:1]).expand_as(said.logits))
    out = distillation_loss(
        student=flat, teacher=said, objective=_FORWARD, reduction="none", vocab_size=vocab_size, **kernels
    )
    return math.log(width if vocab_size is None else min(width, vocab_size)) - out.loss


def token_variation(student: Hidden | Logits, teacher: Said, *, vocab_size: int | None, **kernels: Any) -> Tensor:
    """Total variation between teacher and student at each token [N], in [0, 1]; the weighted mean of several teachers'.

    Args:
        student: What the student says.
        teacher: What the teacher says; a truncated one sees its list and the rest as one outcome, a lower bound.
        vocab_size: Vocabulary shared by both.
        kernels: ``backend`` and ``memory_mb`` of the loss.
    """
    if isinstance(teacher, Grouped):

        def one(signal: Signal, place_n: Tensor | None) -> Tensor:
            return token_variation(_at(student, place_n), signal, vocab_size=vocab_size, **kernels)

        return _by_group(teacher, one)
    if isinstance(teacher, Aligned):
        raise TypeError(_TEXT)
    out = distillation_loss(
        student=student, teacher=teacher, objective=_VARIATION, reduction="none", vocab_size=vocab_size, **kernels
    )
    return out.loss


_FORWARD = Objective(divergence=divergence("kl"), between="teacher||student")
_VARIATION = Objective(divergence=divergence("total_variation"), between="teacher||student")


_TEXT = "a teacher that is aligned by text does not speak of the student's single tokens"


def _full(said: Said) -> Hidden | Logits:
    if isinstance(said, Hidden | Logits):
        return said
    kind = type(said).__name__
    raise TypeError(_TEXT if isinstance(said, Aligned) else f"whole distributions are needed; got {kind}")


def _at(student: Hidden | Logits, place_n: Tensor | None) -> Hidden | Logits:
    if place_n is None:
        return student
    if isinstance(student, Hidden):
        return replace(student, states=student.states[place_n])
    return Logits(student.logits[place_n])


def _by_group(said: Grouped, measure: Callable[[Signal, Tensor | None], Tensor], *, count: int | None = None) -> Tensor:
    """A measure of each teacher as its weighted mean, put together from the groups [N]."""
    parts = [
        (group.place_n, torch.stack([weight * measure(one, group.place_n) for weight, one in group.weighted()]).sum(0))
        for group in said.groups
    ]
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    total = sum(0 if place is None else len(place) for place, _ in parts) if count is None else count
    whole = parts[0][1].new_zeros(total)
    for place, values in parts:
        whole[place] = values
    return whole
