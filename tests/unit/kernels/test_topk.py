"""Truncated teachers: K tokens and a tail."""

import pytest
import torch

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.maths.coarse import coarse_grain, truncate
from amidkd.signals import Logits, TopK

BACKENDS = ("naive", "chunked")
N, V, K = 5, 17, 4
FORWARD_KL = Objective(divergence=divergence("kl"), between="teacher||student")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@pytest.fixture(params=BACKENDS)
def loss_of(request):
    def call(student, teacher, **arguments):
        arguments = {"objective": FORWARD_KL, "backend": request.param, "memory_mb": 1e-4, **arguments}
        return distillation_loss(student=Logits(student), teacher=teacher, **arguments)

    return call


def test_by_hand(loss_of):
    z = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log().requires_grad_()
    teacher = TopK(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.2]], dtype=torch.float64).log())
    out = loss_of(z, teacher)
    out.loss.backward()
    p, q = torch.tensor([0.5, 0.2, 0.3]).double(), torch.tensor([0.2, 0.1, 0.7]).double()
    torch.testing.assert_close(out.loss.detach(), (p * (p / q).log()).sum())
    # dL/dz: q − p for the chosen; the tail's 0.7 − 0.3 is shared as 0.4 : 0.3
    torch.testing.assert_close(z.grad, torch.tensor([[-0.1, 0.4 * 4 / 7, -0.3, 0.4 * 3 / 7]]).double())


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("between", ["teacher||assistant", "student||assistant", "teacher||student"])
def test_every_token_kept_is_the_dense_teacher(loss_of, stored, between):
    z, log_p = randn(N, V).requires_grad_(), randn(N, V, seed=1).log_softmax(-1)
    log_p[1, 5] = z.data[1, 5] = -torch.inf
    objective = Objective(alpha=-3.0, lam=0.1, between=between)
    ids, log_probs, tail = truncate(log_p.log_softmax(-1), V)
    dense = loss_of(z, Logits(log_p), objective=objective)
    (wanted,) = torch.autograd.grad(dense.loss, z)
    kept = loss_of(z, TopK(ids, log_probs, tail if stored else None), objective=objective)
    (found,) = torch.autograd.grad(kept.loss, z)
    torch.testing.assert_close(kept.loss, dense.loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_in_float32_every_token_kept_leaves_no_infinite_tail(loss_of):
    for seed in range(20):
        z, log_p = randn(N, V).float(), randn(N, V, seed=seed).float().log_softmax(-1)
        ids, log_probs, _ = truncate(log_p, V)
        found = loss_of(z, TopK(ids, log_probs)).loss
        torch.testing.assert_close(found, loss_of(z, Logits(log_p)).loss, rtol=1e-5, atol=1e-6)


def test_live_tokens_all_kept_with_the_rest_masked_on_both_sides(loss_of):
    for seed in range(10):
        z, zt = randn(N, V).float(), randn(N, V, seed=seed).float()
        z[:, K:] = zt[:, K:] = -torch.inf
        z.requires_grad_()
        ids, log_probs, _ = truncate(zt.log_softmax(-1), K)
        found = loss_of(z, TopK(ids, log_probs))
        found.loss.backward()
        torch.testing.assert_close(found.loss, loss_of(z, Logits(zt)).loss, rtol=1e-5, atol=1e-6)
        assert z.grad.isfinite().all()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("between", ["teacher||assistant", "student||teacher"])
def test_value_and_tail_gradient_are_those_of_the_merged_student(loss_of, stored, between):
    z, log_p = randn(N, V).requires_grad_(), randn(N, V, seed=1).log_softmax(-1)
    ids, log_probs, tail = truncate(log_p, K)
    objective = Objective(alpha=0.4, lam=0.3, between=between)
    out = loss_of(z, TopK(ids, log_probs, tail if stored else None), objective=objective)
    merged = coarse_grain(z.log_softmax(-1), ids)
    expected = objective(teacher=coarse_grain(log_p, ids), student=merged).mean()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(out.loss, z), torch.autograd.grad(expected, z))


