"""The named methods are points of the space: each is written here from its own paper or library, and compared."""

import pytest
import torch
from catalogue import error, logits
from torch.nn import functional

from amidkd.maths import Objective, divergence, value_and_gradient

TEACHER, STUDENT = logits(0, rows=8, vocabulary=20), logits(1, rows=8, vocabulary=20)


def compare(objective, loss):
    """An objective against a loss of student and teacher logits: value, and gradient by two routes."""
    z = STUDENT.clone().requires_grad_()
    wanted = loss(z, TEACHER)
    (slope,) = torch.autograd.grad(wanted.sum(), z)
    mine = STUDENT.clone().requires_grad_()
    log_p = TEACHER.log_softmax(-1)
    value = objective(teacher=log_p, student=mine.log_softmax(-1))
    assert error(value.detach(), wanted.detach()) < 1e-12
    assert error(torch.autograd.grad(value.sum(), mine)[0], slope) < 1e-11
    closed = value_and_gradient(objective, teacher=log_p, student=STUDENT.log_softmax(-1))
    assert error(closed[0], wanted.detach()) < 1e-12
    assert error(closed[1], slope) < 1e-11


def test_forward_kl():
    def loss(z, zt):
        return functional.kl_div(z.log_softmax(-1), zt.log_softmax(-1), reduction="none", log_target=True).sum(-1)

    compare(Objective(between="teacher||student"), loss)


def test_forward_kl_has_the_gradient_of_cross_entropy_with_soft_labels():
    log_p, log_q = TEACHER.log_softmax(-1), STUDENT.log_softmax(-1)
    slope = value_and_gradient(Objective(between="teacher||student"), teacher=log_p, student=log_q)[1]
    assert error(slope, log_q.exp() - log_p.exp()) < 1e-13


def test_reverse_kl_two_ways():
    def loss(z, zt):
        return functional.kl_div(zt.log_softmax(-1), z.log_softmax(-1), reduction="none", log_target=True).sum(-1)

    compare(Objective(between="student||teacher"), loss)
    compare(Objective(divergence=divergence("reverse_kl"), between="teacher||student"), loss)


@pytest.mark.parametrize("skew", [0.1, 0.3])
def test_skew_forward_kl_of_distillm(skew):
    def loss(z, zt):
        p, q = zt.softmax(-1), z.softmax(-1)
        return (p * (p / (skew * p + (1 - skew) * q)).log()).sum(-1)

    compare(Objective(between="teacher||assistant", alpha=-1.0, lam=skew), loss)


@pytest.mark.parametrize("skew", [0.1, 0.3])
def test_skew_reverse_kl_of_distillm(skew):
    def loss(z, zt):
        p, q = zt.softmax(-1), z.softmax(-1)
        return (q * (q / ((1 - skew) * p + skew * q)).log()).sum(-1)

    compare(Objective(between="student||assistant", alpha=-1.0, lam=1 - skew), loss)


def trl_generalized_jsd(z, zt, beta):
    """`GKDTrainer.generalized_jsd_loss` of TRL: β·KL(p‖m) + (1−β)·KL(q‖m), m = β p + (1−β) q; plain KL at the ends."""
    log_q, log_p = z.log_softmax(-1), zt.log_softmax(-1)

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    if beta == 0:
        return kl(log_p, log_q)
    if beta == 1:
        return kl(log_q, log_p)
    b = torch.tensor(beta, dtype=z.dtype)
    log_m = torch.logsumexp(torch.stack([log_q + torch.log1p(-b), log_p + torch.log(b)]), dim=0)
    return b * kl(log_p, log_m) + (1 - b) * kl(log_q, log_m)


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.9])
def test_gkd(beta):
    gkd = beta * Objective(between="teacher||assistant", alpha=-1.0, lam=beta) + (1 - beta) * Objective(
        between="student||assistant", alpha=-1.0, lam=beta
    )
    compare(gkd, lambda z, zt: trl_generalized_jsd(z, zt, beta))


def test_gkd_at_the_ends_is_a_plain_kl_in_trl_only():
    for beta, between in ((0.0, "teacher||student"), (1.0, "student||teacher")):
        compare(Objective(between=between), lambda z, zt, beta=beta: trl_generalized_jsd(z, zt, beta))


def test_half_of_gkd_is_jensen_shannon():
    compare(
        Objective(divergence=divergence("jensen_shannon"), between="teacher||student"),
        lambda z, zt: trl_generalized_jsd(z, zt, 0.5),
    )


@pytest.mark.parametrize("progress", [0.4, 0.7, 1.0])
def test_taid(progress):
    """KL(p_t‖q), p_t the softmax of the logits interpolated with those of the student, which are detached."""

    def loss(z, zt):
        log_t = ((1 - progress) * z.detach() + progress * zt).log_softmax(-1)
        return (log_t.exp() * (log_t - z.log_softmax(-1))).sum(-1)

    objective = Objective(between="assistant||student", alpha=1.0, lam=progress, detach_assistant=True)
    compare(objective, loss)


def test_abkd():
    """The α-β divergence of ABKD at (0.2, 0.7), as the sum over tokens that the paper gives."""

    def loss(z, zt):
        a, b, p, q = 0.2, 0.7, zt.softmax(-1), z.softmax(-1)
        inner = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
        return -inner.sum(-1) / (a * b)

    compare(Objective(divergence=divergence("alpha_beta", a=0.2, b=0.7), between="teacher||student"), loss)


@pytest.mark.parametrize("alpha", [-5.0, -3.0, -0.5, 0.5])
def test_amid_as_its_paper_writes_it(alpha):
    """kl(p‖r) with r = (λ p^s + (1−λ) q^s)^{1/s} / Z."""

    def loss(z, zt):
        s, p, q = (1 - alpha) / 2, zt.softmax(-1), z.softmax(-1)
        raw = (0.1 * p**s + 0.9 * q**s) ** (1 / s)
        return (p * (p / (raw / raw.sum(-1, keepdim=True))).log()).sum(-1)

    compare(Objective(alpha=alpha, lam=0.1), loss)


def test_the_defaults_are_amid():
    assert Objective() == Objective(
        divergence=divergence("kl"),
        between="teacher||assistant",
        alpha=-0.5,
        lam=0.1,
        detach_assistant=False,
        teacher_weights=None,
    )


def test_where_alpha_is_far_below_minus_one_the_student_learns_nothing():
    """The responsibilities of the design at λ = 0.1 where the teacher gives a token 100 times the student's mass."""
    from amidkd.maths import responsibility

    log_q = torch.tensor([0.005, 0.995], dtype=torch.float64).log()
    log_p = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    wanted = {-5.0: 9e-6, -3.0: 9e-4, -1.0: 0.08, 0.0: 0.47, 1.0: 0.9}
    for alpha, omega in wanted.items():
        found = responsibility(log_p, log_q, alpha=alpha, lam=0.1)[0].item()
        assert found == pytest.approx(omega, rel=0.05)
