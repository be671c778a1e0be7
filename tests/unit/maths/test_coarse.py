import math

import pytest
import torch

from amidkd.maths.coarse import coarse_grain, log_complement, truncate, with_tail


def test_merges_to_the_chosen_and_the_rest():
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    merged = coarse_grain(log_p, torch.tensor([[0, 3], [2, 1]])).exp()
    expected = torch.tensor([[0.5, 0.05, 0.45], [0.3, 0.2, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(merged, expected)


def test_tail_keeps_its_digits_where_one_minus_the_sum_has_none():
    z = torch.tensor([0.0, -40.0, -41.0, -42.0])
    tail = coarse_grain(z.log_softmax(-1), torch.tensor([0]))[-1]
    exact = math.log(math.exp(-40) + math.exp(-41) + math.exp(-42))
    assert tail.item() == pytest.approx(exact, rel=1e-6)


def test_empty_and_dead_complements_have_no_tail_and_no_nan():
    z = torch.tensor([[1.0, 2.0, -torch.inf], [1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    merged = coarse_grain(z, torch.tensor([[0, 1], [0, 1]]))
    assert merged[0, -1] == -torch.inf
    assert merged[1, -1] == 3.0
    assert coarse_grain(z, torch.tensor([[2, 0, 1]] * 2))[:, -1].tolist() == [-torch.inf] * 2
    (gradient,) = torch.autograd.grad(merged.exp().sum(), z)
    torch.testing.assert_close(gradient, z.detach().exp())


def test_gradient_matches_finite_differences():
    z = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.tensor([[0, 3], [6, 1], [2, 5]])
    assert torch.autograd.gradcheck(lambda z: coarse_grain(z, ids), z)


def test_truncate_then_with_tail_is_the_merged_distribution():
    log_p = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    ids, log_probs, log_tail = truncate(log_p, 4)
    assert (log_probs.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(with_tail(log_probs, log_tail), coarse_grain(log_p, ids))
    torch.testing.assert_close(with_tail(log_probs), coarse_grain(log_p, ids))
    with pytest.raises(ValueError, match=r"k must be in 1 … V = 11; got 12"):
        truncate(log_p, 12)


def test_with_tail_renormalises_both_together():
    merged = with_tail(torch.tensor([0.2, 0.2]).log(), torch.tensor(0.1).log()).exp()
    torch.testing.assert_close(merged, torch.tensor([0.4, 0.4, 0.2]))


def test_an_implied_tail_is_never_the_rounding_of_the_sum():
    log_p = torch.randn(200, 50, generator=torch.Generator().manual_seed(2)).mul(4).log_softmax(-1)
    assert (log_complement(log_p) == -torch.inf).all()
    just_above_one = torch.tensor([0.5, 0.5]).log() + 1e-6
    assert log_complement(just_above_one) == -torch.inf
    assert log_complement(torch.tensor([0.9999]).log()).item() == pytest.approx(math.log(1e-4), abs=1e-3)
    assert log_complement(torch.tensor([0.25]).log()).item() == pytest.approx(math.log(0.75))