def test_a_peaked_student_keeps_its_tail(loss_of):
    z = torch.tensor([[0.0, -60.0, -61.0]], requires_grad=True)
    teacher = TopK(torch.tensor([[0]]), torch.tensor([[0.5]]).log())
    out = loss_of(z, teacher)
    out.loss.backward()
    wide = z.detach().double()
    tail = wide[:, 1:].logsumexp(-1)
    assert out.loss.item() == pytest.approx((0.5 * (torch.tensor(0.25).log() - tail)).item(), rel=1e-6)
    shares = wide[0, 1:].softmax(-1) * -0.5
    torch.testing.assert_close(z.grad[0], torch.tensor([0.5, *shares.tolist()]))


def test_a_stored_tail_and_the_chosen_are_renormalised_together(loss_of):
    z = randn(N, V)
    ids, log_probs, tail = truncate(randn(N, V, seed=1).log_softmax(-1), K)
    shifted = loss_of(z, TopK(ids, log_probs - 0.3, tail - 0.3)).loss
    torch.testing.assert_close(shifted, loss_of(z, TopK(ids, log_probs, tail)).loss)


def test_ids_beyond_the_shared_vocabulary_are_masked_on_both_sides(loss_of):
    z, zt = randn(N, V + 3).requires_grad_(), randn(N, V + 3, seed=1)
    zt[:, V:] += 3.0
    ids, log_probs, tail = truncate(zt.log_softmax(-1), V + 3)
    out = loss_of(z, TopK(ids, log_probs, tail), vocab_size=V)
    (found,) = torch.autograd.grad(out.loss, z)
    dense = loss_of(z, Logits(zt), vocab_size=V)
    torch.testing.assert_close(out.loss, dense.loss)
    torch.testing.assert_close(found, torch.autograd.grad(dense.loss, z)[0])


def test_as_many_ids_as_tokens_with_some_beyond_still_have_a_tail(loss_of):
    z = randn(1, 4)
    log_probs = torch.tensor([[0.4, 0.3, 0.1]], dtype=torch.float64).log()
    teacher = TopK(torch.tensor([[0, 1, 3]]), log_probs)
    p = torch.tensor([0.4, 0.3, 0.2]).double() / 0.9
    expected = (p * (p.log() - z[:, :3].log_softmax(-1))).sum()
    torch.testing.assert_close(loss_of(z, teacher, vocab_size=3).loss, expected)


def test_labels_outside_the_chosen_are_seen_by_the_cross_entropy(loss_of):
    z, labels = randn(N, V).requires_grad_(), torch.arange(N)
    ids, log_probs, tail = truncate(randn(N, V, seed=1).log_softmax(-1), K)
    teacher = TopK(ids, log_probs, tail)
    out = loss_of(z, teacher, labels=labels, cross_entropy_weight=0.5)
    expected = loss_of(z, teacher).loss + 0.5 * torch.nn.functional.cross_entropy(z, labels)
    torch.testing.assert_close(out.loss, expected)
    apart = loss_of(z, teacher).loss
    wanted = (
        torch.autograd.grad(apart, z)[0] + torch.autograd.grad(0.5 * torch.nn.functional.cross_entropy(z, labels), z)[0]
    )
    torch.testing.assert_close(torch.autograd.grad(out.loss, z)[0], wanted)


def test_teachers_truncated_to_the_same_ids_can_be_mixed(loss_of):
    z, ids = randn(N, V), torch.stack([torch.randperm(V)[:K] for _ in range(N)])
    log_ps = [coarse_grain(randn(N, V, seed=seed).log_softmax(-1), ids) for seed in (1, 2)]
    objective = Objective(alpha=0.2, lam=0.3)
    teachers = [TopK(ids.clone(), log_p[:, :-1], log_p[:, -1]) for log_p in log_ps]
    expected = objective(teacher=log_ps, student=coarse_grain(z.log_softmax(-1), ids)).mean()
    torch.testing.assert_close(loss_of(z, teachers, objective=objective).loss, expected)
