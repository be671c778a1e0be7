import math

import pytest
import torch

from amidkd.maths import Objective, WeightedSum, divergence, log_mixture, log_mixture_of, value_and_gradient
from amidkd.maths.objective import per_token_settings, take_rows

INF = torch.inf


def draw(seed, rows=5, vocabulary=7):
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


P, P2, Z = draw(0).log_softmax(-1), draw(1).log_softmax(-1), draw(2)


def gradient(objective, teacher, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(objective(teacher=teacher, student=z.log_softmax(-1)).sum(), z)[0]


def test_detached_assistant_is_a_constant():
    log_q = Z.log_softmax(-1)
    for between in ("student||assistant", "assistant||student"):
        objective = Objective(between=between, alpha=0.5, lam=0.3, detach_assistant=True)
        log_r = log_mixture(P, log_q, alpha=0.5, lam=0.3)
        plain = Objective(between=between.replace("assistant", "teacher"))
        torch.testing.assert_close(gradient(objective, P, Z), gradient(plain, log_r, Z))
        value, slope = value_and_gradient(objective, teacher=P, student=log_q)
        torch.testing.assert_close(value, plain(teacher=log_r, student=log_q))
        torch.testing.assert_close(slope, gradient(plain, log_r, Z))


@pytest.mark.parametrize("between", ["teacher||assistant", "assistant||teacher"])
def test_detaching_all_of_the_student_is_an_error(between):
    with pytest.raises(ValueError, match=r"detach_assistant=True with between='.*' leaves no gradient"):
        Objective(between=between, detach_assistant=True)


def test_several_teachers_are_their_mixture_and_the_assistant_is_flat():
    log_q = Z.log_softmax(-1)
    objective = Objective(alpha=-3.0, lam=0.4, teacher_weights=[0.25, 0.75])
    seat = log_mixture_of([P, P2], weights=[0.25, 0.75], alpha=-3.0)
    flat = log_mixture_of([P, P2, log_q], weights=[0.1, 0.3, 0.6], alpha=-3.0)
    wanted = divergence("kl")(seat, flat)
    torch.testing.assert_close(objective(teacher=[P, P2], student=log_q), wanted)
    nested = divergence("kl")(seat, log_mixture(seat, log_q, alpha=-3.0, lam=0.4))
    assert (wanted - nested).abs().min() > 1e-5
    uniform = Objective(alpha=-3.0, lam=0.4)(teacher=[P, P2], student=log_q)
    torch.testing.assert_close(
        uniform, Objective(alpha=-3.0, lam=0.4, teacher_weights=[0.5, 0.5])(teacher=[P, P2], student=log_q)
    )


def test_a_list_of_one_is_that_teacher_and_a_weightless_one_is_not_there():
    log_q = Z.log_softmax(-1)
    wanted = Objective()(teacher=P, student=log_q)
    torch.testing.assert_close(Objective()(teacher=[P], student=log_q), wanted, rtol=0, atol=0)
    masked = P2.clone()
    masked[:, 2] = -INF
    for lam in (0.1, torch.full((5,), 0.1, dtype=torch.float64)):
        for alpha in (-1.0, 3.0):
            objective = Objective(alpha=alpha, lam=lam, teacher_weights=[1.0, 0.0])
            value, slope = value_and_gradient(objective, teacher=[P, masked], student=log_q)
            alone = value_and_gradient(Objective(alpha=alpha, lam=0.1), teacher=P, student=log_q)
            torch.testing.assert_close((value, slope), alone, rtol=1e-12, atol=1e-13)


def test_teacher_weights_must_fit():
    with pytest.raises(ValueError, match="one entry for each of the 2 sources; got 3"):
        Objective(teacher_weights=[0.5, 0.25, 0.25])(teacher=[P, P2], student=P)
    with pytest.raises(ValueError, match="teacher_weights must sum to 1"):
        Objective(teacher_weights=[0.5, 0.6])
    with pytest.raises(ValueError, match="teacher_weights needs a list of teachers"):
        Objective(teacher_weights=[1.0])(teacher=P, student=P)
    with pytest.raises(ValueError, match="teacher is an empty list"):
        Objective()(teacher=[], student=P)


def test_sums_weigh_nest_and_flatten():
    first, second = Objective(alpha=0.0), Objective(between="student||assistant", alpha=-1.0, lam=0.3)
    both = 0.3 * first + 0.7 * second
    assert both.terms == ((0.3, first), (0.7, second))
    assert (0.5 * both + first).terms == ((0.15, first), (0.35, second), (1.0, first))
    log_q = Z.log_softmax(-1)
    wanted = 0.3 * first(teacher=P, student=log_q) + 0.7 * second(teacher=P, student=log_q)
    torch.testing.assert_close(both(teacher=P, student=log_q), wanted)
    value, slope = value_and_gradient(both, teacher=P, student=log_q)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(slope, gradient(both, P, Z))


def test_a_sum_leaves_out_terms_of_weight_zero_even_infinite_ones():
    dead = Z.clone()
    dead[:, 0] = -INF
    log_q = dead.log_softmax(-1)
    both = 1.0 * Objective(between="student||teacher") + 0.0 * Objective(between="teacher||student")
    assert both(teacher=P, student=log_q).isfinite().all()
    assert value_and_gradient(both, teacher=P, student=log_q)[0].isfinite().all()
    assert ((both + Objective(between="teacher||student"))(teacher=P, student=log_q) == INF).all()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_terms_are_checked(weight):
    with pytest.raises(ValueError, match="weight of an objective must be a finite number, at least 0"):
        weight * Objective()
    with pytest.raises(ValueError, match="at least one term"):
        WeightedSum(())
    with pytest.raises(TypeError):
        Objective() + 1


def test_unknown_pair_and_divergence():
    with pytest.raises(ValueError, match=r"between must be one of teacher\|\|student, .*; got 'student'"):
        Objective(between="student")
    with pytest.raises(ValueError, match=r"divergence must be made by divergence.*got 'kl'"):
        Objective(divergence="kl")


def my_divergence(log_a, log_b):
    """Σ (a − b)², which is 0 where both are masked."""
    return (log_a.exp() - log_b.exp()).square().sum(-1)


@pytest.mark.parametrize("between", ["teacher||student", "teacher||assistant", "assistant||student"])
@pytest.mark.parametrize("dead", [(), (1, 3)])
def test_a_divergence_of_your_own(between, dead):
    log_p, z = P.clone(), Z.clone()
    log_p[:, list(dead)] = -INF
    z[:, list(dead)] = -INF
    log_p = log_p.log_softmax(-1)
    objective = Objective(divergence=my_divergence, between=between, alpha=0.5, lam=0.4)
    value, slope = value_and_gradient(objective, teacher=log_p, student=z.log_softmax(-1))
    torch.testing.assert_close(value, objective(teacher=log_p, student=z.log_softmax(-1)))
    torch.testing.assert_close(slope, gradient(objective, log_p, z))
    assert (slope[:, list(dead)] == 0).all()
    assert slope.abs().max() > 1e-3


def test_a_divergence_of_your_own_has_the_gradient_of_the_same_in_the_catalogue():
    def mine(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    for between in ("teacher||student", "student||assistant", "assistant||teacher"):
        pair = [
            value_and_gradient(Objective(divergence=d, between=between), teacher=P, student=Z.log_softmax(-1))
            for d in (mine, divergence("kl"))
        ]
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12)


def test_a_divergence_of_your_own_must_give_one_value_per_token():
    for wrong in (lambda a, b: (a - b).square(), lambda a, b: (a - b).square().sum()):
        objective = Objective(divergence=wrong)
        with pytest.raises(ValueError, match="must return one value per token"):
            objective(teacher=P, student=P)
        with pytest.raises(ValueError, match="must return one value per token"):
            value_and_gradient(objective, teacher=P, student=P)


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("per_token", [False, True])
def test_lambda_at_its_ends_puts_the_assistant_exactly_on_one_side(lam, per_token):
    log_q = Z.log_softmax(-1)
    other = log_q if lam == 0.0 else P
    setting = torch.full((5,), lam, dtype=torch.float64) if per_token else lam
    for between in ("teacher||assistant", "student||assistant"):
        objective = Objective(between=between, alpha=0.5, lam=setting)
        first = P if between.startswith("teacher") else log_q
        torch.testing.assert_close(
            objective(teacher=P, student=log_q), divergence("kl")(first, other), rtol=1e-12, atol=0.0
        )
        slope = gradient(objective, P, Z)
        assert (slope.abs().max() < 1e-12) == (between.startswith("teacher") == (lam == 1.0))
        assert torch.allclose(value_and_gradient(objective, teacher=P, student=log_q)[1], slope, atol=1e-12)


def test_adaptive_alpha_and_lambda_can_be_learnt():
    alpha = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    lam = torch.full((5,), 0.3, dtype=torch.float64, requires_grad=True)
    log_q = Z.log_softmax(-1)
    assert torch.autograd.gradcheck(lambda a, w: Objective(alpha=a, lam=w)(teacher=P, student=log_q), (alpha, lam))


def test_settings_per_token_are_found_and_narrowed():
    alpha, lam = torch.linspace(-3, 3, 5), torch.linspace(0, 1, 5)
    objective = 0.5 * Objective(alpha=alpha) + 0.5 * Objective(lam=lam)
    assert [name for name, _ in per_token_settings(objective)] == ["terms[0].alpha", "terms[1].lam"]
    assert [name for name, _ in per_token_settings(Objective(alpha=alpha, lam=lam))] == ["alpha", "lam"]
    assert not list(per_token_settings(Objective(alpha=torch.tensor(0.5))))
    full = objective(teacher=P, student=Z.log_softmax(-1))
    for rows in (slice(1, 4), torch.tensor([4, 0, 2])):
        some = take_rows(objective, rows)(teacher=P[rows], student=Z.log_softmax(-1)[rows])
        torch.testing.assert_close(some, full[rows])
    plain = Objective()
    assert take_rows(plain, slice(0, 2)) is plain


def test_nothing_is_written_to_the_inputs_and_no_graph_is_kept():
    log_p, z = P.clone(), Z.clone().requires_grad_()
    log_q = z.log_softmax(-1)
    value, slope = value_and_gradient(Objective(), teacher=log_p, student=log_q)
    assert not value.requires_grad
    assert not slope.requires_grad
    assert torch.equal(log_p, P)
    assert torch.equal(log_q, Z.log_softmax(-1))


def test_nan_in_either_side_is_seen():
    broken = Z.clone()
    broken[1, 2] = torch.nan
    for objective in (Objective(), Objective(between="student||assistant", alpha=1.0), Objective(alpha=3.0)):
        value = objective(teacher=P, student=broken.log_softmax(-1))
        assert value.isnan().tolist() == [False, True, False, False, False]


def test_an_empty_intersection_has_no_assistant_and_the_value_says_so():
    log_p = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    log_q = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).log()
    assert (log_mixture(log_p, log_q, alpha=1.0, lam=0.5) == -INF).all()
    for name in ("kl", "total_variation", "jensen_shannon"):
        for between in ("teacher||assistant", "assistant||student"):
            for alpha in (1.0, 3.0):
                objective = Objective(divergence=divergence(name), between=between, alpha=alpha, lam=0.5)
                value, slope = value_and_gradient(objective, teacher=log_p, student=log_q)
                assert value.item() == math.inf
                assert (slope == 0).all()
