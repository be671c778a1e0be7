"""The Triton row kernel: `triton_kernels`, launched on the current stream, without waiting for the device."""

import functools
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from amidkd.kernels.block import Block
from amidkd.kernels.terms import Anchor, Form, Term, series
from amidkd.maths.divergence.forms import SERIES_RADIUS
from amidkd.maths.shapes import Setting

__all__ = ["spec_of", "triton_missing", "triton_rows", "triton_shape"]

PROGRAMS = 2048
"""Rows of a gradient are shared out until there are as many programs: some for each multiprocessor of any GPU."""

REGISTERS = 128
"""Of 65,536 a multiprocessor, for programs that take sums; with a limit of its own choice the compiler spills some."""


def triton_missing() -> str | None:
    """Why triton cannot be used here, or None: it is not installed, cannot be loaded, or there is no GPU for it."""
    if (reason := _not_installed()) is not None:
        return reason
    if torch.cuda.is_available() or _interpreted():
        return None
    return "torch sees no GPU"


@functools.cache
def _not_installed() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton (on Linux)"
    try:
        importlib.import_module("amidkd.kernels.triton_kernels")
    except Exception as error:  # whatever a version of triton that does not fit its surroundings raises
        return f"triton cannot be loaded: {error}"
    return None


def triton_rows(block: Block) -> None:
    """Compute a block of float32, bfloat16 or float16 logits on a GPU (`RowKernel`).

    Args:
        block: On one CUDA (or ROCm) device; its outputs are contiguous in each row.
    """
    if block.count == 0:
        return
    with torch.cuda.device_of(block.student):
        _launch(block)


def _interpreted() -> bool:
    from amidkd.kernels.triton_kernels import INTERPRETED

    return INTERPRETED


