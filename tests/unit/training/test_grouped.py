"""The loss of a pass of which several teachers speak, against the textbook in double precision."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from amidkd.config import parse
from amidkd.data import Example, Sequences, collate
from amidkd.maths import Objective, divergence
from amidkd.signals import Logits, TopK
from amidkd.teachers import Group, Grouped
from amidkd.training.losses import soft_loss
from amidkd.training.objective import ScheduledObjective
from amidkd.training.settings import LossSettings
from amidkd.training.token_measures import token_entropy, token_log_probs, token_variation

V = 13


def batch(origins: tuple[str, ...] = ("data", "student", "data")) -> Sequences:
    lengths = (5, 4, 3)
    rows: list[Any] = [
        Example(tuple(range(1, n + 2)), (False, *[True] * n), place, origin)  # type: ignore[arg-type]
        for place, (n, origin) in enumerate(zip(lengths, origins, strict=True))
    ]
    return collate(rows, pad_id=0)


def logits(seed: int, count: int = 12) -> Tensor:
    return 2 * torch.randn(count, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduled(**objective: Any) -> ScheduledObjective:
    tree = {"student": {"kind": "pretrained", "model": "s"}, "data": {"train": "d"}, "output": "o"}
    return ScheduledObjective(parse({**tree, "objective": objective}).objective, steps=4)


GROUPS = (
    (torch.tensor([0, 1, 2, 3, 4, 9, 10, 11]), (3, 4), (0.25, 0.75)),
    (torch.tensor([5, 6, 7, 8]), (5,), (1.0,)),
)
"""Rows 0 and 2 belong to two teachers, row 1 to a third."""


def grouped() -> Grouped:
    return Grouped(
        tuple(
            Group(place, tuple(Logits(logits(seed)[place]) for seed in seeds), weights)
            for place, seeds, weights in GROUPS
        )
    )


@pytest.mark.parametrize("alpha", [-3.0, -0.5, 1.0])
@pytest.mark.parametrize("own", [None, {"between": "student||assistant", "alpha": -1.0, "lam": 0.9}])
def test_each_token_is_taught_by_its_own_teachers_with_its_own_objective(alpha: float, own: Any) -> None:
    sequences, student = batch(), logits(1)
    settings = LossSettings(
        objective=scheduled(alpha=alpha, lam=0.3),
        student_objective=None if own is None else scheduled(**own),
        vocab_size=V,
    )
    leaf = student.clone().requires_grad_()
    out = soft_loss(
        settings, student=Logits(leaf), teacher=grouped(), sequences=sequences, step=0, count=12, measure=True
    )
    out.loss.backward()

    whole = student.clone().requires_grad_()
    expected = whole.new_zeros(())
    for place, seeds, weights in GROUPS:
        by_student = own is not None and len(seeds) == 1
        objective = Objective(
            divergence=divergence("kl"),
            between="student||assistant" if by_student else "teacher||assistant",
            alpha=-1.0 if by_student else alpha,
            lam=0.9 if by_student else 0.3,
            teacher_weights=weights if len(seeds) > 1 else None,
        )
        teachers = [logits(seed)[place].log_softmax(-1) for seed in seeds]
        teacher = teachers if len(teachers) > 1 else teachers[0]
        expected = expected + objective(teacher=teacher, student=whole[place].log_softmax(-1)).sum() / 12
    expected.backward()
    torch.testing.assert_close(out.loss, expected.detach(), rtol=1e-9, atol=0)
    assert leaf.grad is not None
    assert whole.grad is not None
    torch.testing.assert_close(leaf.grad, whole.grad, rtol=1e-7, atol=1e-10)
    assert int(out.metrics["tokens"]) == 12


def test_a_batch_without_a_token_has_no_loss() -> None:
    idle = collate([Example((1, 2, 3), (False, False, False), -1)], pad_id=0)
    leaf = torch.zeros(0, V, dtype=torch.float64, requires_grad=True)
    said = Grouped((Group(None, (Logits(logits(3, 0)), Logits(logits(4, 0))), (0.5, 0.5)),))
    settings = LossSettings(objective=scheduled(alpha=-0.5, lam=0.3), vocab_size=V)
    out = soft_loss(settings, student=Logits(leaf), teacher=said, sequences=idle, step=0, count=3, measure=False)
    assert float(out.loss) == 0
    out.loss.backward()


def test_measures_of_a_truncated_teacher_are_those_of_its_list_and_the_rest() -> None:
    p = logits(7).softmax(-1)
    best = p.topk(3)
    said = TopK(best.indices, best.values.log(), (1 - best.values.sum(-1)).log())
    merged = torch.cat([best.values, 1 - best.values.sum(-1, keepdim=True)], -1)
    torch.testing.assert_close(
        token_entropy(said, vocab_size=V).double(), torch.special.entr(merged).sum(-1), rtol=1e-5, atol=0
    )
    labels = torch.arange(12) % V
    found = token_log_probs(said, labels, vocab_size=V).double()
    for n, label in enumerate(labels.tolist()):
        listed = label in best.indices[n].tolist()
        expected = math.log(p[n, label]) if listed else math.log(float(merged[n, -1]) / (V - 3))
        assert float(found[n]) == pytest.approx(expected, rel=1e-5)


def test_measures_of_several_teachers_are_their_weighted_means() -> None:
    labels, student = torch.arange(12) % V, logits(1)
    entropy, given = torch.zeros(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    distance = torch.zeros(12, dtype=torch.float64)
    for place, seeds, weights in GROUPS:
        for seed, weight in zip(seeds, weights, strict=True):
            p = logits(seed)[place].softmax(-1)
            entropy[place] += weight * torch.special.entr(p).sum(-1)
            given[place] += weight * p.gather(-1, labels[place, None])[:, 0]
            distance[place] += weight * 0.5 * (p - student[place].softmax(-1)).abs().sum(-1)
    said = grouped()
    torch.testing.assert_close(token_entropy(said, vocab_size=V), entropy, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(token_log_probs(said, labels, vocab_size=V), given.log(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(token_variation(Logits(student), said, vocab_size=V), distance, rtol=1e-9, atol=1e-12)
