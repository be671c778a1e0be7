"""Laws of the α-mixture: symmetry, support, continuity, the minimiser property, and accuracy in float32."""

import itertools

import pytest
import torch
from catalogue import ALPHAS, LAMS, MASKS, SEEDED, alphas, error, lams, logits, masked, pairs
from hypothesis import given
from hypothesis import strategies as st

from amidkd.maths import divergence, log_mixture, log_mixture_of, responsibility

INF = torch.inf


@SEEDED
@given(pair=pairs(), alpha=alphas, lam=lams)
def test_normalised_and_between_minimum_and_maximum(pair, alpha, lam):
    log_p, log_q = pair
    log_r = log_mixture(log_p, log_q, alpha=alpha, lam=lam)
    torch.testing.assert_close(log_r.logsumexp(-1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    # up to the one normaliser, every token lies between its two probabilities
    lowest = (torch.minimum(log_p, log_q) - log_r).amax(-1)
    highest = (torch.maximum(log_p, log_q) - log_r).amin(-1)
    assert (lowest <= highest + 1e-9).all()


@SEEDED
@given(pair=pairs(), alpha=alphas, lam=lams)
def test_symmetric_under_exchange_of_the_sources(pair, alpha, lam):
    log_p, log_q = pair
    torch.testing.assert_close(
        log_mixture(log_p, log_q, alpha=alpha, lam=lam),
        log_mixture(log_q, log_p, alpha=alpha, lam=1 - lam),
        rtol=1e-12,
        atol=1e-12,
    )


@SEEDED
@given(pair=pairs(), alpha=alphas, lam=lams, seed=st.integers(0, 1000))
def test_minimises_the_weighted_amari_divergences(pair, alpha, lam, seed):
    """r is the argmin of λ D_α(p‖·) + (1−λ) D_α(q‖·): no other distribution, near or far, has less."""
    log_p, log_q = pair
    amari = divergence("amari", order=alpha)

    def total(log_x):
        return lam * amari(log_p, log_x) + (1 - lam) * amari(log_q, log_x)

    log_r = log_mixture(log_p, log_q, alpha=alpha, lam=lam)
    least = total(log_r)
    noise = logits(seed, rows=4, vocabulary=log_p.shape[-1], spread=1.0)
    for size in (1e-2, 0.3, 2.0):
        assert (total((log_r + size * noise).log_softmax(-1)) >= least * (1 - 1e-9)).all()
    assert (total(log_p) >= least * (1 - 1e-9)).all()
    assert (total(log_q) >= least * (1 - 1e-9)).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_minimiser_is_stationary(alpha):
    log_p, log_q = (logits(seed).log_softmax(-1) for seed in (0, 1))
    z = log_mixture(log_p, log_q, alpha=alpha, lam=0.3).requires_grad_()
    amari, log_r = divergence("amari", order=alpha), z.log_softmax(-1)
    total = 0.3 * amari(log_p, log_r) + 0.7 * amari(log_q, log_r)
    (slope,) = torch.autograd.grad(total.sum(), z)
    assert slope.abs().max() < 1e-10 * max(1.0, total.max().item())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("per_token", [False, True])
def test_support_is_the_union_below_one_and_the_intersection_from_one(alpha, mask, per_token):
    dead_p, dead_q = MASKS[mask]
    log_p = masked(logits(0), dead_p).log_softmax(-1)
    log_q = masked(logits(1), dead_q).log_softmax(-1)
    for lam in LAMS:
        setting = [torch.full((6,), x, dtype=torch.float64) if per_token else x for x in (alpha, lam)]
        found = log_mixture(log_p, log_q, alpha=setting[0], lam=setting[1])
        assert not found.isnan().any()
        if lam in (0.0, 1.0):
            assert torch.equal(found, log_p if lam == 1.0 else log_q)
            continue
        has_p, has_q = log_p > -INF, log_q > -INF
        assert torch.equal(found > -INF, has_p | has_q if alpha < 1 else has_p & has_q)
        some = (found > -INF).any(-1)
        assert torch.allclose(found[some].logsumexp(-1), torch.zeros(int(some.sum()), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_source_of_weight_zero_is_not_there(alpha):
    sources = [masked(logits(seed), dead).log_softmax(-1) for seed, dead in ((0, ()), (1, (2,)), (2, (5, 6)))]
    wanted = log_mixture_of(sources[:2], weights=[0.3, 0.7], alpha=alpha)
    assert torch.equal(log_mixture_of(sources, weights=[0.3, 0.7, 0.0], alpha=alpha), wanted)
    weights = [torch.full((6,), w, dtype=torch.float64) for w in (0.3, 0.7, 0.0)]
    found = log_mixture_of(sources, weights=weights, alpha=alpha)
    assert torch.equal(found > -INF, wanted > -INF)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_sources_come_in_any_order_and_two_are_the_assistant(alpha):
    sources = [logits(seed).log_softmax(-1) for seed in range(3)]
    weights = [0.2, 0.5, 0.3]
    wanted = log_mixture_of(sources, weights=weights, alpha=alpha)
    for order in itertools.permutations(range(3)):
        found = log_mixture_of([sources[k] for k in order], weights=[weights[k] for k in order], alpha=alpha)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    two = log_mixture_of(sources[:2], weights=[0.2, 0.8], alpha=alpha)
    torch.testing.assert_close(two, log_mixture(*sources[:2], alpha=alpha, lam=0.2), rtol=1e-13, atol=1e-13)


def test_flat_and_nested_mixtures_are_the_same_only_at_one_and_minus_one():
    a, b, q = (logits(seed).log_softmax(-1) for seed in range(3))
    for alpha in (-3.0, -1.0, 0.5, 1.0, 3.0):
        flat = log_mixture_of([a, b, q], weights=[0.06, 0.14, 0.8], alpha=alpha)
        nested = log_mixture(log_mixture_of([a, b], weights=[0.3, 0.7], alpha=alpha), q, alpha=alpha, lam=0.2)
        assert ((flat - nested).abs().max() < 1e-12) == (abs(alpha) == 1.0)


@SEEDED
@given(pair=pairs(torch.float32), lam=lams, step=st.floats(1e-7, 1e-2))
def test_continuous_through_one_in_float32(pair, lam, step):
    log_p, log_q = pair
    spread = (log_p - log_q).abs().max().item()
    at = log_mixture(log_p, log_q, alpha=1.0, lam=lam)
    for alpha in (1.0 - step, 1.0 + step):
        near = log_mixture(log_p, log_q, alpha=alpha, lam=lam)
        # |d log r / dα| ≤ Δ²/8 up to the normaliser
        assert (near - at).abs().max().item() <= step * spread**2 / 4 + 1e-6 * (1 + spread)


@pytest.mark.parametrize("lam", [1e-6, 0.01, 0.1, 0.5, 0.9, 0.99, 1 - 1e-6])
@pytest.mark.parametrize("alpha", [*ALPHAS, 0.999, 0.9999999, 1.0000001])
@pytest.mark.parametrize("mask", ["none", "overlapping"])
def test_float32_is_the_float64_mixture(alpha, lam, mask):
    dead_p, dead_q = MASKS[mask]
    log_p, log_q = masked(logits(0), dead_p).log_softmax(-1), masked(logits(1), dead_q).log_softmax(-1)
    log_p, log_q = log_p.float(), log_q.float()
    wanted = log_mixture(log_p.double(), log_q.double(), alpha=alpha, lam=lam)
    found = log_mixture(log_p, log_q, alpha=alpha, lam=lam)
    live = (wanted > -50.0).all(0)
    assert torch.equal(found > -INF, wanted > -INF)
    torch.testing.assert_close(found[:, live].double(), wanted[:, live], rtol=3e-6, atol=3e-6)


def test_disjoint_supports_keep_their_digits_just_below_one():
    """λ^{1/s} is e^{−46,000} here: added to log p in float32 it would leave no digit of it."""
    dead_p, dead_q = MASKS["disjoint"]
    log_p, log_q = masked(logits(0), dead_p).log_softmax(-1), masked(logits(1), dead_q).log_softmax(-1)
    half = log_mixture(log_p.float(), log_q.float(), alpha=0.99997, lam=0.5).double()
    torch.testing.assert_close(half, log_mixture(log_p, log_q, alpha=-1.0, lam=0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("mask", ["none", "teacher", "student", "both"])
def test_responsibility_is_the_derivative_and_the_sigmoid(alpha, mask):
    dead_p, dead_q = MASKS[mask]
    log_p, log_q = masked(logits(0), dead_p).log_softmax(-1), masked(logits(1), dead_q).log_softmax(-1)
    omega = responsibility(log_p, log_q, alpha=alpha, lam=0.3)
    assert ((omega >= 0) & (omega <= 1)).all()
    both = (log_p > -INF) & (log_q > -INF)
    s = (1 - alpha) / 2
    logit = torch.where(both, torch.logit(torch.tensor(0.7, dtype=torch.float64)) - s * (log_p - log_q), 0.0)
    assert error(omega[both], torch.sigmoid(logit)[both]) < 1e-12
    # d log r = ω d log q − Σ r ω d log q
    moved = log_q.clone().requires_grad_()
    log_r = log_mixture(log_p, moved, alpha=alpha, lam=0.3)
    (slope,) = torch.autograd.grad(log_r[both].sum(), moved)
    r, counted = log_r.detach().exp(), both.double()
    assert error(slope, omega * (counted - r * counted.sum(-1, keepdim=True))) < 1e-11


def test_responsibility_at_the_ends():
    log_p, log_q = (logits(seed).log_softmax(-1) for seed in (0, 1))
    assert (responsibility(log_p, log_q, alpha=0.5, lam=0.0) == 1).all()
    assert (responsibility(log_p, log_q, alpha=0.5, lam=1.0) == 0).all()
    ends = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.equal(responsibility(log_p, log_q, alpha=0.5, lam=ends), (1 - ends).unsqueeze(-1).expand(6, 9))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradcheck_of_every_source_and_of_alpha_and_lambda(alpha):
    sources = [logits(seed, rows=2, vocabulary=4).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(
        lambda *z: log_mixture_of([x.log_softmax(-1) for x in z], weights=[0.2, 0.5, 0.3], alpha=alpha), sources
    )
    lam = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    inputs = [lam, *sources[:2]]
    if alpha not in (1.0, 0.99999, 1.00001):
        inputs = [torch.full((2,), alpha, dtype=torch.float64, requires_grad=True), *inputs]
    assert torch.autograd.gradcheck(
        lambda *x: log_mixture(
            x[-2].log_softmax(-1), x[-1].log_softmax(-1), alpha=x[0] if len(x) == 4 else alpha, lam=x[-3]
        ),
        inputs,
    )


def test_unnormalised_sources_still_give_a_distribution():
    log_p, log_q = logits(0), logits(1)
    log_r = log_mixture(log_p, log_q, alpha=-1.0, lam=0.3)
    wanted = (0.3 * log_p.exp() + 0.7 * log_q.exp()).log().log_softmax(-1)
    torch.testing.assert_close(log_r, wanted, rtol=1e-12, atol=1e-12)
