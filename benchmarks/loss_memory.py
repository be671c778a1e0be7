"""How much memory one call adds beside its inputs and their gradient: each method in a process of its own.

The process makes the inputs, reads its resident size, computes value and gradient, and reads the peak that the kernel
kept since then (on a GPU: the peak that torch's allocator kept). "Added" is that peak above the inputs and above the
gradients, which any method must return.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from names import ALPHAS, OWN, alpha_case, group
from timing import Row

if TYPE_CHECKING:
    from context import Context

__all__ = ["FORMS", "measure", "run"]

MB = 1e6
FORMS = ("logits", "hidden", "topk")
OBJECTIVE = alpha_case(ALPHAS[0])


def resident(peak: bool = False) -> int:
    """Resident bytes of this process, now or at most since ``forget_peak``."""
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def forget_peak() -> None:
    """Give freed pages back, so that they are not counted as room already there, and restart the peak."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _added(call: Callable[[], object], device: str) -> int:
    """Peak above what was there before the call."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    forget_peak()
    before = resident()
    call()
    return resident(peak=True) - before


def _inputs(form: str, *, tokens: int, vocabulary: int, width: int, dtype: str, device: str) -> tuple[list, list]:
    """The tensors of a form, student's first; and those of them that want a gradient."""
    import torch
    from linear import heads
    from loss import logits

    from amidkd.maths.coarse import truncate

    made = {"dtype": getattr(torch, dtype), "device": device, "seed": 0}
    if form == "logits":
        student, teacher = logits(tokens, vocabulary, **made)
        return [student, teacher], [student]
    found = heads(tokens, vocabulary, width, 2 * width if form == "hidden" else 1, **made)
    if form == "hidden":
        return [found], [found.states, found.weight]
    generator = torch.Generator(device).manual_seed(0)
    rows = (torch.randn(1, vocabulary, device=device, generator=generator).log_softmax(-1) for _ in range(tokens))
    parts = [truncate(row, min(64, vocabulary // 2)) for row in rows]
    return [found, *(torch.cat(column) for column in zip(*parts, strict=True))], [found.states, found.weight]


def _loss(form: str, method: str, *, memory_mb: float | None, device: str) -> Callable:
    """From a form's tensors to the loss."""
    import peers

    from amidkd.kernels import distillation_loss
    from amidkd.signals import Hidden, Logits, TopK

    if method in ("naive", *OWN):
        room = {} if memory_mb is None else {"memory_mb": memory_mb}
        settings = {"objective": peers.objective_of(OBJECTIVE), "backend": method, **room}

        def own(first, *rest):
            if form == "logits":
                student, teacher = Logits(first), Logits(*rest)
            else:
                student = Hidden(first.states, first.weight)
                teacher = TopK(*rest) if rest else Hidden(first.teacher_states, first.teacher_weight)
            return distillation_loss(student=student, teacher=teacher, **settings).loss

        return own
    if form == "logits":
        known = [item for case in (OBJECTIVE, "jsd", "kl") for item in peers.given_logits(case, device)]
    else:
        known = peers.given_hidden(device, may_compile=False)
    found = next(item for item in known if item.name == method)
    if isinstance(found, peers.Missing):
        raise RuntimeError(found.why)
    return found.loss


def measure(
    form: str,
    method: str,
    *,
    tokens: int,
    vocabulary: int,
    width: int,
    memory_mb: float | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, float]:
    """Peak above inputs and gradients, and seconds, of value and backward, in this process.

    Args:
        form: Of ``FORMS``: what student and teacher are given as.
        method: A backend of ``distillation_loss``, or a peer's name.
        tokens: N.
        vocabulary: V.
        width: Of the student's hidden states; the teacher's is double.
        memory_mb: Of ``distillation_loss``; None: its default.
        dtype: Of logits, hidden states and heads.
        device: ``cpu`` or ``cuda``.
    """
    import torch

    loss = _loss(form, method, memory_mb=memory_mb, device=device)
    made = {"dtype": dtype, "device": device}
    # Libraries that load at the first call are no part of what a call needs.
    small, _ = _inputs(form, tokens=2, vocabulary=64, width=width, **made)
    loss(*small).backward()
    tensors, sources = _inputs(form, tokens=tokens, vocabulary=vocabulary, width=width, **made)
    value: list[float] = []

    def call() -> None:
        out = loss(*tensors)
        out.backward()
        value.append(float(out))

    start = time.perf_counter()
    gradients = sum(tensor.nbytes for tensor in sources)
    added = _added(call, device) - gradients
    seconds = time.perf_counter() - start
    assert all(bool(torch.isfinite(tensor.grad).all()) for tensor in sources)
    unit = tokens * vocabulary * getattr(torch, dtype).itemsize
    return {
        "added_mb": added / MB,
        "logits_tensors": added / unit,
        "gradients_mb": gradients / MB,
        "tokens": tokens,
        "seconds": seconds,
        "loss": value[0],
    }


def _methods(form: str, device: str) -> list[str]:
    import peers

    own = peers.own_backends(device)
    found = {"logits": ["textbook", "F.kl_div", "TRL GKD"], "hidden": ["textbook", "TRL chunked", "Liger"], "topk": []}
    return [*found[form], *own.names, *(["naive"] if form == "logits" else [])]


def run(context: "Context") -> Iterator[tuple[str, str, list[Row]]]:
    """Groups with the name of their yardstick and their rows; every figure in logits tensors [N, V]."""
    sizes, dtype = context.sizes, context.sizes.dtypes[0]
    if context.device == "cuda":
        import torch

        torch.cuda.empty_cache()
    for form in FORMS:
        name, rows = group(form, dtype), []
        for method in _methods(form, context.device):
            tokens = sizes.naive_tokens if method == "naive" else sizes.memory_tokens
            options = {
                "tokens": tokens,
                "vocabulary": sizes.vocabulary,
                "width": sizes.student_width,
                "dtype": dtype,
                "device": context.device,
            }
            command = [sys.executable, __file__, form, method, json.dumps(options)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["killed, probably out of memory"])[-1][:200]
                rows.append(Row("memory", context.heap, name, method, missing=why))
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append(Row("memory", context.heap, name, method, rounds=[found["logits_tensors"]], figures=found))
        yield name, "textbook", rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("method", help="a backend of distillation_loss, or a peer's name as the benchmark prints it")
    parser.add_argument("options", type=json.loads, help="arguments of measure() as JSON")
    options = parser.parse_args()
    print(json.dumps(measure(options.form, options.method, **options.options)))


if __name__ == "__main__":
    main()
