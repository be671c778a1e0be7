"""What the numbers were measured on: the machine's own rates, its load, its allocator, and whose versions."""

import ctypes
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from timing import NOISY

__all__ = ["describe_heap", "machine", "machine_lines", "versions", "warm_heap"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_INT = -1, -3, 2**31 - 1


def warm_heap() -> str:
    """Let malloc keep large tensors once freed: below a threshold, memory is neither mapped afresh nor given back.

    Must run before anything large is allocated.

    Returns:
        Why that is impossible here; empty where it was done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return "this system's C library has no mallopt"
    done = mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
    return "" if done else "mallopt refused the thresholds"


def describe_heap(heap: str) -> str:
    """The allocator setting in words, with what the environment adds to it."""
    words = {
        "default": "default heap (malloc as it comes: large tensors are fresh pages each time)",
        "warm": "warm heap (mallopt: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD at 2 GiB, so large tensors are kept)",
        "cuda": "torch's caching allocator on the device",
    }[heap]
    names = [name for name in os.environ if name.startswith("MALLOC_") or name in ("LD_PRELOAD", "GLIBC_TUNABLES")]
    return words + "".join(f"; {name}={os.environ[name]}" for name in sorted(names))


def versions() -> dict[str, str]:
    """Versions of what takes part; peers that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in ("amidkd", "torch", "transformers", "trl", "liger-kernel", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return found
    return found | ({"commit": done.stdout.strip()} if done.returncode == 0 else {})


def machine(*, quick: bool) -> dict:
    """Names and measured rates; each rate with its slowest and fastest of seven."""
    import torch

    cuda = torch.cuda.is_available()
    found = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }
    return found | {"rates": _rates(torch, "cuda" if cuda else "cpu", quick=quick)}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _rates(torch, device: str, *, quick: bool) -> dict[str, dict]:
    """GB/s, 10⁹ exp/s and 10⁹ flop/s that this machine reaches at best on what the methods are made of."""
    large = (2**20 if quick else 2**26) * (8 if device == "cuda" else 1)
    small = 2**16 if device == "cpu" else 2**26
    side = 256 if quick else 8192 if device == "cuda" else 1024
    buffer = torch.zeros(large, device=device)
    cached, out = torch.linspace(-20.0, 0.0, small, device=device), torch.empty(small, device=device)
    found = {
        "in-place GB/s": _rate(2 * buffer.nbytes / 1e9, lambda: buffer.mul_(1.0), device),
        "exp G/s": _rate(64 * small / 1e9, lambda: [torch.exp(cached, out=out) for _ in range(64)], device),
    }
    if device == "cuda":
        copy = torch.empty_like(buffer)
        found["copy GB/s"] = _rate(2 * buffer.nbytes / 1e9, lambda: copy.copy_(buffer), device)
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.full((side, side), 0.5, device=device, dtype=dtype) for _ in range(2))
        name = f"GEMM {str(dtype).removeprefix('torch.')} Gflop/s"
        found[name] = _rate(2 * side**3 / 1e9, lambda left=left, right=right: left @ right, device)
    return found


def _rate(work: float, call: Callable[[], object], device: str) -> dict:
    import torch

    call()
    each = []
    for _ in range(7):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        each.append(work / (time.perf_counter() - start))
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def machine_lines(found: dict, heap: str) -> str:
    """The lines that come first in every output."""
    rates = ", ".join(
        f"{name.rsplit(' ', 1)[0]} {rate['median']:.4g} {name.rsplit(' ', 1)[1]}"
        + (f" (noisy: {rate['low']:.3g}–{rate['high']:.3g})" if rate["high"] > NOISY * rate["low"] else "")
        for name, rate in found["rates"].items()
    )
    gpu = f"{found['gpu']}; " if found["gpu"] else ""
    return (
        f"machine: {gpu}{found['cpu']}, {found['cores']} cores, {found['threads']} threads, {found['instructions']}, "
        f"load {found['load']:.2f}\n  {rates}\n  {describe_heap(heap)}"
    )
