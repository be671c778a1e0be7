import pytest
import torch

from amidkd.maths.reduce import reduce

LOSSES = torch.tensor([1.0, 5.0, 3.0, 2.0])
MASK = torch.tensor([True, False, True, True])
WEIGHTS = torch.tensor([2.0, 7.0, 1.0, 0.0])


def test_mean_divides_by_the_unmasked_and_not_by_the_weights():
    assert reduce(LOSSES, mask=MASK) == pytest.approx(2.0)
    assert reduce(LOSSES, mask=MASK, weights=WEIGHTS) == pytest.approx(5 / 3)
    assert reduce(LOSSES, mask=MASK.int(), weights=WEIGHTS) == pytest.approx(5 / 3)
    assert reduce(LOSSES, weights=WEIGHTS) == pytest.approx(40 / 4)


@pytest.mark.parametrize("denominator", [10, 10.0, torch.tensor(10), torch.tensor(10.0, dtype=torch.float64)])
def test_denominator_replaces_the_count(denominator):
    loss = reduce(LOSSES, mask=MASK, weights=WEIGHTS, denominator=denominator)
    assert loss.dtype == torch.float32
    assert loss == pytest.approx(0.5)


def test_sum_and_none():
    assert reduce(LOSSES, mask=MASK, weights=WEIGHTS, reduction="sum") == 5.0
    assert reduce(LOSSES, mask=MASK, weights=WEIGHTS, reduction="none").tolist() == [2.0, 0.0, 3.0, 0.0]


@pytest.mark.parametrize("denominator", [None, 4, 0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_supervised_is_zero_with_zero_gradient(reduction, denominator):
    losses = torch.tensor([torch.inf, torch.nan], requires_grad=True)
    denominator = denominator if reduction == "mean" else None
    loss = reduce(losses, mask=torch.zeros(2), reduction=reduction, denominator=denominator)
    loss.backward()
    assert loss == 0.0
    assert losses.grad.tolist() == [0.0, 0.0]


def test_infinite_losses_do_no_harm_where_masked_or_weightless():
    losses = torch.tensor([1.0, torch.inf, torch.inf], requires_grad=True)
    loss = reduce(losses, mask=torch.tensor([1, 0, 1]), weights=torch.tensor([1.0, 1.0, 0.0]))
    loss.backward()
    assert loss == 0.5
    assert losses.grad.tolist() == [0.5, 0.0, 0.0]


def test_unknown_reduction_and_useless_denominator_are_errors():
    with pytest.raises(ValueError, match="got 'avg'"):
        reduce(LOSSES, reduction="avg")
    with pytest.raises(ValueError, match="denominator divides a mean"):
        reduce(LOSSES, reduction="sum", denominator=3)
