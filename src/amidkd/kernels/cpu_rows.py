"""The C++ row kernel: `fused.cpp`, compiled when the package is installed, called through ctypes.

It computes in float32, on torch's own threads, with AVX-512, AVX2 or plain vectors, whichever the machine has.
"""

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from amidkd.kernels.block import Block
from amidkd.kernels.terms import Term, series
from amidkd.maths.shapes import Setting

__all__ = ["INSTRUCTIONS", "cpu_missing", "cpu_rows", "instructions"]

INSTRUCTIONS = ("portable", "avx2", "avx512")
"""Instruction sets, by the number that `fused.cpp` gives them; ``AMIDKD_INSTRUCTIONS`` as a variable forces one."""

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SERIES = 10


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    ]


class _Term(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_double),
        ("a", ctypes.c_double),
        ("b", ctypes.c_double),
        ("factor", ctypes.c_double),
        ("s", ctypes.c_void_p),
        ("lam", ctypes.c_void_p),
        ("s_step", ctypes.c_int64),
        ("lam_step", ctypes.c_int64),
        ("series", ctypes.c_float * _SERIES),
        ("form", ctypes.c_int32),
        ("anchor", ctypes.c_int32),
        ("anchor_first", ctypes.c_int32),
        ("detached", ctypes.c_int32),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int64),
        ("vocabulary", ctypes.c_int64),
        ("student", _Matrix),
        ("teacher", _Matrix),
        ("gradient", _Matrix),
        ("terms", ctypes.c_void_p),
        ("term_count", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("cross_entropy_weight", ctypes.c_double),
        ("labels", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("divergences", ctypes.c_void_p),
        ("cross_entropies", ctypes.c_void_p),
        ("metrics", ctypes.c_void_p),
        ("assistant", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("instructions", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    ]


def cpu_missing() -> str | None:
    """Why the C++ kernel cannot be used here, or None."""
    found = _library()
    return found if isinstance(found, str) else None


def instructions() -> str:
    """The instruction set that the kernel uses on this machine: one of ``INSTRUCTIONS``."""
    library = _library()
    assert not isinstance(library, str)
    best = int(library.amidkd_instructions())
    wanted = os.environ.get("AMIDKD_INSTRUCTIONS", INSTRUCTIONS[best])
    return wanted if wanted in INSTRUCTIONS[: best + 1] else INSTRUCTIONS[best]


def cpu_rows(block: Block) -> None:
    """Compute a block of float32, bfloat16 or float16 logits on the CPU (`RowKernel`).

    Args:
        block: On the CPU; its outputs but the gradient are float32, and contiguous.

    Raises:
        MemoryError: No room for the scratch rows: 8 · V floats a thread.
    """
    library = _library()
    assert not isinstance(library, str), library
    # Everything that the call points to is named here, so that it lives until the call returns.
    terms = (_Term * max(1, len(block.terms)))()
    kept = [_fill(entry, term) for entry, term in zip(terms, block.terms, strict=False)]
    call = _Call(
        count=block.count,
        vocabulary=block.vocab_size,
        student=_matrix(block.student, block.student_rows),
        teacher=_matrix(block.teacher, block.teacher_rows),
        gradient=_matrix(block.gradient, block.student_rows),
        terms=ctypes.addressof(terms),
        term_count=len(block.terms),
        temperature=block.temperature,
        cross_entropy_weight=block.cross_entropy_weight,
        labels=_address(block.labels),
        scale=_address(block.scale),
        values=_address(block.values),
        divergences=_address(block.divergences),
        cross_entropies=_address(block.cross_entropies),
        metrics=_address(block.metrics),
        assistant=-1 if block.assistant is None else block.assistant,
        threads=torch.get_num_threads(),
        instructions=INSTRUCTIONS.index(instructions()),
    )
    failed = library.amidkd_run(ctypes.byref(call))
    del kept
    if failed:
        raise MemoryError(f"no memory for the scratch rows of {block.vocab_size} tokens on {call.threads} threads")


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled kernel, or why there is none."""
    path = Path(__file__).with_name("_fused.kernel")
    if not path.is_file():
        return (
            "the C++ kernel was not built: install a C++ compiler (g++ or clang++) and reinstall amidkd "
            "(pip install --force-reinstall --no-deps amidkd)"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the C++ kernel cannot be loaded: {error}"
    library.amidkd_layout.restype = ctypes.c_int64
    expected = ctypes.sizeof(_Call) * 1_000_000 + ctypes.sizeof(_Term) * 1000 + ctypes.sizeof(_Matrix)
    if library.amidkd_layout() != expected:
        return f"the C++ kernel {path.name} is of another version: reinstall amidkd"
    library.amidkd_run.argtypes = [ctypes.POINTER(_Call)]
    library.amidkd_run.restype = ctypes.c_int32
    library.amidkd_instructions.restype = ctypes.c_int32
    return library


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _matrix(tensor: Tensor | None, rows: Tensor | None) -> _Matrix:
    if tensor is None:
        return _Matrix()
    return _Matrix(data=tensor.data_ptr(), rows=_address(rows), stride=tensor.stride(0), dtype=_TYPES[tensor.dtype])


def _fill(entry: _Term, term: Term) -> list[Tensor]:
    """Fill in a term; the tensors that it points to."""
    s, lam = _column(term.s), _column(term.lam)
    entry.weight, entry.a, entry.b, entry.factor = term.weight, term.a, term.b, term.factor
    entry.s, entry.s_step = s.data_ptr(), int(isinstance(term.s, Tensor))
    entry.lam, entry.lam_step = lam.data_ptr(), int(isinstance(term.lam, Tensor))
    entry.series = (ctypes.c_float * _SERIES)(*series(term.a, term.b, _SERIES))
    entry.form, entry.anchor = int(term.form), int(term.anchor)
    entry.anchor_first, entry.detached = int(term.anchor_first), int(term.detached)
    return [s, lam]


def _column(setting: Setting) -> Tensor:
    """One double for each token, or one for all."""
    if isinstance(setting, Tensor):
        return setting.to(device="cpu", dtype=torch.float64).contiguous()
    return torch.tensor([setting], dtype=torch.float64)
