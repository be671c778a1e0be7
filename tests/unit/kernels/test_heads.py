"""``Hidden``: every kind of head gives the logits and the gradients of the full computation."""

import itertools

import pytest
import torch

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective
from amidkd.signals import Hidden, Logits

BACKENDS = ("naive", "chunked")
N, V, H = 7, 19, 5
OBJECTIVE = Objective(alpha=-1.5, lam=0.2)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_logits(h, weight, bias, scale, softcap):
    z = h @ weight.T
    if bias is not None:
        z = z + bias
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("biased", "scale", "softcap"), list(itertools.product([False, True], [1.0, 0.3], [None, 1.5]))
)
def test_bias_scale_and_softcap(backend, biased, scale, softcap):
    h, weight, bias = (randn(*shape, seed=s).requires_grad_() for s, shape in enumerate([(N, H), (V, H), (V,)]))
    teacher = [randn(N, 2 * H, seed=4), randn(V + 3, 2 * H, seed=5), randn(V + 3, seed=6) if biased else None, 0.5, 2.0]
    head = (bias if biased else None, scale, softcap)
    out = distillation_loss(
        student=Hidden(h, weight, *head),
        teacher=Hidden(*teacher),
        objective=OBJECTIVE,
        temperature=1.7,
        labels=torch.arange(N),
        cross_entropy_weight=0.4,
        mask=torch.tensor([1, 1, 0, 1, 1, 0, 1]),
        backend=backend,
        memory_mb=0.005,
    )
    live = [0, 1, 3, 4, 6]
    z, zt = full_logits(h, weight, *head)[live], full_logits(*teacher)[live][:, :V]
    soft = OBJECTIVE(teacher=(zt / 1.7).log_softmax(-1), student=(z / 1.7).log_softmax(-1)).mean()
    expected = soft + 0.4 * torch.nn.functional.cross_entropy(z, torch.tensor(live))
    torch.testing.assert_close(out.loss, expected)
    sources = [h, weight, bias] if biased else [h, weight]
    torch.testing.assert_close(torch.autograd.grad(out.loss, sources), torch.autograd.grad(expected, sources))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tied_head_gets_both_gradients(backend):
    table, ids = randn(V, H).requires_grad_(), torch.arange(N)
    zt = randn(N, V, seed=3)

    def loss(head_of):
        states = torch.tanh(table[ids])
        return head_of(states)

    kernel = loss(
        lambda h: (
            distillation_loss(
                student=Hidden(h, table), teacher=Logits(zt), objective=OBJECTIVE, backend=backend, memory_mb=0.005
            ).loss
        )
    )
    plain = loss(lambda h: OBJECTIVE(teacher=zt.log_softmax(-1), student=(h @ table.T).log_softmax(-1)).mean())
    torch.testing.assert_close(torch.autograd.grad(kernel, table), torch.autograd.grad(plain, table))


def test_only_what_learns_gets_a_gradient():
    for learns in itertools.product([False, True], repeat=3):
        shapes = zip([(N, H), (V, H), (V,)], learns, strict=True)
        parts = [randn(*shape, seed=s).requires_grad_(learn) for s, (shape, learn) in enumerate(shapes)]
        out = distillation_loss(student=Hidden(*parts), teacher=Logits(randn(N, V, seed=3)), objective=OBJECTIVE)
        assert out.loss.requires_grad == any(learns)
        if any(learns):
            out.loss.backward()
        assert [part.grad is not None for part in parts] == list(learns)


def test_the_weight_gradient_is_summed_in_float32():
    """2,000 equal small steps in bfloat16 would stop growing at 256 of them."""
    tokens = 2000
    h = torch.ones(tokens, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(tokens, dtype=torch.int64)
    out = distillation_loss(
        student=Hidden(h, weight), labels=labels, cross_entropy_weight=1.0, memory_mb=1e-5, reduction="sum"
    )
    out.loss.backward()
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [-tokens / 2, tokens / 2]


def test_states_and_head_of_different_dtypes_meet_in_the_heads():
    h, weight = randn(N, H).bfloat16().requires_grad_(), randn(V, H, seed=1).float().requires_grad_()
    out = distillation_loss(student=Hidden(h, weight), teacher=Logits(randn(N, V, seed=3)), objective=OBJECTIVE)
    out.loss.backward()
    assert (h.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    z = h.detach().float() @ weight.detach().T
    expected = OBJECTIVE(teacher=randn(N, V, seed=3).log_softmax(-1), student=z.double().log_softmax(-1)).mean()
    torch.testing.assert_close(out.loss.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_rows_of_the_head_get_no_gradient(backend):
    h, weight, bias = (randn(*shape, seed=s).requires_grad_() for s, shape in enumerate([(N, H), (V, H), (V,)]))
    size, teacher = V - 4, Logits(randn(N, V + 7, seed=3))
    out = distillation_loss(
        student=Hidden(h, weight, bias),
        teacher=teacher,
        objective=OBJECTIVE,
        vocab_size=size,
        backend=backend,
        memory_mb=0.005,
    )
    z = (h @ weight.T + bias)[:, :size]
    expected = OBJECTIVE(teacher=teacher.logits[:, :size].log_softmax(-1), student=z.log_softmax(-1)).mean()
    found = torch.autograd.grad(out.loss, [h, weight, bias])
    torch.testing.assert_close(list(found), list(torch.autograd.grad(expected, [h, weight, bias])))
    assert not found[1][size:].any()
    assert not found[2][size:].any()
