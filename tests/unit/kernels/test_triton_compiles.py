"""The Triton kernels compiled for an H100 (sm_90) without one: that they compile, and that no register is spilled."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from amidkd.kernels.terms import terms_of
from amidkd.kernels.triton_rows import REGISTERS, spec_of, triton_shape
from amidkd.maths import Objective, divergence

triton = pytest.importorskip("triton", reason="needs triton (pip install triton)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("what is interpreted is not compiled", allow_module_level=True)

VOCABULARY = 151_936


def term(name, between, alpha=-3.0, lam=0.3, detach=False, **parameters):
    objective = Objective(
        divergence=divergence(name, **parameters), between=between, alpha=alpha, lam=lam, detach_assistant=detach
    )
    return terms_of(objective)[0]


TERMS = {
    "KL(p‖q)": term("kl", "teacher||student"),
    "KL(q‖p)": term("kl", "student||teacher"),
    "KL(p‖r)": term("kl", "teacher||assistant"),
    "KL(r‖p)": term("kl", "assistant||teacher"),
    "KL(q‖r)": term("kl", "student||assistant"),
    "KL(r‖q)": term("kl", "assistant||student"),
    "KL(q‖r), r detached": term("kl", "student||assistant", detach=True),
    "KL(p‖r), geometric": term("kl", "teacher||assistant", alpha=1.0),
    "Jensen-Shannon": term("jensen_shannon", "student||assistant"),
    "Jeffreys": term("jeffreys", "teacher||assistant"),
    "total variation": term("total_variation", "assistant||student"),
    "power, A + B = 1": term("squared_hellinger", "teacher||assistant"),
    "power": term("alpha_beta", "assistant||student", a=0.2, b=0.7),
    "power, B < 0": term("chi_squared", "student||assistant"),
}
GKD = (TERMS["KL(p‖r)"], TERMS["KL(q‖r)"])


def compiled(tmp_path, kernel, dtype, constants, *, each=False, indexed=False):
    """Registers, bytes of stack and of spilled registers of a kernel."""
    types = {
        "student": f"*{dtype}",
        "teacher": f"*{dtype}",
        "gradient": f"*{dtype}",
        "labels": "*i64",
        "factor": "fp32",
        "weight": "fp32",
        "slope_weight": "fp32",
        "mix_count": "i32" if each else None,
        "student_rows": "*i64" if indexed else None,
        "teacher_rows": "*i64" if indexed else None,
    }
    whole = ("count", "V", "share", "number", "student_stride", "teacher_stride", "gradient_stride", "metrics_stride")
    types |= dict.fromkeys(whole, "i32")
    shape = triton_shape(VOCABULARY, sums=kernel.__name__ in ("term_sums", "measure_rows"))
    constants = constants | {"BLOCK": shape.pop("BLOCK")}
    signature, fixed, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        kind = types.get(name, "*fp32")
        if name in constants or kind is None:
            signature[name] = "constexpr"
            fixed[(place,)] = constants.get(name, 1 if name == "mix_count" else None)
            continue
        signature[name] = kind
        if kind.startswith("*") or name == "V" or name.endswith("stride"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, fixed, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return usage(triton.compile(source, target=target, options=shape).asm["cubin"], tmp_path / "kernel.cubin")


def usage(binary, path):
    """What ``cuobjdump`` says of a compiled kernel: registers, bytes of stack, bytes of spilled registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path.write_bytes(binary)
    done = subprocess.run([tool, "-res-usage", path], capture_output=True, check=True)
    found = re.search(rb"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    return tuple(int(number) for number in found.groups())


def sums_and_gradient(tmp_path, terms, dtype, **kinds):
    from amidkd.kernels import triton_kernels as kernels

    specs = tuple(spec_of(one) for one in terms)
    for spec in specs:
        yield compiled(tmp_path, kernels.term_sums, dtype, {"SPEC": spec}, **kinds)
    constants = {"SPEC": sum(specs, ()), "TEMPERED": dtype == "fp32"} | ({"labels": None} if dtype == "bf16" else {})
    yield compiled(tmp_path, kernels.write_gradient, dtype, constants, **kinds)


def check(found):
    registers, stack, spilled = found
    assert registers <= REGISTERS
    assert (stack, spilled) == (0, 0)


@pytest.mark.parametrize(
    "name", ["KL(p‖q)", "KL(p‖r)", "KL(r‖q)", "Jensen-Shannon", "power, A + B = 1", "power, B < 0"]
)
def test_half_precision(tmp_path, name):
    for found in sums_and_gradient(tmp_path, [TERMS[name]], "bf16"):
        check(found)


@pytest.mark.parametrize("name", ["KL(p‖r)", "KL(r‖q)", "Jensen-Shannon", "power"])
def test_single_precision_with_labels(tmp_path, name):
    for found in sums_and_gradient(tmp_path, [TERMS[name]], "fp32"):
        check(found)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", TERMS)
def test_every_form(tmp_path, name, dtype):
    for found in sums_and_gradient(tmp_path, [TERMS[name]], dtype):
        check(found)


def test_several_terms_a_value_for_each_token_and_an_index(tmp_path):
    for found in sums_and_gradient(tmp_path, GKD, "bf16", indexed=True):
        check(found)
    each = Objective(between="teacher||assistant", alpha=_column(0.5), lam=_column(0.1))
    for found in sums_and_gradient(tmp_path, terms_of(each), "fp16", each=True):
        check(found)


@pytest.mark.parametrize(("dtype", "tempered"), [("fp32", True), ("bf16", False)])
def test_the_first_sweep_and_the_metrics(tmp_path, dtype, tempered):
    from amidkd.kernels import triton_kernels as kernels

    check(compiled(tmp_path, kernels.log_sums, dtype, {"TEMPERED": tempered}))
    check(compiled(tmp_path, kernels.log_sums, dtype, {"TEMPERED": tempered, "teacher": None, "scale": None}))
    check(compiled(tmp_path, kernels.measure_rows, dtype, {"SPEC": spec_of(TERMS["KL(p‖r)"]) if tempered else None}))


def test_no_terms(tmp_path):
    from amidkd.kernels import triton_kernels as kernels

    check(compiled(tmp_path, kernels.write_gradient, "bf16", {"SPEC": (), "TEMPERED": False, "teacher": None}))


def _column(value):
    import torch

    return torch.full((2,), value, dtype=torch.float64)
