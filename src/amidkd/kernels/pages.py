"""Large pages for large fresh tensors on the CPU.

A gradient is as large as the logits, and its memory is often fresh: the kernel of the system then clears 4 KiB at a
time, at every first touch, which can take several times as long as the loss. Linux gives 2 MiB pages to whoever asks.
"""

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import Tensor

__all__ = ["on_large_pages"]

PAGE = 2**21
"""A large page on x86-64 and most 64-bit ARM systems; elsewhere the request is rounded or has no effect."""

_MADV_HUGEPAGE = 14
"""From Linux's mman.h."""

SMALLEST = 2 * PAGE
"""Below, a tensor may not hold one whole large page."""


def on_large_pages(tensor: Tensor) -> Tensor:
    """The same tensor, whose pages will be large ones when they are first touched; elsewhere than on Linux as it was.

    Args:
        tensor: Contiguous, just allocated.
    """
    size = tensor.numel() * tensor.element_size()
    advise = _madvise()
    if advise is None or tensor.device.type != "cpu" or size < SMALLEST:
        return tensor
    start = -(-tensor.data_ptr() // PAGE) * PAGE
    stop = (tensor.data_ptr() + size) // PAGE * PAGE
    # A refusal (pages of this size switched off) changes nothing.
    advise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), "madvise", None)
    return found
