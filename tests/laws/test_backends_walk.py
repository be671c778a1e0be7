"""What goes wrong in losses that compute their own gradient, on every backend: chunks, masks, layouts, what is frozen.

In float32, against the formula written out with autograd, or against another call that must give the same.
"""

import pytest
import torch
from backends import MISSING, error, randn
from torch.utils._python_dispatch import TorchDispatchMode

from amidkd.errors import SettingError
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective
from amidkd.signals import Hidden, Logits, TopK

N, V, H = 11, 37, 6
SMALL = 0.0005
"""MiB: room for a few tokens, so that there are several chunks, the last of them smaller."""
OBJECTIVE = Objective(alpha=-3.0, lam=0.2)
MASK = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1])
LIVE = MASK.bool()


@pytest.fixture(
    params=[pytest.param(b, marks=[] if why is None else pytest.mark.skip(why)) for b, why in MISSING.items()]
)
def loss_of(request):
    """``distillation_loss`` on one backend, in several chunks."""

    def call(**arguments):
        return distillation_loss(**{"objective": OBJECTIVE, "backend": request.param, "memory_mb": SMALL} | arguments)

    return call


def single(*shape, seed=0, scale=1.0):
    return randn(*shape, seed=seed, scale=scale).float()


def states_and_head(width=H, seed=0):
    return [single(N, width, seed=seed), single(V, width, seed=seed + 1)]


def formula(z, zt, *, temperature=1.0):
    """The mean over tokens, by autograd in float64."""
    sides = ((x.double() / temperature).log_softmax(-1) for x in (zt, z))
    return OBJECTIVE(**dict(zip(("teacher", "student"), sides, strict=True))).mean()


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors)


def agree(found, wanted, limit=1e-5):
    for part, reference in zip(found, wanted, strict=True):
        assert part.dtype == torch.float32
        assert error(part, reference.double()) <= limit


