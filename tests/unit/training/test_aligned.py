"""The loss on a teacher with another tokenizer: spans merged, gradient, equality with the loss by token."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from amidkd.config import KernelsConfig, SumConfig, WeightingConfig
from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.data import Example, Sequences, collate
from amidkd.kernels import LossOutput, distillation_loss
from amidkd.models import Backbone, load_model
from amidkd.signals import Hidden, Logits
from amidkd.teachers import Aligned
from amidkd.teachers.alignment import TextTeacher, make_text_teacher
from amidkd.training.aligned import aligned_loss
from amidkd.training.merging import Rows, Vocabulary, merge
from amidkd.training.objective import ScheduledObjective
from amidkd.training.settings import LossSettings
from amidkd.training.weighting import TokenWeights

OBJECTIVES = (
    {"divergence": "kl", "between": "teacher||student"},
    {"divergence": "kl", "between": "student||teacher"},
    {"divergence": "kl", "between": "teacher||assistant", "alpha": -3.0, "lam": 0.1},
    {"divergence": {"name": "alpha_beta", "a": 0.2, "b": 0.7}, "between": "student||assistant", "alpha": 0.5},
)
V, W = 7, 6
SHARED = torch.tensor([1, 3, 4])
SHARED_THERE = torch.tensor([2, 0, 5])


def loss_of(student: Hidden | Logits, said: Aligned, sequences: Sequences, **changes: Any) -> LossOutput:
    fields = changes.pop("objective", {"divergence": "kl", "between": "teacher||student"})
    given = LossSettings(objective=ScheduledObjective(SumConfig(**fields), steps=1), **changes)
    count = sequences.token_count()
    return aligned_loss(given, student=student, said=said, sequences=sequences, step=0, count=count, measure=True)


@pytest.fixture
def batch() -> tuple[Sequences, Logits, Aligned]:
    """Six supervised tokens of two rows: one to one, two to one, nothing, one to three, two to two."""
    rows = [
        Example((0, 3, 2, 1, 6), (False, True, True, True, True), 0),
        Example((5, 4, 1, 0), (False, True, True, True), 1),
    ]
    sequences = collate(rows, pad_id=0)
    torch.manual_seed(0)
    said = Aligned(
        teacher=Logits(torch.randn(7, W + 2, dtype=torch.float64) * 2),
        tokens_R=torch.tensor([0, 5, 2, 1, 4, 3, 1]),
        span_R=torch.tensor([0, 1, 2, 2, 2, 3, 3]),
        span_N=torch.tensor([0, 1, 1, -1, 2, 3, 3]),
        student_M=SHARED,
        teacher_M=SHARED_THERE,
        teacher_vocab_size=W,
        uld_weight=0.7,
    )
    student = Logits((torch.randn(7, V + 1, dtype=torch.float64) * 2).requires_grad_())
    return sequences, student, said


def by_hand(log_p: torch.Tensor, tokens: list[int], shared: list[int], text: int | None) -> tuple[list, list]:
    """Probabilities of the outcomes, and of the unshared tokens, from the definition."""
    p = log_p.exp()
    product = torch.stack([p[place, token] for place, token in enumerate(tokens)]).prod()
    first = {token: p[0, token] for token in range(p.shape[1])}
    first[tokens[0]] = first[tokens[0]] - product
    outcomes = [first[token] for token in shared]
    own = [first[token] for token in range(p.shape[1]) if token not in shared]
    extra = product * 0
    if text is None:
        extra = product
    else:
        outcomes[text] = outcomes[text] + product
    return [*outcomes, extra, torch.stack(own).sum()], own


def test_the_loss_is_its_definition_written_out(batch: tuple[Sequences, Logits, Aligned]) -> None:
    sequences, student, said = batch
    out = loss_of(student, said, sequences, vocab_size=V)
    log_q = student.logits[:, :V].log_softmax(-1)
    log_p = said.teacher.logits[:, :W].log_softmax(-1)
    expected = torch.zeros((), dtype=torch.float64)
    spans = [([0], [0], 1), ([1, 2], [1], 2), ([4], [2, 3, 4], 2), ([5, 6], [5, 6], None)]
    labels = sequences.labels_N()
    for ours, theirs, text in spans:
        q, own_q = by_hand(log_q[ours], labels[ours].tolist(), SHARED.tolist(), text)
        p, own_p = by_hand(log_p[theirs], said.tokens_R[theirs].tolist(), SHARED_THERE.tolist(), text)
        assert sum(one.item() for one in q) == pytest.approx(1)
        assert sum(one.item() for one in p) == pytest.approx(1)
        expected = expected + sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True) if a > 0)
        ranks = [torch.stack(own).sort(descending=True).values for own in (own_p, own_q)]
        width = max(map(len, ranks))
        ranks = [torch.nn.functional.pad(one, (0, width - len(one))) for one in ranks]
        expected = expected + 0.7 * (ranks[0] - ranks[1]).abs().sum()
    expected = expected / 7
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-13)
    found, wanted = (torch.autograd.grad(one, student.logits)[0] for one in (out.loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)
    assert int(out.metrics["tokens"]) == 4
    assert float(out.metrics["aligned_tokens"]) == pytest.approx(6 / 7)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda fields: str(fields["between"]))
def test_the_gradient_is_the_slope_of_the_loss(batch: tuple[Sequences, Logits, Aligned], objective: dict) -> None:
    sequences, student, said = batch

    def value(logits: torch.Tensor) -> torch.Tensor:
        changes = {"cross_entropy_weight": 0.3, "temperature": 1.5}
        return loss_of(Logits(logits), said, sequences, objective=objective, **changes).loss

    (gradient,) = torch.autograd.grad(value(student.logits), student.logits)
    with torch.no_grad():
        for way in 1e-6 * torch.eye(gradient.numel(), dtype=torch.float64).reshape(-1, *gradient.shape):
            slope = value(student.logits + way) - value(student.logits - way)
            torch.testing.assert_close(slope, 2 * (gradient * way).sum(), rtol=1e-5, atol=1e-14)


def test_chunks_and_the_head_change_nothing(batch: tuple[Sequences, Logits, Aligned]) -> None:
    sequences, _, said = batch
    torch.manual_seed(1)
    tensors = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((7, 5), (V, 5), (V,))]
    found = []
    for memory_mb in (None, 1e-6):
        student = Hidden(tensors[0], tensors[1], bias=tensors[2], softcap=3.0)
        weights = TokenWeights(WeightingConfig(data=0.5))
        kernels = KernelsConfig(memory_mb=memory_mb)
        out = loss_of(student, said, sequences, kernels=kernels, weights=weights, cross_entropy_weight=0.3)
        found.append((out.loss, *torch.autograd.grad(out.loss, tensors)))
        with torch.no_grad():
            assert not loss_of(student, said, sequences, weights=weights).loss.requires_grad
    logits = 3 * torch.tanh((tensors[0] @ tensors[1].T + tensors[2]) / 3)
    plain = loss_of(Logits(logits), said, sequences, cross_entropy_weight=0.3)
    found.append((plain.loss / 2, *(grad / 2 for grad in torch.autograd.grad(plain.loss, tensors))))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_the_students_text_has_its_objective(batch: tuple[Sequences, Logits, Aligned]) -> None:
    """Row 1 is the student's: its two spans have the other objective, and no cross-entropy."""
    sequences, student, said = batch
    mixed = replace(sequences, origin_B=torch.tensor([0, 2]))
    own = ScheduledObjective(SumConfig(divergence="kl", between="student||teacher"), steps=1)
    out = loss_of(student, said, mixed, student_objective=own)
    parts = []
    for row, between in ((0, "teacher||student"), (1, "student||teacher")):
        inside_N = sequences.sequence_N() == row
        there = replace(sequences, targets_BT=sequences.targets_BT & (torch.arange(2) == row)[:, None])
        mine_R = torch.isin(said.span_R, said.span_N[inside_N])
        first = int(said.span_R[mine_R].min())
        assert isinstance(said.teacher, Logits)
        half = replace(
            said,
            teacher=Logits(said.teacher.logits[mine_R]),
            tokens_R=said.tokens_R[mine_R],
            span_R=said.span_R[mine_R] - first,
            span_N=torch.where(said.span_N[inside_N] < 0, -1, said.span_N[inside_N] - first),
        )
        fields = {"divergence": "kl", "between": between}
        alone = loss_of(Logits(student.logits[inside_N]), half, there, objective=fields)
        parts.append(alone.loss * int(inside_N.sum()) / 7)
    torch.testing.assert_close(out.loss, parts[0] + parts[1], rtol=1e-12, atol=1e-13)


