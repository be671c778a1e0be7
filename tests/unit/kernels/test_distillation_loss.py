"""The contract of ``distillation_loss``, on both backends."""

import math

import pytest
import torch

from amidkd.kernels import LossOutput, distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.signals import Hidden, Logits, TopK

BACKENDS = ("naive", "chunked")
FORWARD_KL = Objective(divergence=divergence("kl"), between="teacher||student")
N, V = 6, 13


def randn(*shape, seed=0, dtype=torch.float64, scale=2.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


@pytest.fixture(params=BACKENDS)
def loss_of(request):
    """``distillation_loss`` on one backend, in chunks of one token."""

    def call(**arguments):
        return distillation_loss(backend=request.param, memory_mb=1e-4, **arguments)

    return call


def kl(zt, zs):
    log_p, log_q = zt.log_softmax(-1), zs.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_value_and_gradient_of_forward_kl_are_the_textbook_ones(loss_of):
    z, zt = randn(N, V).requires_grad_(), randn(N, V, seed=1)
    out = loss_of(student=Logits(z), teacher=Logits(zt), objective=FORWARD_KL)
    out.loss.backward()
    assert isinstance(out, LossOutput)
    torch.testing.assert_close(out.loss, kl(zt, z).mean())
    torch.testing.assert_close(z.grad, (z.softmax(-1) - zt.softmax(-1)).detach() / N)


def test_auto_is_chunked_and_what_ran_is_said():
    z = randn(N, V)
    for backend, ran in {"auto": "chunked", "chunked": "chunked", "naive": "naive"}.items():
        out = distillation_loss(student=Logits(z), teacher=Logits(z), objective=FORWARD_KL, backend=backend)
        assert out.backend == ran
        assert out.metrics == {}


def test_reductions_and_denominators(loss_of):
    z, zt = randn(N, V).requires_grad_(), randn(N, V, seed=1)
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    weights = torch.tensor([1.0, 5.0, 0.0, 0.5, 2.0, 3.0])
    each = (kl(zt, z) * mask * weights).detach()
    arguments = {"student": Logits(z), "teacher": Logits(zt), "objective": FORWARD_KL, "mask": mask, "weights": weights}
    torch.testing.assert_close(loss_of(**arguments, reduction="none").loss.detach(), each)
    torch.testing.assert_close(loss_of(**arguments, reduction="sum").loss.detach(), each.sum())
    torch.testing.assert_close(loss_of(**arguments).loss.detach(), each.sum() / 4)
    slope = (z.softmax(-1) - zt.softmax(-1)).detach() * (mask * weights)[:, None]
    for denominator in (10, torch.tensor(10)):
        z.grad = None
        out = loss_of(**arguments, denominator=denominator)
        (3.0 * out.loss).backward()
        torch.testing.assert_close(out.loss.detach(), each.sum() / 10)
        torch.testing.assert_close(z.grad, 3.0 * slope / 10)


def test_nothing_supervised_is_zero_with_zero_gradient(loss_of):
    h, weight = randn(N, 4).requires_grad_(), randn(V, 4, seed=1).requires_grad_()
    for mask, rows in ((torch.zeros(N, dtype=torch.bool), slice(None)), (None, slice(0, 0))):
        for denominator in (None, 5):
            out = loss_of(
                student=Hidden(h[rows], weight),
                teacher=Logits(randn(N, V, seed=2)[rows]),
                objective=FORWARD_KL,
                mask=mask,
                denominator=denominator,
            )
            h.grad = weight.grad = None
            out.loss.backward()
            assert out.loss.item() == 0.0
            assert not h.grad.any()
            assert not weight.grad.any()


@pytest.mark.parametrize("form", ["logits", "hidden"])
def test_what_stands_in_masked_or_weightless_rows_cannot_leak(loss_of, form):
    mask, weights = torch.tensor([1, 0, 1, 1, 0, 1]), torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 2.0])
    dead = [1, 3, 4]
    z, head = randn(N, V if form == "logits" else 4), randn(V, 4, seed=5).requires_grad_()
    z[dead] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=z.dtype)[:, None]
    z.requires_grad_()
    zt = randn(N, V, seed=1)
    zt[dead] = torch.nan
    out = loss_of(
        student=Logits(z) if form == "logits" else Hidden(z, head),
        teacher=Logits(zt),
        objective=FORWARD_KL,
        mask=mask,
        weights=weights,
        labels=torch.full((N,), 3),
        cross_entropy_weight=0.5,
    )
    out.loss.backward()
    live = [0, 2, 5]
    logits = z[live] if form == "logits" else z[live] @ head.T
    each = kl(zt[live], logits) - 0.5 * logits.log_softmax(-1)[:, 3]
    torch.testing.assert_close(out.loss.detach(), (each * weights[live]).sum().detach() / 4)
    assert not z.grad[dead].any()
    assert z.grad[live].isfinite().all()
    if form == "hidden":
        assert head.grad.isfinite().all()


