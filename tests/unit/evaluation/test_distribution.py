"""Token numbers of two models against the plain definitions on full logits in float64."""

import math

import pytest
import torch

from amidkd.evaluation import distribution
from amidkd.evaluation.distribution import compare, negative_log_likelihood, one_model
from amidkd.signals import Hidden, Logits

N, WIDE, NARROW, SHARED = 37, 23, 21, 19
EPSILON = 0.02


def signals(dtype: torch.dtype = torch.float64) -> tuple[Hidden, Hidden, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student = Hidden(normal(N, 5), normal(NARROW, 5), bias=normal(NARROW), scale=0.7)
    teacher = Hidden(normal(N, 9), normal(WIDE, 9), softcap=4.0)
    return student, teacher, torch.randint(0, SHARED, (N,), generator=generator)


def probabilities(signal: Hidden) -> torch.Tensor:
    logits = signal.states.double() @ signal.weight.double().T
    logits = logits + (0 if signal.bias is None else signal.bias.double())
    logits = logits * signal.scale
    if signal.softcap is not None:
        logits = signal.softcap * torch.tanh(logits / signal.softcap)
    raised = torch.exp(logits[:, :SHARED])
    return raised / raised.sum(-1, keepdim=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("memory_mb", [1e-9, 1e-2, 128.0])
def test_numbers_are_the_definitions_on_the_shared_vocabulary(dtype, tolerance, memory_mb) -> None:
    student, teacher, labels = signals(dtype)
    found = compare(
        student=student, teacher=teacher, labels=labels, vocab_size=SHARED, epsilon=EPSILON, memory_mb=memory_mb
    )
    p, q = probabilities(teacher), probabilities(student)
    rows = torch.arange(N)
    expected = {
        "nll_student": -q[rows, labels].log(),
        "nll_teacher": -p[rows, labels].log(),
        "kl_teacher_student": (p * (p / q).log()).sum(-1),
        "kl_student_teacher": (q * (q / p).log()).sum(-1),
        "total_variation": 1 - torch.minimum(p, q).sum(-1),
        "agreement": (p.argmax(-1) == q.argmax(-1)).double(),
        "coverage": (p * (q > EPSILON)).sum(-1),
        "confidence": q.max(-1).values,
        "right": (q.argmax(-1) == labels).double(),
    }
    for name, wanted in expected.items():
        value = getattr(found, name)
        assert value.dtype == dtype
        assert value.shape == (N,)
        assert torch.allclose(value.double(), wanted, rtol=tolerance, atol=tolerance), name
    assert 0 < float(expected["right"].sum()) < N
    assert float(expected["coverage"].min()) < 0.9
    alone = one_model(student, labels, vocab_size=SHARED, memory_mb=memory_mb)
    for name, value in (("nll_student", alone.nll), ("confidence", alone.confidence), ("right", alone.right)):
        assert torch.allclose(value.double(), expected[name], rtol=tolerance, atol=tolerance), name
    plain = negative_log_likelihood(student, labels, vocab_size=SHARED, memory_mb=memory_mb)
    assert torch.equal(plain, alone.nll)


def test_a_model_is_no_distance_from_itself() -> None:
    student, _, labels = signals(torch.float32)
    found = compare(student=student, teacher=student, labels=labels, vocab_size=SHARED)
    for value in (found.kl_teacher_student, found.kl_student_teacher, found.total_variation):
        assert torch.equal(value, torch.zeros(N))
    assert torch.equal(found.agreement, torch.ones(N))
    assert torch.equal(found.nll_student, found.nll_teacher)


def test_a_token_that_one_side_rules_out_is_infinitely_far_and_never_nan() -> None:
    student, teacher, _ = signals()
    ruled_out = probabilities(teacher).log()
    ruled_out[:, 0] = -math.inf
    labels = torch.zeros(N, dtype=torch.long)
    found = compare(student=student, teacher=Logits(ruled_out), labels=labels, vocab_size=SHARED)
    assert torch.all(found.kl_student_teacher == math.inf)
    assert torch.all(found.nll_teacher == math.inf)
    assert torch.isfinite(found.kl_teacher_student).all()
    p, q = ruled_out.softmax(-1), probabilities(student)
    assert torch.allclose(found.total_variation, 0.5 * (p - q).abs().sum(-1))


def test_what_a_student_rules_out_is_not_covered() -> None:
    student, teacher, labels = signals()
    ruled_out = probabilities(student).log()
    ruled_out[:, 3:] = -math.inf
    found = compare(student=Logits(ruled_out), teacher=teacher, labels=labels, vocab_size=SHARED, epsilon=1e-9)
    p, q = probabilities(teacher), ruled_out.softmax(-1)
    assert torch.allclose(found.coverage, (p[:, :3]).sum(-1))
    assert torch.allclose(found.confidence, q.max(-1).values)
    whole = compare(student=teacher, teacher=teacher, labels=labels, vocab_size=SHARED, epsilon=1e-9)
    assert torch.allclose(whole.coverage, torch.ones(N, dtype=torch.float64))
    assert float(whole.coverage.max()) <= 1.0


def test_logits_are_made_a_few_tokens_at_a_time(monkeypatch) -> None:
    student, teacher, labels = signals(torch.float32)
    made: list[int] = []

    def watched(*args, **kwargs):
        logits = watched.real(*args, **kwargs)
        made.append(logits.numel() * logits.element_size())
        return logits

    watched.real = distribution.head_logits
    monkeypatch.setattr(distribution, "head_logits", watched)
    memory_mb = 8 * 5 * SHARED * 4 / 2**20
    compare(student=student, teacher=teacher, labels=labels, vocab_size=SHARED, memory_mb=memory_mb)
    assert max(made) == 5 * SHARED * 4
    assert sum(made) == 2 * N * SHARED * 4


def test_no_token_gives_no_number() -> None:
    student, teacher, _ = signals()
    nothing = Hidden(student.states[:0], student.weight, bias=student.bias)
    found = compare(
        student=nothing,
        teacher=Hidden(teacher.states[:0], teacher.weight),
        labels=torch.zeros(0, dtype=torch.long),
    )
    assert found.nll_student.shape == (0,)


def test_a_label_beyond_the_shared_vocabulary_is_refused() -> None:
    student, teacher, labels = signals()
    labels[4] = SHARED
    with pytest.raises(ValueError, match=f"token id {SHARED} .* beyond the shared vocabulary of {SHARED}"):
        compare(student=student, teacher=teacher, labels=labels, vocab_size=SHARED)
