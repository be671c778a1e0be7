"""Laws of the divergences alone: at least 0, 0 only at equality, continuous in their parameters, one family."""

import mpmath
import pytest
import torch
from catalogue import DIVERGENCES, SEEDED, error, logits, made, pairs
from hypothesis import given
from hypothesis import strategies as st

from amidkd.maths import divergence

EVERY = pytest.mark.parametrize("name", DIVERGENCES, ids=str)
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@EVERY
@FLOATS
@SEEDED
@given(data=st.data())
def test_never_negative_and_finite_on_full_support(name, dtype, data):
    log_a, log_b = data.draw(pairs(dtype))
    value = made(name)(log_a, log_b)
    assert value.shape == log_a.shape[:-1]
    assert value.dtype == dtype
    assert (value >= 0).all()
    assert value.isfinite().all()


@EVERY
@FLOATS
def test_exactly_zero_at_equality_with_zero_slopes_between_distributions(name, dtype):
    log_a = logits(0, spread=4.0).to(dtype).log_softmax(-1)
    assert (made(name)(log_a, log_a) == 0).all()
    for slope in made(name).partials(log_a, log_a):
        assert (slope == 0).all()


@EVERY
@SEEDED
@given(data=st.data())
def test_above_zero_where_they_differ(name, data):
    log_a, log_b = data.draw(pairs())
    total_variation = divergence("total_variation")(log_a, log_b)
    assert (made(name)(log_a, log_b)[total_variation > 1e-9] > 0).all()


BOUNDED = ["jensen_shannon", "total_variation", "squared_hellinger"]


@EVERY
@pytest.mark.parametrize("spread", [30.0, 1e2, 1e3, 1e4])
def test_float32_survives_any_logits(name, spread):
    log_a, log_b = (logits(seed, rows=40, vocabulary=100, spread=spread).float().log_softmax(-1) for seed in (0, 1))
    value = made(name)(log_a, log_b)
    assert (value >= 0).all()
    if name[0] in ("kl", "reverse_kl", "jeffreys", *BOUNDED):
        assert value.isfinite().all()
        torch.testing.assert_close(value.double(), made(name)(log_a.double(), log_b.double()), rtol=1e-5, atol=1e-6)
    for slope in made(name).partials(log_a, log_b):
        assert not slope.isnan().any()


SMOOTH = [name for name in DIVERGENCES if name[0] != "total_variation"]


@pytest.mark.parametrize("name", SMOOTH, ids=str)
def test_float32_keeps_its_digits_near_equality(name):
    """A textbook sum has none left here: the value is 1e-6 and its terms are 1."""
    z = logits(0, vocabulary=50)
    other = (z + logits(1, vocabulary=50, spread=0.003)).float().double()
    exact = made(name)(z.log_softmax(-1), other.log_softmax(-1))
    found = made(name)(z.float().log_softmax(-1), other.float().log_softmax(-1))
    ratio = (found.double() / exact - 1).abs().max().item()
    assert ratio < (0.05 if name[0] == "alpha_beta" else 2e-3)


@EVERY
def test_partials_are_the_derivatives_in_free_log_probabilities(name):
    log_a, log_b = (logits(seed).log_softmax(-1).requires_grad_() for seed in (0, 1))
    wanted = torch.autograd.grad(made(name)(log_a, log_b).sum(), (log_a, log_b))
    for found, reference in zip(made(name).partials(log_a.detach(), log_b.detach()), wanted, strict=True):
        assert error(found, reference) < 1e-12


@pytest.mark.parametrize("name", SMOOTH, ids=str)
@pytest.mark.parametrize("apart", [0.1, 2.0])
def test_gradcheck_in_both_arguments(name, apart):
    z = logits(0, rows=2, vocabulary=5)
    other = z + logits(1, rows=2, vocabulary=5, spread=apart)
    inputs = (z.requires_grad_(), other.requires_grad_())

    def run(za, zb):
        return made(name)(za.log_softmax(-1), zb.log_softmax(-1))

    assert torch.autograd.gradcheck(run, inputs, atol=1e-7, rtol=1e-6)
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-5, rtol=1e-4)