def test_temperature_divides_both_sides_in_the_divergence_and_neither_in_the_cross_entropy(loss_of):
    z, zt, labels = randn(N, V).requires_grad_(), randn(N, V, seed=1), torch.arange(N)
    out = loss_of(
        student=Logits(z),
        teacher=Logits(zt),
        objective=FORWARD_KL,
        temperature=2.5,
        labels=labels,
        cross_entropy_weight=0.3,
    )
    out.loss.backward()
    hard = torch.nn.functional.cross_entropy(z, labels)
    expected = kl(zt / 2.5, z / 2.5).mean() + 0.3 * hard
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(z.grad, torch.autograd.grad(expected, z)[0])
    for one_sided in (kl(zt, z / 2.5), kl(zt / 2.5, z)):
        assert (one_sided.mean() + 0.3 * hard - out.loss).abs() > 0.05


def test_labels_of_minus_100_have_no_cross_entropy(loss_of):
    z, zt = randn(N, V).requires_grad_(), randn(N, V, seed=1)
    z.data[:, 0] = -torch.inf
    zt[:, 0] = -torch.inf
    labels = torch.tensor([3, -100, 4, -100, 5, 6])
    out = loss_of(student=Logits(z), teacher=Logits(zt), objective=FORWARD_KL, labels=labels, cross_entropy_weight=2.0)
    out.loss.backward()
    live = slice(1, None)
    nll = torch.nn.functional.cross_entropy(z, labels, reduction="sum") / N
    expected = kl(zt[:, live], z[:, live]).mean() + 2.0 * nll
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(z.grad, torch.autograd.grad(expected, z)[0])


def test_cross_entropy_alone_needs_no_teacher(loss_of):
    z, labels = randn(N, V).requires_grad_(), torch.tensor([3, -100, 4, 1, 5, 6])
    mask = torch.tensor([1, 1, 1, 1, 1, 0])
    out = loss_of(student=Logits(z), labels=labels, cross_entropy_weight=1.0, mask=mask, metrics=True)
    out.loss.backward()
    expected = torch.nn.functional.cross_entropy(z[:5], labels[:5], reduction="sum") / 5
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(z.grad, torch.autograd.grad(expected, z)[0])
    assert out.metrics["tokens"] == 5
    torch.testing.assert_close(out.metrics["cross_entropy"], (expected * 5 / 4).detach())


