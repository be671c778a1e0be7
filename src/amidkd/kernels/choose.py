"""The one place that decides what computes a loss.

``naive`` is the oracle and is used only when asked for. ``fused`` and ``chunked`` share one walk over the tokens and
differ in the row kernel: `fused` is C++ on the CPU and Triton on a GPU, `chunked` plain torch. ``auto`` takes ``fused``
wherever it can compute the call, else ``chunked``; it never takes ``naive``, which holds full logits.
"""

import functools
import importlib.util
import warnings
from typing import Literal

import torch

from amidkd.errors import SettingError, SettingWarning
from amidkd.kernels.block import RowKernel
from amidkd.kernels.chunked import beyond_row_kernels
from amidkd.kernels.cpu_rows import cpu_missing, cpu_rows, instructions
from amidkd.kernels.task import Task
from amidkd.kernels.torch_rows import torch_rows

__all__ = ["BACKENDS", "Backend", "available", "check_backend", "choose", "describe"]

Backend = Literal["auto", "naive", "chunked", "fused"]

BACKENDS = ("naive", "chunked", "fused")
"""What ``backend=`` can force."""


def available(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """Each backend with the reason why a device cannot use it, or None where it can.

    Args:
        device: Where the student is.

    Example:
        >>> available()["chunked"] is None
        True
    """
    return {"naive": None, "chunked": None, "fused": _fused_missing(torch.device(device).type)}


def describe(backend: Backend = "auto", device: str | torch.device = "cpu") -> str:
    """What a backend is on a device, in words: for the line that a run begins with.

    Args:
        backend: As for ``distillation_loss``.
        device: Where the student is.

    Example:
        >>> describe("chunked")
        'chunked (torch)'
    """
    kind = torch.device(device).type
    missing = _fused_missing(kind)
    if backend == "auto":
        backend = "fused" if missing is None else "chunked"
    if backend == "fused" and missing is None:
        return f"fused (C++, {instructions()})" if kind == "cpu" else "fused (Triton)"
    words = {"naive": "naive (full logits)", "chunked": "chunked (torch)"}
    return words.get(backend, f"fused, which is missing: {missing}")


def check_backend(backend: Backend, device: str | torch.device) -> None:
    """Refuse a backend that a device does not have, before any work.

    Raises:
        SettingError: Which, and why not.
    """
    missing = None if backend == "auto" else available(device)[backend]
    if missing is not None:
        raise SettingError(f"kernels.backend={backend!r} cannot be used: {missing}. Use 'auto' or 'chunked'")


def choose(task: Task, backend: Backend, *, measured: bool = False) -> tuple[str, RowKernel | None]:
    """The backend of a call and its row kernel; None for ``naive``.

    Args:
        task: The call.
        backend: What was asked for.
        measured: Whether metrics are wanted.

    Raises:
        SettingError: An unknown backend, or ``fused`` where it cannot compute this call: why, and what can.
    """
    if backend not in ("auto", *BACKENDS):
        raise SettingError(f"backend must be 'auto', 'naive', 'chunked' or 'fused'; got {backend!r}")
    if backend == "naive":
        return "naive", None
    if backend == "chunked":
        return "chunked", torch_rows
    kind = task.device.type
    missing, refused = _fused_missing(kind), _fused_refuses(task, measured=measured)
    if missing is None and refused is None:
        return "fused", _fused(kind)
    if backend == "fused":
        raise SettingError(
            f"backend='fused' cannot compute this loss: {missing or refused}. Use backend='auto' or 'chunked'"
        )
    if missing is not None and refused is None:
        _notice(kind, missing)
    return "chunked", torch_rows


def _fused(kind: str) -> RowKernel:
    if kind == "cpu":
        return cpu_rows
    from amidkd.kernels.triton_rows import triton_rows

    return triton_rows


def _fused_missing(kind: str) -> str | None:
    """Why this device has no fused kernel."""
    if kind == "cpu":
        return cpu_missing()
    if kind != "cuda":
        return f"there is none for the device {kind!r}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    from amidkd.kernels.triton_rows import triton_missing

    return triton_missing()


def _fused_refuses(task: Task, *, measured: bool) -> str | None:
    """Why the fused kernels cannot compute this call."""
    if task.dtype != torch.float32:
        return f"an input is {str(task.dtype).removeprefix('torch.')}, and it computes in float32"
    return beyond_row_kernels(task, measured=measured)


@functools.cache
def _notice(kind: str, missing: str) -> None:
    """Say once why a loss is computed by the slower backend."""
    warnings.warn(f"the loss on {kind!r} is computed by plain torch: {missing}", SettingWarning, stacklevel=2)