IDENTITIES = [
    (("amari", {"order": -1.0}), 1.0, ("kl", {})),
    (("amari", {"order": 1.0}), 1.0, ("reverse_kl", {})),
    (("amari", {"order": 0.0}), 4.0, ("squared_hellinger", {})),
    (("amari", {"order": -3.0}), 0.5, ("chi_squared", {})),
    (("amari", {"order": 0.4}), 1.0, ("alpha_beta", {"a": 0.3, "b": 0.7})),
    (("alpha_beta", {"a": 1.0, "b": 0.0}), 1.0, ("kl", {})),
    (("alpha_beta", {"a": 0.0, "b": 1.0}), 1.0, ("reverse_kl", {})),
]


@pytest.mark.parametrize(("left", "factor", "right"), IDENTITIES, ids=str)
def test_identities_within_the_family(left, factor, right):
    log_a, log_b = (logits(seed).log_softmax(-1) for seed in (0, 1))
    torch.testing.assert_close(made(left)(log_a, log_b), factor * made(right)(log_a, log_b), rtol=1e-12, atol=0.0)


def test_the_squared_distance_is_half_the_sum_of_squares():
    log_a, log_b = (logits(seed).log_softmax(-1) for seed in (0, 1))
    wanted = 0.5 * (log_a - log_b).square().sum(-1)
    torch.testing.assert_close(divergence("alpha_beta", a=0.0, b=0.0)(log_a, log_b), wanted)


def exact_alpha_beta(log_a, log_b, a, b):
    """In 200 digits, for parameters that are no limit themselves."""
    with mpmath.workdps(200):
        a, b = mpmath.mpf(a), mpmath.mpf(b)
        c = a + b
        terms = (
            mpmath.exp(a * x + b * y) - a / c * mpmath.exp(c * x) - b / c * mpmath.exp(c * y)
            for x, y in zip(map(mpmath.mpf, log_a.tolist()), map(mpmath.mpf, log_b.tolist()), strict=True)
        )
        return float(-mpmath.fsum(terms) / (a * b))


TINY = [1e-2, 1e-4, 1e-6, 1e-8, 1e-12, 1e-25, 1e-40]
LIMITS = {
    "A to 0": lambda t: (t, 0.7),
    "A to 0 from below": lambda t: (-t, 0.7),
    "B to 0": lambda t: (0.7, t),
    "C to 0": lambda t: (0.5, -0.5 + t),
    "A and B to 0": lambda t: (t, 2 * t),
    "A, B and C to 0": lambda t: (t, -t * 0.999),
    "order to -1": lambda t: (1 - t, t),
    "order to 1, from above": lambda t: (-t, 1 + t),
}


@pytest.mark.parametrize("apart", [0.01, 3.0])
@pytest.mark.parametrize("limit", LIMITS)
def test_float32_is_right_all_the_way_into_the_limits(limit, apart):
    z = logits(3, rows=1)
    log_a, log_b = z.float().log_softmax(-1), (z + logits(4, rows=1, spread=apart)).float().log_softmax(-1)
    for t in TINY:
        a, b = LIMITS[limit](t)
        found = divergence("alpha_beta", a=a, b=b)(log_a, log_b).item()
        if a + b == 0:
            # t is lost beside 1/2: this is the limit itself, which tests/golden holds
            wanted = divergence("alpha_beta", a=a, b=b)(log_a.double(), log_b.double()).item()
        else:
            wanted = exact_alpha_beta(log_a[0], log_b[0], a, b)
        assert found == pytest.approx(wanted, rel=1e-4), t


@pytest.mark.parametrize("order", [-1.0, 1.0])
@SEEDED
@given(data=st.data(), step=st.floats(-1e-3, 1e-3))
def test_amari_is_continuous_through_its_limits_in_float32(order, data, step):
    log_a, log_b = data.draw(pairs(torch.float32))
    at = divergence("amari", order=order)(log_a, log_b)
    near = divergence("amari", order=order + step)(log_a, log_b)
    torch.testing.assert_close(near, at, rtol=40 * abs(step) + 1e-5, atol=1e-9)
