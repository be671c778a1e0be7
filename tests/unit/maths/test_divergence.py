import math

import pytest
import torch

from amidkd.maths import DIVERGENCES, divergence

HALF = torch.tensor([[0.5, 0.5, 0.0]]).log()
QUARTER = torch.tensor([[0.25, 0.75, 0.0]]).log()
OTHER = torch.tensor([[0.5, 0.0, 0.5]]).log()
BY_HAND = {
    "kl": 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
    "reverse_kl": 0.25 * math.log(0.5) + 0.75 * math.log(1.5),
    "jeffreys": 0.25 * math.log(2) + 0.25 * math.log(1.5),
    "total_variation": 0.25,
    "squared_hellinger": 1 - math.sqrt(0.125) - math.sqrt(0.375),
    "chi_squared": 0.0625 / 0.25 + 0.0625 / 0.75,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_small_cases_by_hand(name):
    assert divergence(name)(HALF, QUARTER).item() == pytest.approx(BY_HAND[name], rel=1e-6)


def test_one_sided_masses_by_hand():
    """a = (½, ½, 0), b = (½, 0, ½)."""
    log2 = math.log(2)
    wanted = {"jensen_shannon": 0.5 * log2, "total_variation": 0.5, "squared_hellinger": 0.5}
    for name, value in wanted.items():
        assert divergence(name)(HALF, OTHER).item() == pytest.approx(value, rel=1e-6)
    for name in ("kl", "reverse_kl", "jeffreys", "chi_squared"):
        assert divergence(name)(HALF, OTHER).item() == math.inf
    # A = 0.2, B = 0.7: a^C/(BC) and b^C/(AC) of the masses alone
    alone = 0.5**0.9 / (0.7 * 0.9) + 0.5**0.9 / (0.2 * 0.9)
    assert divergence("alpha_beta", a=0.2, b=0.7)(HALF, OTHER).item() == pytest.approx(alone, rel=1e-6)


def test_kl_minds_only_one_side():
    certain = torch.tensor([[1.0, 0.0, 0.0]]).log()
    assert divergence("kl")(certain, HALF).item() == pytest.approx(math.log(2))
    assert divergence("kl")(HALF, certain).item() == math.inf
    assert divergence("reverse_kl")(HALF, certain).item() == pytest.approx(math.log(2))


def test_no_support_at_all_is_infinite_even_for_bounded_divergences():
    nothing = torch.full((1, 3), -torch.inf)
    for name in ("kl", "jensen_shannon", "total_variation", "squared_hellinger"):
        for pair in ((nothing, HALF), (HALF, nothing), (nothing, nothing)):
            assert divergence(name)(*pair).item() == math.inf
            assert all((slope == 0).all() for slope in divergence(name).partials(*pair))


def test_what_passes_the_range_is_infinite_with_zero_slopes():
    log_a, log_b = torch.tensor([[0.0, -200.0]]).log_softmax(-1), torch.tensor([[-200.0, 0.0]]).log_softmax(-1)
    chi_squared = divergence("chi_squared")
    assert chi_squared(log_a, log_b).item() == math.inf
    assert all((slope == 0).all() for slope in chi_squared.partials(log_a, log_b))
    log_a.requires_grad_()
    (slope,) = torch.autograd.grad(chi_squared(log_a, log_b).sum(), log_a)
    assert (slope == 0).all()
    assert chi_squared(log_a.double(), log_b.double()).item() == pytest.approx(math.exp(200))


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n not in ("amari", "alpha_beta")])
def test_nan_is_never_hidden(name):
    broken = HALF.clone()
    broken[0, 0] = torch.nan
    assert divergence(name)(broken, QUARTER).isnan().all()
    assert divergence(name)(QUARTER, broken).isnan().all()


def test_the_catalogue_is_complete_and_each_makes_a_value():
    parameters = {"amari": {"order": 0.5}, "alpha_beta": {"a": 0.2, "b": 0.7}}
    assert len(DIVERGENCES) == 9
    for name in DIVERGENCES:
        value = divergence(name, **parameters.get(name, {}))(HALF, QUARTER)
        assert 0 < value.item() < 1
        assert divergence(name, **parameters.get(name, {})) == DIVERGENCES[name](**parameters.get(name, {}))


def test_wrong_names_and_parameters_say_what_is_right():
    with pytest.raises(ValueError, match="did you mean 'reverse_kl'"):
        divergence("revers_kl")
    with pytest.raises(ValueError, match="'amari' takes order; got none"):
        divergence("amari")
    with pytest.raises(ValueError, match="'alpha_beta' takes a and b; got a"):
        divergence("alpha_beta", a=0.2)
    with pytest.raises(ValueError, match="'kl' takes no parameters; got order"):
        divergence("kl", order=1.0)
    with pytest.raises(ValueError, match="order must be a finite number; got nan"):
        divergence("amari", order=float("nan"))
