"""What is special to ``chunked``: chunks, one backward, bounded memory."""

import json
import subprocess
import sys

import pytest
import torch

from amidkd.kernels import distillation_loss
from amidkd.kernels.chunked import chunk_tokens
from amidkd.maths import Objective
from amidkd.signals import Hidden, Logits

N, V = 9, 23


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(z, **arguments):
    arguments = {"teacher": Logits(randn(N, V, seed=1)), "objective": Objective(), "backend": "chunked", **arguments}
    return distillation_loss(student=Logits(z), **arguments)


def test_chunks_of_any_size_give_the_same():
    found = []
    for tokens in (1, 2, 4, 9, 100):
        h, head = randn(N, 5).requires_grad_(), randn(V, 5, seed=2).requires_grad_()
        memory_mb = tokens * 8 * V * 1.001 / 2**20
        out = distillation_loss(
            student=Hidden(h, head),
            teacher=Logits(randn(N, V, seed=1)),
            objective=Objective(),
            backend="chunked",
            memory_mb=memory_mb,
            metrics=True,
        )
        out.loss.backward()
        found.append({"loss": out.loss.detach(), "states": h.grad, "head": head.grad, **out.metrics})
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("memory_mb", "count", "tokens"), [(1e-9, 10, 1), (1, 0, 1), (1, 4, 4), (1, 1000, 8), (1, 9, 5), (1, 16, 8)]
)
def test_a_chunk_has_at_least_one_token_and_all_are_about_equal(memory_mb, count, tokens):
    assert chunk_tokens(memory_mb=memory_mb, token_bytes=2**17, count=count) == tokens


def test_a_second_backward_says_what_to_do():
    loss = loss_of(randn(N, V).requires_grad_()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_a_second_derivative_is_refused():
    z = randn(N, V).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss_of(z).loss, z, create_graph=True)


def test_without_gradients_nothing_is_collected():
    z = randn(N, V).requires_grad_()
    with torch.no_grad():
        quiet = loss_of(z).loss
    assert not quiet.requires_grad
    assert not loss_of(randn(N, V)).loss.requires_grad
    assert not loss_of(z, reduction="none").loss.requires_grad
    torch.testing.assert_close(quiet, loss_of(z).loss.detach())


def test_logits_may_be_views_and_are_left_alone():
    whole = randn(V, N)
    z, before = whole.T.requires_grad_(), whole.clone()
    zt = randn(N, 2 * V, seed=1)
    seen = zt.clone()
    out = loss_of(z, teacher=Logits(zt[:, ::2]))
    (found,) = torch.autograd.grad(out.loss, z)
    wanted = torch.autograd.grad(loss_of(z, teacher=Logits(zt[:, ::2]), backend="naive").loss, z)[0]
    torch.testing.assert_close(found, wanted)
    assert torch.equal(whole, before)
    assert torch.equal(zt, seen)


@pytest.mark.parametrize("name", ["weights", "alpha", "lam"])
def test_what_only_autograd_can_differentiate_is_an_error(name):
    value = torch.full((N,), 0.5, requires_grad=True)
    arguments = {"weights": value} if name == "weights" else {"objective": Objective(**{name: value})}
    z = randn(N, V).requires_grad_()
    with pytest.raises(ValueError, match=rf"{name} requires a gradient"):
        loss_of(z, **arguments)
    loss_of(z, backend="naive", **arguments).loss.backward()
    assert value.grad is not None
    if name != "weights":
        scalar = torch.tensor(0.5, requires_grad=True)
        with pytest.raises(ValueError, match=rf"{name} requires a gradient"):
            loss_of(z, objective=0.5 * Objective(**{name: scalar}))


MEASURED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from loss_memory import measure
print(json.dumps(measure(sys.argv[2], "chunked", tokens=320, vocabulary=40_000, width=64, memory_mb=16)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc/self")
@pytest.mark.parametrize("form", ["logits", "hidden", "topk"])
def test_memory_beside_inputs_and_gradients_is_bounded(form, repository):
    """Full logits in float32 are 51 MB, so one copy of them would show. memory_mb is 16; the rest is the allocator."""
    command = [sys.executable, "-c", MEASURED, str(repository / "benchmarks"), form]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added_mb"] < 40
