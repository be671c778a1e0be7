"""What each token counts for, its own objective by who wrote it, and DistiLLM-2's skew, against plain torch."""

import math

import pytest
import torch
from one_step import rows

from amidkd.config import ObjectiveConfig, SumConfig, WeightingConfig
from amidkd.data import Example, collate
from amidkd.maths import Objective
from amidkd.maths.schedule import Linear
from amidkd.signals import Hidden, Logits
from amidkd.training import ScheduledObjective
from amidkd.training.losses import hard_loss, soft_loss
from amidkd.training.settings import LossSettings
from amidkd.training.weighting import (
    AdaptiveSkew,
    TokenWeights,
    token_entropy,
    token_log_probs,
    token_variation,
)

V, WIDER = 40, 48


def batch():
    """Three rows: of the data, of the teacher, of the student; ids below V."""
    made = []
    for row, origin in zip(rows(3), ("data", "teacher", "student"), strict=True):
        made.append(Example(tuple(2 + token % (V - 2) for token in row.tokens), row.targets, row.row, origin))
    return collate(made, pad_id=0)


@pytest.fixture
def said():
    """A batch, and what student and teacher say at its N supervised positions, float64."""
    sequences = batch()
    count = sequences.token_count()
    random = torch.Generator().manual_seed(3)
    hidden = Hidden(
        torch.randn(count, 8, generator=random, dtype=torch.float64),
        torch.randn(WIDER, 8, generator=random, dtype=torch.float64),
    )
    logits = 2 * torch.randn(count, V, generator=random, dtype=torch.float64)
    return sequences, Logits(logits.requires_grad_()), hidden


def plain(signal) -> torch.Tensor:
    logits = signal.logits if isinstance(signal, Logits) else signal.states @ signal.weight.T
    return logits.detach()[:, :V].log_softmax(-1)


def test_measures_of_a_token(said) -> None:
    sequences, student, teacher = said
    log_q, log_p = plain(student), plain(teacher)
    labels = sequences.labels_N()
    close = {"rtol": 1e-10, "atol": 1e-12}
    for signal, logs in ((student, log_q), (teacher, log_p)):
        torch.testing.assert_close(token_entropy(signal, vocab_size=V), -(logs.exp() * logs).sum(-1), **close)
        found = token_log_probs(signal, labels, vocab_size=V)
        torch.testing.assert_close(found, logs.gather(1, labels[:, None])[:, 0], **close)
    expected = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    torch.testing.assert_close(token_variation(student, teacher, vocab_size=V), expected, **close)


@pytest.mark.parametrize("by", ["none", "teacher_entropy", "student_entropy", "disagreement"])
@pytest.mark.parametrize("favour", ["high", "low"])
def test_weights(said, by, favour) -> None:
    sequences, student, teacher = said
    config = WeightingConfig(data=1.0, teacher=0.5, student=2.0, by=by, favour=favour, strength=0.25)
    found = TokenWeights(config, Linear(start=1.0, end=1.5)).of(
        sequences, progress=0.5, student=student, teacher=teacher, vocab_size=V
    )
    log_q, log_p = plain(student), plain(teacher)
    measure = {
        "none": None,
        "teacher_entropy": 1 - torch.exp((log_p.exp() * log_p).sum(-1)),
        "student_entropy": 1 - torch.exp((log_q.exp() * log_q).sum(-1)),
        "disagreement": 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1),
    }[by]
    # β is 1.25 halfway: the student's text counts 1.25 times, other text 0.75 times.
    origin = torch.tensor([0.75, 0.375, 2.5], dtype=torch.float64)[sequences.sequence_N()]
    if measure is not None:
        origin = origin * (0.75 + 0.25 * (measure if favour == "high" else 1 - measure))
    torch.testing.assert_close(found.double(), origin, rtol=1e-6, atol=1e-7)
    assert not found.requires_grad


def test_neutral_weights_are_none() -> None:
    assert TokenWeights(WeightingConfig()).neutral
    assert TokenWeights(WeightingConfig(by="disagreement", strength=0)).neutral
    assert not TokenWeights(WeightingConfig(student=0.5)).neutral


def settings(**changes) -> LossSettings:
    objective = ObjectiveConfig(between="teacher||student")
    return LossSettings(objective=ScheduledObjective(objective, steps=1), vocab_size=V, **changes)


def test_an_objective_of_its_own_for_the_students_text(said) -> None:
    sequences, student, teacher = said
    own = SumConfig(between="student||teacher")
    given = settings(
        student_objective=ScheduledObjective(own, steps=1),
        weights=TokenWeights(WeightingConfig(student=0.5)),
        cross_entropy_weight=0.3,
    )
    out = soft_loss(given, student=student, teacher=teacher, sequences=sequences, step=0, count=7, measure=True)
    (found,) = torch.autograd.grad(out.loss, student.logits)

    logits = student.logits.detach().requires_grad_()
    log_q, log_p = logits.log_softmax(-1), plain(teacher)
    mine = sequences.sequence_N() == 2
    forward, reverse = Objective(between="teacher||student"), Objective(between="student||teacher")
    values = torch.where(mine, reverse(teacher=log_p, student=log_q), forward(teacher=log_p, student=log_q))
    # The student is not told to say what it said.
    hard = torch.where(mine, 0.0, -log_q.gather(1, sequences.labels_N()[:, None])[:, 0])
    expected = ((values + 0.3 * hard) * torch.where(mine, 0.5, 1.0)).sum() / 7
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, torch.autograd.grad(expected, logits)[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.metrics["divergence"], values.mean(), rtol=1e-10, atol=1e-12)
    assert int(out.metrics["tokens"]) == sequences.token_count()


