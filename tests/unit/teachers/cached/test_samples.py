"""The format ``samples``: draws from what the likeliest tokens leave, an unbiased estimate of the distribution."""

import pytest
import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.signals import Logits, TopK
from amidkd.teachers.cached.layout import Layout, layout_of

V, K, DRAWS = 40, 3, 6


def logits(count: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(count, V, generator=torch.Generator().manual_seed(seed))


def stored(z: Tensor, seed: int) -> TopK:
    layout = layout_of("samples", K, Logits(z), vocab_size=V, draws=DRAWS)
    found = layout.decode(layout.encode(Logits(z), seed=seed), None)
    assert isinstance(found, TopK)
    return found


def dense(said: TopK) -> Tensor:
    return torch.zeros(len(said.ids), V + 1).scatter_add(1, said.ids, said.log_probs.exp())[:, :V]


def test_what_is_stored_is_a_distribution_of_distinct_tokens() -> None:
    z = logits(50)
    said = stored(z, seed=1)
    assert said.ids.shape == (50, K + DRAWS)
    assert said.log_tail is not None
    assert bool((said.log_tail == -torch.inf).all())
    torch.testing.assert_close(dense(said).sum(-1), torch.ones(50), rtol=2e-3, atol=0)
    for ids in said.ids.tolist():
        known = [token for token in ids if token < V]
        assert len(set(known)) == len(known)
    # The likeliest are as they are.
    best = z.softmax(-1).topk(K)
    assert torch.equal(said.ids[:, :K], best.indices)
    torch.testing.assert_close(said.log_probs[:, :K].exp(), best.values, rtol=2e-3, atol=0)


def test_the_estimate_has_no_bias_and_the_same_seed_draws_the_same() -> None:
    z = logits(1).expand(20_000, V)
    mean = dense(stored(z, seed=2)).double().mean(0)
    p = z[0].double().softmax(-1)
    rest = 1 - p.topk(K).values.sum()
    error = (p * rest / DRAWS / len(z)).sqrt()
    # Log-probabilities are rounded to 11 bits.
    assert bool(((mean - p).abs() < 5 * error + 1e-3 * p).all())
    again = stored(z[:9], seed=3)
    assert torch.equal(again.ids, stored(z[:9], seed=3).ids)
    assert not torch.equal(again.ids, stored(z[:9], seed=4).ids)


def test_the_gradient_of_forward_kl_has_no_bias() -> None:
    count = 20_000
    teacher, student = logits(1, seed=5).expand(count, V), logits(1, seed=6).expand(count, V)
    objective = Objective(divergence=divergence("kl"), between="teacher||student")
    slopes = []
    for signal in (stored(teacher, seed=7), Logits(teacher)):
        leaf = student.clone().requires_grad_()
        out = distillation_loss(student=Logits(leaf), teacher=signal, objective=objective, vocab_size=V)
        out.loss.backward()
        assert leaf.grad is not None
        slopes.append(leaf.grad.sum(0))
    assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < 0.01


def test_a_row_without_a_rest_draws_nothing() -> None:
    z = torch.full((2, V), -torch.inf)
    z[:, :K] = 1.0
    said = stored(z, seed=1)
    assert bool((said.ids[:, K:] == V).all())
    torch.testing.assert_close(dense(said).sum(-1), torch.ones(2), rtol=2e-3, atol=0)


def test_the_filling_id_fits() -> None:
    assert Layout("samples", 1 << 16, top_k=4, draws=4).id_bytes == 3
    assert Layout("top_k", 1 << 16, top_k=4).id_bytes == 2


def test_a_truncated_source_has_nothing_to_draw_from() -> None:
    said = TopK(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -2.0]]))
    with pytest.raises(SettingError, match=r"teacher\.format: samples draws from whole distributions"):
        layout_of("samples", 2, said, vocab_size=V, draws=3)