def _launch(block: Block) -> None:
    from amidkd.kernels import triton_kernels as kernels

    device, n, V = block.student.device, block.count, block.vocab_size
    shape, sums = triton_shape(V, sums=False), triton_shape(V, sums=True)
    factor = math.log2(math.e) / block.temperature
    tempered = block.temperature != 1.0
    rows = kernels.OF_TERMS.value + kernels.EACH_TERM.value * len(block.terms)
    state = torch.empty((rows, n), dtype=torch.float32, device=device)
    student = (block.student, block.student_rows, block.student.stride(0))
    teacher = (None, None, 0) if block.teacher is None else (block.teacher, block.teacher_rows, block.teacher.stride(0))
    kernels.log_sums[(n,)](
        *student,
        *teacher,
        block.labels,
        block.scale,
        state,
        block.values,
        block.divergences,
        block.cross_entropies,
        n,
        V,
        factor,
        float(block.cross_entropy_weight),
        TEMPERED=tempered,
        **shape,
    )
    mix = _mixes(block.terms, device)
    specs = tuple(spec_of(term) for term in block.terms)
    for number, (term, spec) in enumerate(zip(block.terms, specs, strict=True)):
        weight = term.weight * term.factor
        kernels.term_sums[(n,)](
            *student,
            *teacher,
            block.scale,
            mix,
            mix.shape[-1],
            state,
            block.values,
            block.divergences,
            n,
            V,
            factor,
            weight,
            weight / block.temperature,
            number,
            SPEC=spec,
            **sums,
        )
    if block.metrics is not None:
        kernels.measure_rows[(n,)](
            *student,
            *teacher,
            mix,
            mix.shape[-1],
            state,
            block.metrics,
            block.metrics.stride(0),
            n,
            V,
            factor,
            0 if block.assistant is None else block.assistant,
            SPEC=None if block.assistant is None else specs[block.assistant],
            **sums,
        )
    if block.gradient is not None:
        blocks = -(-V // shape["BLOCK"])
        each = -(-blocks // min(blocks, -(-PROGRAMS // n)))
        kernels.write_gradient[(n, -(-blocks // each))](
            *student,
            *teacher,
            block.gradient,
            block.gradient.stride(0),
            block.labels,
            mix,
            mix.shape[-1],
            state,
            n,
            V,
            each,
            factor,
            SPEC=tuple(number for spec in specs for number in spec),
            TEMPERED=tempered,
            **shape,
        )


def triton_shape(vocab_size: int, *, sums: bool) -> dict[str, Any]:
    """Columns of a block, and warps of a program: four logits a thread where sums fill the registers, else eight.

    In the interpreter time goes by the number of operations, so that blocks are large.

    Args:
        vocab_size: V.
        sums: Whether it is for the sums of a term or for metrics.
    """
    if _interpreted():
        return {"BLOCK": max(16, _power_of_two(-(-vocab_size // 3)))}
    block = min(512 if sums else 1024, max(256, _power_of_two(vocab_size)))
    lanes = 64 if torch.version.hip else 32
    shape = {"BLOCK": block, "num_warps": max(1, block // (lanes * (4 if sums else 8))), "enable_fp_fusion": True}
    return shape | {"maxnreg": REGISTERS} if sums and not torch.version.hip else shape


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def spec_of(term: Term) -> tuple[Any, ...]:
    """What a term's kernels are compiled for: all but its weight, s and λ, which may change from step to step."""
    from amidkd.kernels import triton_forms as forms

    kind = forms.EACH
    learns = not term.detached
    if not isinstance(term.s, Tensor) and not isinstance(term.lam, Tensor):
        kind = forms.PURE if term.lam in (0.0, 1.0) else forms.GEOMETRIC if term.s == 0.0 else forms.POWER
        learns = learns and term.lam != 1.0
    radius, coefficients = 0.0, [0.0] * forms.SERIES.value
    if term.form == Form.POWER:
        steepest = max(abs(term.a + term.b), abs(term.b))
        radius = SERIES_RADIUS / steepest if steepest else math.inf
        coefficients = series(term.a, term.b, len(coefficients))
    return (
        int(term.form),
        term.anchor == Anchor.STUDENT,
        term.anchor_first,
        kind.value,
        learns,
        torch.version.hip is None and not _interpreted(),
        float(term.a),
        float(term.b),
        radius,
        *coefficients,
    )


def _mixes(terms: tuple[Term, ...], device: torch.device) -> Tensor:
    """The numbers of all assistants, as `triton_kernels.COLUMNS` says, float32: [terms, columns, n], or 1 for n."""
    if not terms:
        return torch.empty((0, 0, 1), dtype=torch.float32, device=device)
    each = any(isinstance(setting, Tensor) for term in terms for setting in (term.s, term.lam))
    where = device if each else torch.device("cpu")
    found = [_numbers(_column(term.s, where), _column(term.lam, where)) for term in terms]
    mix = torch.stack(list(torch.broadcast_tensors(*found)) if each else found).float()
    return mix.to(device, non_blocking=True).contiguous()


def _column(setting: Setting, device: torch.device) -> Tensor:
    if isinstance(setting, Tensor):
        return setting.to(device=device, dtype=torch.float64, non_blocking=True)
    return torch.full((1,), setting, dtype=torch.float64, device=device)


def _numbers(s: Tensor, lam: Tensor) -> Tensor:
    """[columns, n or 1], float64."""
    s, lam = torch.broadcast_tensors(s, lam)
    pure = (lam == 0.0) | (lam == 1.0)
    linear, wide = pure | (s == 0.0), ~pure & (s > 0.0)
    inverse = torch.where(linear, 0.0, 1.0 / s)
    level_p = torch.where(wide, lam.log2() * inverse, torch.where(lam == 1.0, 0.0, -torch.inf))
    level_q = torch.where(wide, (1.0 - lam).log2() * inverse, torch.where(lam == 0.0, 0.0, -torch.inf))
    larger = torch.where(wide, torch.maximum(level_p, level_q), 0.0)
    columns = (
        torch.where(linear, 0.0, s),
        inverse,
        lam,
        1.0 - lam,
        torch.where(linear, lam - 1.0, -1.0),
        torch.where(linear, lam, 0.0),
        level_p,
        level_q,
        level_p - larger,
        level_q - larger,
        torch.where(pure, 0.0, 1.0),
    )
    return torch.stack([column.expand_as(s) for column in columns])
