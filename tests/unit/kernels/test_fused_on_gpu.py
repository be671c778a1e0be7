"""The fused backend on a real GPU: Triton, beside `naive` on the CPU in float64."""

import pytest
import torch

from amidkd.kernels import available, distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.signals import Hidden, Logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def skewed(name, between, alpha=-3.0, lam=0.3, **parameters):
    return Objective(divergence=divergence(name, **parameters), between=between, alpha=alpha, lam=lam)


OBJECTIVES = {
    "KL(p‖q)": skewed("kl", "teacher||student"),
    "KL(p‖r)": skewed("kl", "teacher||assistant"),
    "KL(r‖q)": skewed("kl", "assistant||student", alpha=0.5),
    "JS": skewed("jensen_shannon", "student||assistant", alpha=1.0),
    "power": skewed("alpha_beta", "teacher||assistant", a=0.2, b=0.7),
    "GKD": 0.3 * skewed("kl", "teacher||assistant", alpha=-1.0) + 0.7 * skewed("kl", "student||assistant", alpha=-1.0),
}
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the gradient: what is asked of float32, and two roundings of half precision."""


def randn(*shape, seed, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def run(student, teacher, *, device, dtype, backend, **call):
    """Loss and gradients of the student's tensors, in float64 on the CPU."""
    own, other = ([part.to(device, dtype) for part in side] for side in (student, teacher))
    own = [part.requires_grad_() for part in own]
    call = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    form = Logits if len(own) == 1 else Hidden
    out = distillation_loss(student=form(*own), teacher=form(*other), backend=backend, **call)
    assert out.backend == backend
    out.loss.backward()
    return out.loss.detach().double().cpu(), [part.grad.double().cpu() for part in own], out.metrics


def check(student, teacher, dtype, *, limit=None, **call):
    student, teacher = ([part.to(dtype) for part in side] for side in (student, teacher))
    wanted, references, _ = run(student, teacher, device="cpu", dtype=torch.float64, backend="naive", **call)
    found, gradients, _ = run(student, teacher, device="cuda", dtype=dtype, backend="fused", **call)
    limit = limit or LIMITS[dtype]
    assert abs(found - wanted) <= limit * wanted
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).abs().max() <= limit * reference.abs().max().clamp(min=1e-3)


def test_it_is_there():
    assert available("cuda")["fused"] is None


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits(name, dtype):
    """The mean's factor 1/N is taken away, so that the gradient is of its usual size."""
    for V in (50_257, 8192, 77):
        sides = [randn(24, V, seed=0, scale=3.0)], [randn(24, V, seed=1, scale=3.0)]
        check(*sides, dtype, objective=OBJECTIVES[name], reduction="sum", metrics=True)


def test_everything_at_once():
    N, V = 33, 1031
    sides = [randn(N, V, seed=0, scale=3.0)], [randn(N, V + 9, seed=1, scale=3.0)]
    some = torch.arange(N)
    each = {"alpha": torch.linspace(-5, 5, N).double(), "lam": torch.linspace(0, 1, N).double()}
    check(
        *sides,
        torch.float32,
        objective=0.5 * skewed("reverse_kl", "teacher||assistant", alpha=1.5)
        + 0.5 * skewed("squared_hellinger", "student||assistant", alpha=0.0),
        mask=(some % 3 != 2).long(),
        weights=torch.linspace(0.1, 2.0, N),
        labels=torch.where(some % 4 == 2, -100, (5 * some) % V),
        cross_entropy_weight=0.3,
        temperature=1.7,
        reduction="sum",
    )
    for between in ("teacher||assistant", "assistant||student"):
        objective = Objective(between=between, alpha=each["alpha"].cuda(), lam=each["lam"].cuda())
        z, t = (side[0][:, :V].cuda() for side in sides)
        out = distillation_loss(student=Logits(z), teacher=Logits(t), objective=objective, reduction="none")
        right = distillation_loss(
            student=Logits(z.double()),
            teacher=Logits(t.double()),
            objective=objective,
            reduction="none",
            backend="naive",
        )
        assert out.backend == "fused"
        assert torch.allclose(out.loss.double(), right.loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["KL(p‖r)", "GKD"])
def test_hidden_states_in_half_precision_a_few_tokens_at_a_time(name):
    N, V, H = 96, 4096, 64
    student = [randn(N, H, seed=0), randn(V, H, seed=1, scale=2.0 / H**0.5)]
    teacher = [randn(N, 2 * H, seed=2), randn(V, 2 * H, seed=3, scale=2.0 / (2 * H) ** 0.5)]
    # Logits are rounded to bfloat16 in between, which naive in float64 does not do.
    check(student, teacher, torch.bfloat16, limit=5e-2, objective=OBJECTIVES[name], reduction="sum", memory_mb=0.5)
    check(student, teacher, torch.float32, limit=1e-3, objective=OBJECTIVES[name], reduction="sum", memory_mb=0.5)


def test_masked_logits_under_autocast():
    z, t = randn(8, 300, seed=0, scale=3.0).cuda(), randn(8, 300, seed=1, scale=3.0).cuda()
    z[:, 5], t[2, 7:20] = -torch.inf, -torch.inf
    z.requires_grad_()
    objective = OBJECTIVES["JS"]
    with torch.autocast("cuda", torch.bfloat16):
        out = distillation_loss(student=Logits(z), teacher=Logits(t), objective=objective, backend="fused")
    out.loss.backward()
    found, z.grad = z.grad, None
    right = distillation_loss(
        student=Logits(z.double()), teacher=Logits(t.double()), objective=objective, backend="naive"
    )
    right.loss.backward()
    assert torch.allclose(out.loss.double(), right.loss, rtol=1e-4)
    assert torch.allclose(found, z.grad, rtol=1e-3, atol=1e-6)
    assert (found[:, 5] == 0).all()


def test_the_row_kernel_never_waits_for_the_device():
    from amidkd.kernels.block import Block
    from amidkd.kernels.terms import terms_of
    from amidkd.kernels.triton_rows import triton_rows

    z, t = randn(8, 300, seed=0).cuda(), randn(8, 300, seed=1).cuda()
    empty = torch.empty(7 + 3, 8, device="cuda")

    def block():
        return Block(
            count=8,
            vocab_size=300,
            student=z,
            student_rows=None,
            teacher=t,
            teacher_rows=None,
            terms=terms_of(OBJECTIVES["GKD"]),
            temperature=1.0,
            labels=None,
            cross_entropy_weight=0.0,
            scale=None,
            values=empty[0],
            divergences=empty[1],
            cross_entropies=empty[2],
            metrics=empty[3:],
            assistant=0,
            gradient=torch.empty_like(z),
        )

    triton_rows(block())  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        triton_rows(block())
    finally:
        torch.cuda.set_sync_debug_mode("default")