@pytest.mark.parametrize("student_width", [13, 16])
@pytest.mark.parametrize("teacher_width", [13, 19])
@pytest.mark.parametrize("form", ["logits", "hidden", "topk"])
def test_padding_is_masked_on_both_sides_before_the_softmax(loss_of, student_width, teacher_width, form):
    widths = [student_width, teacher_width]
    z, zt = randn(N, student_width).requires_grad_(), randn(N, teacher_width, seed=1)
    head = torch.eye(teacher_width, dtype=torch.float64)
    if form == "topk":
        log_p = zt.log_softmax(-1)
        teacher = TopK(torch.arange(teacher_width).expand(N, -1), log_p)
    else:
        teacher = Logits(zt) if form == "logits" else Hidden(zt, head)
    for size in (None, 11):
        shared = size or (student_width if form == "topk" else min(widths))
        live = min(shared, teacher_width)
        if live < shared:
            continue
        z.grad = None
        out = loss_of(student=Logits(z), teacher=teacher, objective=Objective(alpha=0.3), vocab_size=size)
        out.loss.backward()
        x = z.detach()[:, :shared].clone().requires_grad_()
        expected = Objective(alpha=0.3)(teacher=zt[:, :shared].log_softmax(-1), student=x.log_softmax(-1)).mean()
        torch.testing.assert_close(out.loss.detach(), expected.detach())
        torch.testing.assert_close(z.grad[:, :shared], torch.autograd.grad(expected, x)[0])
        assert not z.grad[:, shared:].any()