class Products(TorchDispatchMode):
    """The matrix products that are computed: their shapes (rows, inner, columns)."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0].strip("_")
        if name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "matmul", "linear", "einsum"):
            left, right = [x for x in args if isinstance(x, torch.Tensor) and x.ndim == 2][-2:]
            self.shapes.append((left.shape[0], left.shape[1], right.shape[1]))
        return function(*args, **(kwargs or {}))


def products(call):
    with Products() as seen:
        out = call()
        if out.loss.requires_grad:
            out.loss.backward()
    return seen.shapes


def test_four_products_a_chunk_and_none_of_masked_tokens(loss_of):
    student = [part.requires_grad_() for part in states_and_head()]
    teacher = Hidden(*states_and_head(2 * H, seed=2))
    shapes = products(lambda: loss_of(student=Hidden(*student), teacher=teacher, mask=MASK))
    chunks = [rows for rows, inner, columns in shapes if (inner, columns) == (H, V)]
    assert len(chunks) >= 2
    assert sum(chunks) == LIVE.sum()
    assert [rows for rows, inner, columns in shapes if (inner, columns) == (2 * H, V)] == chunks
    assert [rows for rows, inner, columns in shapes if (inner, columns) == (V, H)] == chunks
    assert sorted(inner for rows, inner, columns in shapes if (rows, columns) == (V, H)) == sorted(chunks)
    assert len(shapes) == 4 * len(chunks)


@pytest.mark.parametrize(("frozen", "each"), [((), 4), ((0,), 3), ((1,), 3), ((0, 1), 2)])
def test_what_is_frozen_costs_nothing(loss_of, frozen, each):
    student = [part.requires_grad_(k not in frozen) for k, part in enumerate(states_and_head())]
    teacher = Hidden(*states_and_head(2 * H, seed=2))
    shapes = products(lambda: loss_of(student=Hidden(*student), teacher=teacher))
    assert len(shapes) == each * sum((inner, columns) == (H, V) for _, inner, columns in shapes)
    learning = [part.detach().double().requires_grad_(part.requires_grad) for part in student]
    wanted = formula(learning[0] @ learning[1].T, teacher.states.double() @ teacher.weight.double().T)
    if len(frozen) < 2:
        wanted.backward()
    for part, reference in zip(student, learning, strict=True):
        assert (part.grad is None) == (reference.grad is None)
        assert part.grad is None or error(part.grad, reference.grad) <= 1e-5


def test_a_truncated_or_no_teacher_needs_three_products(loss_of):
    student = [part.requires_grad_() for part in states_and_head()]
    log_p = single(N, V, seed=3).log_softmax(-1)
    ids = log_p.topk(4).indices
    for call in (
        {"teacher": TopK(ids, log_p.gather(-1, ids))},
        {"objective": None, "labels": torch.arange(N), "cross_entropy_weight": 1.0},
        {"teacher": Logits(single(N, V, seed=3))},
    ):
        shapes = products(lambda call=call: loss_of(student=Hidden(*student), **call))
        assert len(shapes) == 3 * sum((inner, columns) == (H, V) for _, inner, columns in shapes) > 3


def test_chunks_of_any_size_give_the_same(loss_of):
    teacher = Hidden(*states_and_head(2 * H, seed=2))
    found = []
    for memory_mb in (1e-6, SMALL, 0.004, 100.0):
        student = [part.requires_grad_() for part in states_and_head()]
        call = {"teacher": teacher, "mask": MASK, "labels": torch.arange(N), "cross_entropy_weight": 0.2}
        out = loss_of(student=Hidden(*student), **call, memory_mb=memory_mb, metrics=True)
        found.append((out.loss.detach(), *gradients(out.loss, student), *out.metrics.values()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-6, atol=2e-7)


def test_temperature_divides_both_sides(loss_of):
    student, teacher = single(N, V, scale=3.0).requires_grad_(), single(N, V, seed=1, scale=3.0)
    reference = student.detach().double().requires_grad_()
    out = loss_of(student=Logits(student), teacher=Logits(teacher), temperature=2.5)
    wanted = formula(reference, teacher, temperature=2.5)
    agree([out.loss.detach(), *gradients(out.loss, student)], [wanted.detach(), *gradients(wanted, reference)])


def test_labels_of_minus_100_have_no_cross_entropy_and_what_is_masked_does_not_leak(loss_of):
    labels = torch.tensor([3, -100, V + 9, 0, -1, V - 1, -100, 2, 10**6, 7, 7])
    student, teacher = states_and_head(), single(N, V + 5, seed=2)
    student[0][~LIVE], teacher[~LIVE], teacher[:, V:] = torch.nan, torch.inf, torch.nan
    parts = [part.requires_grad_() for part in student]
    out = loss_of(student=Hidden(*parts), teacher=Logits(teacher), mask=MASK, labels=labels, cross_entropy_weight=0.7)
    live = [parts[0][LIVE].detach().double().requires_grad_(), parts[1].detach().double().requires_grad_()]
    z = live[0] @ live[1].T
    hard = torch.nn.functional.cross_entropy(z, labels[LIVE], reduction="sum") / LIVE.sum()
    wanted = formula(z, teacher[LIVE, :V]) + 0.7 * hard
    found, slopes = gradients(out.loss, parts), gradients(wanted, live)
    agree([out.loss.detach(), found[0][LIVE], found[1]], [wanted.detach(), *slopes])
    assert (found[0][~LIVE] == 0).all()


@pytest.mark.parametrize("teacher", ["none", "logits", "topk"])
def test_a_sure_student_in_bfloat16_keeps_its_gradient(loss_of, teacher):
    """1 − q of the label is 1e-3 and less: taken from 1 after a rounding to 8 bits, nothing would be left of it."""
    z = single(N, V)
    z[:, 5] = 11.0
    z = z.bfloat16()
    zt, labels = z.float(), torch.full((N,), 5)
    ids = zt.topk(4).indices
    log_p = zt.log_softmax(-1)
    given = {
        "none": {"objective": None},
        "logits": {"teacher": Logits(zt)},
        "topk": {"teacher": TopK(ids, log_p.gather(-1, ids), log_p.scatter(-1, ids, -torch.inf).logsumexp(-1))},
    }
    rest = {"labels": labels, "cross_entropy_weight": 1.0, "reduction": "sum"} | given[teacher]
    found, wanted = (x.detach().requires_grad_() for x in (z, z.double()))
    (slope,) = gradients(loss_of(student=Logits(found), **rest).loss, found)
    torch.nn.functional.cross_entropy(wanted, labels, reduction="sum").backward()
    assert wanted.grad.abs().max() < 5e-3
    assert ((slope - wanted.grad).abs() <= torch.finfo(torch.bfloat16).eps * wanted.grad.abs() + 1e-6).all()


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "columns of a wider": lambda x: torch.cat([x[:, :1], x, x], dim=1)[:, 1 : 1 + x.shape[1]],
    "every other column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_any_layout_are_read_right_and_left_alone(loss_of, layout, masked):
    student, teacher = LAYOUTS[layout](single(N, V)), LAYOUTS[layout](single(N, V, seed=1))
    assert not student.is_contiguous()
    before = student.clone(), teacher.clone()
    rest = {"mask": MASK} if masked else {}
    z = student.detach().requires_grad_()
    out = loss_of(student=Logits(z), teacher=Logits(teacher), **rest)
    plain = before[0].clone().requires_grad_()
    wanted = loss_of(student=Logits(plain), teacher=Logits(before[1].clone()), **rest)
    found = [out.loss.detach(), *gradients(out.loss, z)]
    torch.testing.assert_close(found, [wanted.loss.detach(), *gradients(wanted.loss, plain)], rtol=1e-6, atol=1e-7)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_student_and_teacher_may_be_one_tensor(loss_of):
    z = single(N, V).requires_grad_()
    before = z.detach().clone()
    out = loss_of(student=Logits(z), teacher=Logits(z))
    (gradient,) = gradients(out.loss, z)
    assert out.loss == 0
    assert gradient.abs().max() <= 1e-7
    assert torch.equal(z, before)


def test_a_tied_head_gets_both_gradients(loss_of):
    table, zt = single(V, H).requires_grad_(), single(N, V, seed=3)
    out = loss_of(student=Hidden(torch.tanh(table[:N]), table), teacher=Logits(zt))
    reference = table.detach().double().requires_grad_()
    wanted = formula(torch.tanh(reference[:N]) @ reference.T, zt)
    agree(gradients(out.loss, table), gradients(wanted, reference))


def test_bias_scale_and_softcap(loss_of):
    for scale, softcap in ((1.0, None), (0.3, None), (1.0, 1.5), (0.3, 1.5)):
        parts = [*states_and_head(), single(V, seed=5)]
        learning = [part.double().requires_grad_() for part in parts]
        zt = single(N, V, seed=3)
        z = scale * (learning[0] @ learning[1].T + learning[2])
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        wanted = formula(z, zt)
        parts = [part.requires_grad_() for part in parts]
        out = loss_of(student=Hidden(*parts, scale=scale, softcap=softcap), teacher=Logits(zt))
        agree([out.loss.detach(), *gradients(out.loss, parts)], [wanted.detach(), *gradients(wanted, learning)])


def test_the_gradient_follows_what_the_loss_goes_into(loss_of):
    student, zt = states_and_head(), single(N, V, seed=3)
    plain = [part.clone().requires_grad_() for part in student]
    loss_of(student=Hidden(*plain), teacher=Logits(zt)).loss.backward()
    twice = [part.clone().requires_grad_() for part in student]
    first, second = (loss_of(student=Hidden(*twice), teacher=Logits(zt)).loss for _ in range(2))
    (3.0 * first).backward()
    (-0.5 * second).backward()
    for found, wanted in zip(twice, plain, strict=True):
        torch.testing.assert_close(found.grad, 2.5 * wanted.grad, rtol=1e-6, atol=1e-8)


def test_a_second_backward_and_a_second_derivative_raise(loss_of):
    student = [part.requires_grad_() for part in states_and_head()]
    teacher = Logits(single(N, V, seed=3))
    loss = loss_of(student=Hidden(*student), teacher=teacher).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss_of(student=Hidden(*student), teacher=teacher).loss, student, create_graph=True)


def test_without_gradients_two_products_a_chunk(loss_of):
    student = [part.requires_grad_() for part in states_and_head()]
    teacher = Hidden(*states_and_head(2 * H, seed=2))
    loss = loss_of(student=Hidden(*student), teacher=teacher).loss
    for manager in (torch.no_grad, torch.inference_mode):
        with manager():
            shapes = products(lambda: loss_of(student=Hidden(*student), teacher=teacher))
            quiet = loss_of(student=Hidden(*student), teacher=teacher).loss
        assert not quiet.requires_grad
        assert quiet == loss.detach()
        assert len(shapes) == 2 * sum((inner, columns) == (H, V) for _, inner, columns in shapes) > 2


def test_settings_of_a_token_and_weights_go_with_it_through_mask_and_chunks(loss_of):
    alpha, lam = torch.linspace(-5, 5, N, dtype=torch.float64), torch.linspace(0, 1, N, dtype=torch.float64)
    weights = torch.linspace(0, 2, N)
    student, zt = [part.requires_grad_() for part in states_and_head()], single(N, V, seed=3)
    objective = Objective(alpha=alpha, lam=lam)
    out = loss_of(student=Hidden(*student), teacher=Logits(zt), objective=objective, mask=MASK, weights=weights)
    learning = [part.detach().double().requires_grad_() for part in student]
    sides = {"teacher": zt.double().log_softmax(-1), "student": (learning[0] @ learning[1].T).log_softmax(-1)}
    wanted = (objective(**sides) * weights * MASK).sum() / LIVE.sum()
    agree([out.loss.detach(), *gradients(out.loss, student)], [wanted.detach(), *gradients(wanted, learning)])


@pytest.mark.skipif(MISSING["fused"] is not None, reason=str(MISSING["fused"]))
def test_what_the_fused_kernel_cannot_compute_is_named_and_left_to_chunked():
    def own(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    z, zt = single(N, V), Logits(single(N, V, seed=1))
    for call, message in (
        ({"student": Logits(z.double()), "teacher": zt, "objective": OBJECTIVE}, "float64"),
        ({"student": Logits(z), "teacher": zt, "objective": Objective(divergence=own)}, "your own"),
    ):
        with pytest.raises(SettingError, match=message):
            distillation_loss(**call, backend="fused")
        assert distillation_loss(**call).backend == "chunked"
    assert distillation_loss(student=Logits(z), teacher=zt, objective=OBJECTIVE).backend == "fused"