def test_what_is_left_of_a_token_keeps_its_digits() -> None:
    """In float32, 1 − P(y₂|y₁) is 0 long before the others' mass is."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [30.0, 0.0, 0.0]])
    vocabulary = Vocabulary.of(torch.tensor([0, 1]), 3)
    rows = Rows(torch.arange(2), torch.tensor([1, 0]), torch.tensor([0]), torch.tensor([2]))
    outcomes, _ = merge(logits.log_softmax(-1), rows, vocabulary, torch.tensor([2]))
    exact, _ = merge(logits.double().log_softmax(-1), rows, vocabulary, torch.tensor([2]))
    assert outcomes[0, 1] < -29
    torch.testing.assert_close(outcomes, exact.float(), rtol=1e-6, atol=1e-6)


def test_a_batch_without_a_span_still_has_a_gradient(batch: tuple[Sequences, Logits, Aligned]) -> None:
    sequences, student, said = batch
    none = torch.zeros(0, dtype=torch.long)
    said = replace(
        said, teacher=Logits(said.teacher.logits[:0]), tokens_R=none, span_R=none, span_N=said.span_N * 0 - 1
    )
    out = loss_of(student, said, sequences)
    (found,) = torch.autograd.grad(out.loss, student.logits)
    assert out.loss.item() == 0
    assert not found.any()


@pytest.fixture(scope="module")
def source(shared: Path) -> Path:
    return shared / "models" / "stories260K-hf"


def text_teacher(source: Path, tokenizer: Any, **changes: Any) -> TextTeacher:
    config = LiveTeacherConfig(model=str(source), alignment="text", dtype="float32", **changes)
    return make_text_teacher(config, student_tokenizer=tokenizer)


def rows_of(tokenizer: Any, *texts: str) -> Sequences:
    examples = []
    for row, text in enumerate(texts):
        tokens = (tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
        examples.append(Example(tokens, (False, False) + (True,) * (len(tokens) - 2), row=row))
    return collate(examples, pad_id=0)


TEXTS = ("Once upon a time, there was a little girl named Lily.", "One day, the big dog ran 🙂 to the naïve cat.")


@pytest.mark.filterwarnings("ignore:teacher.alignment is `text`")
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda fields: str(fields["between"]))
def test_one_tokenizer_on_both_sides_is_the_loss_by_token(source: Path, shared: Path, objective: dict) -> None:
    teacher = text_teacher(source, AutoTokenizer.from_pretrained(source))
    sequences = rows_of(teacher.live.tokenizer, *TEXTS)
    student = load_model(shared / "models" / "llama2xs-279K-hf", dtype="float32")
    said = Backbone(student)(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT())
    assert isinstance(said, Hidden)
    said = replace(said, states=said.states.detach().requires_grad_())
    found = loss_of(said, teacher.signal(sequences), sequences, objective=objective, vocab_size=512)
    plain = distillation_loss(
        student=said,
        teacher=teacher.live.signal(sequences),
        objective=ScheduledObjective(SumConfig(**objective), steps=1).at(0),
        vocab_size=512,
    )
    assert float(plain.loss) > 0.005
    assert float(found.metrics["aligned_tokens"]) == 1
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-5, atol=1e-6)
    grads = [torch.autograd.grad(out.loss, said.states)[0] for out in (found, plain)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_a_student_of_another_tokenizer_learns(source: Path, shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "tinyllama-1.1b-3T")
    teacher = text_teacher(source, tokenizer)
    student = load_model(source, dtype="float32").train()
    student.resize_token_embeddings(teacher.vocab_size, mean_resizing=False)
    sequences = rows_of(tokenizer, *TEXTS)
    said, backbone = teacher.signal(sequences), Backbone(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        spoken = backbone(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT())
        out = loss_of(spoken, said, sequences, vocab_size=teacher.vocab_size)
        losses.append(float(out.loss.detach()))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert 0.9 < float(out.metrics["aligned_tokens"]) <= 1