def test_padded_widths_of_a_real_pair_are_shared(loss_of):
    student, teacher = randn(2, 151936, dtype=torch.float32).requires_grad_(), randn(2, 152064, seed=1)
    out = loss_of(student=Logits(student), teacher=Logits(teacher.float()), objective=FORWARD_KL, vocab_size=151_665)
    out.loss.backward()
    expected = kl(teacher[:, :151_665], student[:, :151_665].double()).mean()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not student.grad[:, 151_665:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast_before_arithmetic(loss_of, dtype):
    h, head = randn(N, 8, dtype=dtype).requires_grad_(), randn(V, 8, seed=1, dtype=dtype).requires_grad_()
    zt = randn(N, V, seed=2, dtype=dtype)
    out = loss_of(student=Hidden(h, head), teacher=Logits(zt), objective=FORWARD_KL)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert h.grad.dtype == head.grad.dtype == dtype
    exact = kl(zt.double(), torch.nn.functional.linear(h, head).double()).mean()
    assert out.loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_float64_stays(loss_of):
    z = randn(N, V)
    assert loss_of(student=Logits(z), teacher=Logits(z.float()), objective=FORWARD_KL).loss.dtype == torch.float64


def test_autocast_does_not_round_what_is_float32(loss_of):
    h, head = randn(N, 8, dtype=torch.float32), randn(V, 8, seed=1, dtype=torch.float32)
    call = {"student": Hidden(h, head), "teacher": Logits(randn(N, V, seed=2).float()), "objective": FORWARD_KL}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(**call).loss
    assert inside == loss_of(**call).loss
    assert loss_of(**{**call, "student": Hidden(h.bfloat16(), head)}).loss.isfinite()


def test_logits_of_huge_spread_stay_finite(loss_of):
    for name in ("kl", "jeffreys"):
        objective = Objective(divergence=divergence(name), between="teacher||assistant", alpha=-3.0, lam=0.1)
        z, zt = (randn(N, 50, seed=seed, dtype=torch.float32, scale=1e4) for seed in (0, 1))
        z.requires_grad_()
        out = loss_of(student=Logits(z), teacher=Logits(zt), objective=objective)
        out.loss.backward()
        assert out.loss.isfinite()
        assert out.loss >= 0
        assert z.grad.isfinite().all()


def test_the_same_logits_cost_nothing(loss_of):
    z = randn(N, V).requires_grad_()
    out = loss_of(student=Logits(z), teacher=Logits(z), objective=Objective())
    out.loss.backward()
    assert abs(out.loss.item()) < 1e-12
    assert z.grad.abs().max() < 1e-12


def test_the_teacher_gets_no_gradient(loss_of):
    z, zt = randn(N, V).requires_grad_(), randn(N, V, seed=1).requires_grad_()
    loss_of(student=Logits(z), teacher=Logits(zt), objective=Objective()).loss.backward()
    assert zt.grad is None
    assert z.grad is not None


def test_a_one_sided_mask_is_infinite_and_never_nan(loss_of):
    z = randn(N, V)
    z[2, 4] = -torch.inf
    out = loss_of(student=Logits(z), teacher=Logits(randn(N, V, seed=1)), objective=FORWARD_KL, reduction="none")
    assert out.loss[2] == torch.inf
    assert out.loss[[0, 1, 3, 4, 5]].isfinite().all()


def test_settings_per_token_follow_their_tokens(loss_of):
    alpha, lam = torch.linspace(-3, 1.2, N), torch.linspace(0.05, 0.9, N)
    z, zt, mask = randn(N, V).requires_grad_(), randn(N, V, seed=1), torch.tensor([0, 1, 1, 0, 1, 1])
    objective = Objective(alpha=alpha, lam=lam)
    both = 0.3 * objective + 0.7 * Objective(between="student||assistant", alpha=alpha.flip(0), lam=0.4)
    for whole, parts in (
        (objective, [(1.0, "teacher||assistant", alpha, lam)]),
        (both, [(0.3, "teacher||assistant", alpha, lam), (0.7, "student||assistant", alpha.flip(0), [0.4] * N)]),
    ):
        out = loss_of(student=Logits(z), teacher=Logits(zt), objective=whole, mask=mask)
        expected = 0.0
        for n in mask.nonzero().flatten().tolist():
            for factor, between, alphas, lams in parts:
                single = Objective(between=between, alpha=float(alphas[n]), lam=float(lams[n]))
                expected += factor * single(teacher=zt[n].log_softmax(-1), student=z[n].log_softmax(-1))
        z.grad = None
        out.loss.backward()
        torch.testing.assert_close(out.loss, expected / 4)
        torch.testing.assert_close(z.grad, torch.autograd.grad(expected / 4, z)[0])


def test_a_divergence_of_the_users_own(loss_of):
    def worst_ratio(log_a, log_b):
        return ((log_a - log_b).abs() * log_a.exp()).logsumexp(-1)

    z, zt = randn(N, V).requires_grad_(), randn(N, V, seed=1)
    objective = Objective(divergence=worst_ratio, between="student||teacher")
    out = loss_of(student=Logits(z), teacher=Logits(zt), objective=objective)
    out.loss.backward()
    expected = worst_ratio(z.log_softmax(-1), zt.log_softmax(-1)).mean()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(z.grad, torch.autograd.grad(expected, z)[0])


def test_several_teachers_share_the_flat_mixture(loss_of):
    z, zts = randn(N, V).requires_grad_(), [randn(N, V, seed=1), randn(N, V, seed=2)]
    objective = Objective(alpha=0.2, lam=0.3, teacher_weights=[0.75, 0.25])
    out = loss_of(student=Logits(z), teacher=[Logits(zt) for zt in zts], objective=objective)
    out.loss.backward()
    expected = objective(teacher=[zt.log_softmax(-1) for zt in zts], student=z.log_softmax(-1)).mean()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(z.grad, torch.autograd.grad(expected, z)[0])


def test_metrics_are_means_over_the_tokens_that_count(loss_of):
    z, zt = randn(N, V), randn(N, V, seed=1)
    z[0] = zt[0]
    mask = torch.tensor([1, 1, 0, 1, 1, 0])
    call = {"student": Logits(z), "teacher": Logits(zt), "mask": mask, "metrics": True}
    found = loss_of(**call, objective=Objective(alpha=-1.0, lam=0.25)).metrics
    live = mask.bool()
    p, q = zt[live].softmax(-1), z[live].softmax(-1)
    r = 0.25 * p + 0.75 * q
    expected = {
        "kl_teacher_student": (p * (p / q).log()).sum(-1),
        "kl_student_teacher": (q * (q / p).log()).sum(-1),
        "entropy_teacher": -(p * p.log()).sum(-1),
        "entropy_student": -(q * q.log()).sum(-1),
        "entropy_assistant": -(r * r.log()).sum(-1),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double(),
        "responsibility": (p * 0.75 * q / r).sum(-1),
        "divergence": (p * (p / r).log()).sum(-1),
    }
    assert set(found) == {*expected, "tokens"}
    assert found["tokens"] == 4
    for name, values in expected.items():
        assert found[name].ndim == 0
        assert found[name].item() == pytest.approx(values.mean().item()), name
    plain = loss_of(**call, objective=FORWARD_KL).metrics
    assert set(expected) - set(plain) == {"entropy_assistant", "responsibility"}


def test_metrics_survive_masked_vocabulary_and_no_tokens(loss_of):
    z, zt = randn(N, V), randn(N, V, seed=1)
    z[:, 3] = zt[:, 3] = zt[:, 5] = -torch.inf
    found = loss_of(student=Logits(z), teacher=Logits(zt), objective=Objective(), metrics=True).metrics
    assert found.pop("kl_student_teacher") == torch.inf
    assert all(math.isfinite(value) for value in found.values())
    empty = loss_of(
        student=Logits(z), teacher=Logits(zt), objective=Objective(), mask=torch.zeros(N), metrics=True
    ).metrics
    assert empty["tokens"] == 0
    assert all(value == 0 for value in empty.values())


SOUND = {"student": Logits(randn(N, V)), "teacher": Logits(randn(N, V, seed=1)), "objective": FORWARD_KL}
TOP = TopK(torch.arange(2).expand(N, 2), torch.full((N, 2), -1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "triton"}, "backend must be 'auto', 'naive', 'chunked' or 'fused'; got 'triton'"),
        ({"reduction": "avg"}, "got 'avg'"),
        ({"reduction": "sum", "denominator": 3}, "denominator divides a mean"),
        ({"denominator": 0}, "denominator must be above 0; got 0"),
        ({"denominator": torch.ones(2)}, "scalar"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0; got 0.0"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": 2.0, "teacher": TOP}, "temperature must be 1 with a truncated teacher"),
        ({"cross_entropy_weight": -1.0}, "cross_entropy_weight"),
        ({"cross_entropy_weight": 1.0}, "needs labels"),
        ({"cross_entropy_weight": 1.0, "labels": torch.full((N,), V)}, f"0 … {V - 1}, or -100 for none; got {V}"),
        ({"cross_entropy_weight": 1.0, "labels": torch.full((N,), -1)}, "got -1"),
        ({"labels": torch.zeros(N)}, "labels must be token ids"),
        ({"vocab_size": V + 1}, f"vocab_size must be in 1 … {V}"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"mask": torch.ones(N - 1)}, "mask must have shape"),
        ({"mask": torch.full((N,), 0.5)}, "given as weights"),
        ({"weights": torch.ones(N, 1)}, "weights must have shape"),
        ({"objective": Objective(alpha=torch.zeros(N + 1))}, "objective.alpha must have shape"),
        ({"teacher": Logits(randn(N - 1, V))}, "same tokens; got 5 and 6 rows"),
        ({"teacher": []}, "empty list"),
        ({"teacher": None}, "objective needs teacher"),
        ({"objective": None}, "teacher needs objective"),
        ({"teacher": None, "objective": None}, "nothing to compute"),
        ({"teacher": randn(N, V)}, "teacher must be Logits, Hidden, TopK or a list of them; got Tensor"),
        ({"student": TOP}, "student must be Logits or Hidden; got TopK"),
        ({"teacher": [TOP, Logits(randn(N, V))]}, "cannot mix TopK"),
        ({"teacher": [TOP, TopK(TOP.ids + 1, TOP.log_probs)]}, "must all have the same ids"),
        ({"teacher": TopK(TOP.ids - 1, TOP.log_probs)}, "at least 0"),
        ({"memory_mb": 0}, "memory_mb must be above 0; got 0"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(**{**SOUND, **arguments})
