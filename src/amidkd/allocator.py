"""Let the C library keep large blocks of memory instead of handing them back after each use.

glibc maps every block above 128 KiB anew and gives it back when freed, so each large tensor of each step touches fresh
pages, which the kernel has to clear. On a virtual machine that can cost more than the arithmetic.
"""

import ctypes
import os
import sys

__all__ = ["ENVIRONMENT", "keep_large_blocks"]

ENVIRONMENT = "AMIDKD_ALLOCATOR"
"""Set it to ``default`` to leave the C library's allocator as it is."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""glibc's names are M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (malloc.h)."""

LARGEST_KEPT = 2**30
"""Blocks up to 1 GiB come from the heap, which is kept; larger ones are mapped and given back as before."""


def keep_large_blocks() -> bool:
    """Raise glibc's thresholds for this process; worth calling before the first tensor is made.

    Freed memory then stays with the process: its resident size is the most that it ever used.

    Returns:
        Whether it was done: not on another C library, where the user has set glibc's own variables (``MALLOC_*`` or
        ``GLIBC_TUNABLES``), nor where ``AMIDKD_ALLOCATOR`` is ``default``.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    preloaded = "malloc" in os.environ.get("LD_PRELOAD", "")
    if not sys.platform.startswith("linux") or chosen or preloaded or os.environ.get(ENVIRONMENT) == "default":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
