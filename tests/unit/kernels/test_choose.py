"""One place chooses what computes a loss, says which, and never takes full logits by itself."""

import subprocess
import sys
import warnings

import pytest
import torch

from amidkd.errors import SettingError, SettingWarning
from amidkd.kernels import available, check_backend, choose, cpu_rows, describe, distillation_loss
from amidkd.maths import Objective
from amidkd.signals import Logits

N, V = 5, 19


def call(dtype=torch.float32, objective=None, teachers=1, **arguments):
    made = torch.Generator().manual_seed(0)
    z = torch.randn(N, V, generator=made).to(dtype).requires_grad_()
    teacher = [Logits(torch.randn(N, V, generator=made).to(dtype)) for _ in range(teachers)]
    return distillation_loss(
        student=Logits(z),
        teacher=teacher if teachers > 1 else teacher[0],
        objective=objective or Objective(alpha=-3.0, lam=0.1),
        **arguments,
    )


def own(log_a, log_b):
    return ((log_a.exp() - log_b.exp()) ** 2).sum(-1)


def without_library(monkeypatch):
    monkeypatch.setattr(choose, "cpu_missing", lambda: "the C++ kernel was not built: install a C++ compiler")
    choose._notice.cache_clear()


def test_auto_takes_the_fused_kernel_where_it_is():
    if available()["fused"] is not None:
        pytest.skip(available()["fused"])
    assert call().backend == "fused"
    assert "fused" in describe()
    assert cpu_rows.instructions() in describe()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"dtype": torch.float64}, "an input is float64"),
        ({"objective": Objective(divergence=own)}, "a divergence of your own"),
        (
            {"objective": 0.5 * Objective(alpha=-1.0) + 0.5 * Objective(alpha=0.5), "teachers": 2},
            "do not mix the several teachers",
        ),
    ],
)
def test_what_it_cannot_compute_goes_to_chunked_or_is_an_error(arguments, reason):
    assert call(**arguments).backend == "chunked"
    if available()["fused"] is None:
        with pytest.raises(SettingError, match=rf"backend='fused' cannot compute this loss: .*{reason}"):
            call(backend="fused", **arguments)


def test_without_a_compiler_one_notice_and_chunked(monkeypatch):
    without_library(monkeypatch)
    with pytest.warns(SettingWarning, match="plain torch: the C\\+\\+ kernel was not built"):
        assert call().backend == "chunked"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call().backend == "chunked"
    assert describe() == "chunked (torch)"
    with pytest.raises(SettingError, match="not built"):
        call(backend="fused")
    with pytest.raises(SettingError, match=r"kernels\.backend='fused' cannot be used: .*not built"):
        check_backend("fused", "cpu")


def test_other_devices_have_no_fused_kernel():
    assert "device 'mps'" in available("mps")["fused"]
    check_backend("auto", "mps")
    check_backend("chunked", "mps")


def test_naive_runs_only_when_it_is_asked_for():
    assert call(backend="naive").backend == "naive"
    assert describe("naive") == "naive (full logits)"
    assert {call(**arguments).backend for arguments in ({}, {"dtype": torch.float64})} <= {"fused", "chunked"}


LOADED = """
import torch
from amidkd.kernels import cpu_rows
print(cpu_rows.instructions())
z, zt = torch.randn(3, 700, generator=torch.Generator().manual_seed(1)), torch.randn(3, 700)
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective
from amidkd.signals import Logits
z.requires_grad_()
one = distillation_loss(student=Logits(z), teacher=Logits(zt), objective=Objective(), backend="fused").loss
two = distillation_loss(student=Logits(z), teacher=Logits(zt), objective=Objective(), backend="naive").loss
assert abs(one - two) < 1e-5, (one, two)
(g,), (h,) = torch.autograd.grad(one, z), torch.autograd.grad(two, z)
assert (g - h).abs().max() < 1e-4 * h.abs().max()
"""


@pytest.mark.parametrize("wanted", cpu_rows.INSTRUCTIONS)
def test_every_instruction_set_that_the_machine_has_computes_the_same(wanted, monkeypatch):
    if available()["fused"] is not None:
        pytest.skip(available()["fused"])
    best = cpu_rows.INSTRUCTIONS.index(cpu_rows.instructions())
    if cpu_rows.INSTRUCTIONS.index(wanted) > best:
        pytest.skip(f"this machine has no {wanted}")
    monkeypatch.setenv("AMIDKD_INSTRUCTIONS", wanted)
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == wanted