@pytest.mark.parametrize("origin", ["data", "student"])
def test_a_pass_of_one_side_alone_or_of_nothing(origin) -> None:
    """DDP needs a gradient from every rank, also from one without a token."""
    given = settings(student_objective=ScheduledObjective(SumConfig(between="student||teacher"), steps=1))
    for targets, count in (((False, True), 1), ((False, False), 0)):
        sequences = collate([Example((3, 4), targets, 0, origin)], pad_id=0)
        student = Logits(torch.randn(count, V, dtype=torch.float64, requires_grad=True))
        teacher = Logits(torch.randn(count, V, dtype=torch.float64))
        out = soft_loss(given, student=student, teacher=teacher, sequences=sequences, step=0, count=1, measure=False)
        out.loss.backward()
        assert student.logits.grad.shape == (count, V)
        between = "teacher||student" if origin == "data" else "student||teacher"
        one = Objective(between=between)(teacher=plain(teacher), student=plain(student)).sum()
        torch.testing.assert_close(out.loss.detach(), one, rtol=1e-10, atol=1e-12)


def test_weights_hold_for_cross_entropy_too(said) -> None:
    sequences, student, _ = said
    given = LossSettings(vocab_size=V, weights=TokenWeights(WeightingConfig(teacher=3.0)))
    out = hard_loss(given, student=student, sequences=sequences, count=5, weighted=True)
    values = -plain(student).gather(1, sequences.labels_N()[:, None])[:, 0]
    factor = torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)[sequences.sequence_N()]
    torch.testing.assert_close(out.loss.detach(), (values * factor).sum() / 5, rtol=1e-10, atol=1e-12)


def test_skew_of_each_sequence(said) -> None:
    sequences, student, teacher = said
    labels, places = sequences.labels_N(), sequences.sequence_N()
    typical = {}
    for name, signal in (("q", student), ("p", teacher)):
        logs = plain(signal).gather(1, labels[:, None])[:, 0]
        typical[name] = torch.stack([logs[places == row].mean().exp() for row in range(3)])
    distance = typical["p"] - typical["q"]
    distance[2] = -distance[2]

    skew = AdaptiveSkew()
    first = skew.of(sequences, base=(0.1, 0.2), student=student, teacher=teacher, vocab_size=V)
    # Nothing is known of the average yet.
    torch.testing.assert_close(first, torch.tensor([0.1, 0.1, 0.2])[places])
    skew.finish_step(lambda values: values)
    assert skew.state() == pytest.approx([float(distance[:2].mean()), float(distance[2])])

    skew.load_state([0.02, 0.03])
    found = skew.of(sequences, base=(0.1, 0.2), student=student, teacher=teacher, vocab_size=V)
    expected = []
    for row, (base, mean) in enumerate(((0.1, 0.02), (0.1, 0.02), (0.2, 0.03))):
        d = float(distance[row])
        expected.append(base if d <= 0 else min(base, max(0.01, 1 - (1 - base) * mean / d)))
    torch.testing.assert_close(found, torch.tensor(expected)[places])
    skew.finish_step(lambda values: values)
    mean = 0.9 * 0.02 + 0.1 * float(distance[:2].mean())
    assert skew.state()[0] == pytest.approx(mean)


def test_a_close_sequence_is_skewed_less() -> None:
    """d below the average: less of the teacher is mixed in, down to 0.01; above it κ₀ stays."""
    sequences = collate([Example((3, 4), (False, True), n) for n in range(3)], pad_id=0)
    chances = {"p": [0.5, 0.5, 0.2], "q": [0.1, 0.45, 0.4]}
    logits = {}
    for name, values in chances.items():
        rest = torch.tensor([[math.log((1 - value) / (V - 1))] * V for value in values], dtype=torch.float64)
        rest[:, 4] = torch.tensor([math.log(value) for value in values], dtype=torch.float64)
        logits[name] = Logits(rest)
    skew = AdaptiveSkew()
    skew.load_state([0.0525, None])
    found = skew.of(sequences, base=(0.1, 0.1), student=logits["q"], teacher=logits["p"], vocab_size=V)
    # d = 0.4, 0.05 and −0.2; 1 − 0.9 · 0.0525 / 0.05 = 0.055.
    torch.testing.assert_close(found, torch.tensor([0.1, 0.055, 0.1]), rtol=1e-5, atol=1e-6)
