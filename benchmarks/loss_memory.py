"""How much memory one call of ``distillation_loss`` adds beside its inputs and their gradient.

    python benchmarks/loss_memory.py [--tokens 1024] [--vocabulary 152000] [--json FILE]

Each line of the table is a process of its own: it makes the inputs, reads its resident size, computes value and
gradient, and reads the peak that the kernel kept since then. "added" is that peak above the inputs and above the
gradients, which any method must return.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

MB = 1e6
FORMS = ("logits", "hidden", "topk")
BACKENDS = ("chunked", "naive")


def resident(peak: bool = False) -> int:
    """Resident bytes of this process, now or at most since ``forget_peak``."""
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def forget_peak() -> None:
    """Give freed pages back, so that they are not counted as room already there, and restart the peak."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def signals(form, *, tokens, vocabulary, width):
    import torch

    from amidkd.maths.coarse import truncate
    from amidkd.signals import Hidden, Logits, TopK

    torch.manual_seed(0)
    if form == "logits":
        student, teacher = (torch.randn(tokens, vocabulary) for _ in range(2))
        return Logits(student.requires_grad_()), Logits(teacher), [student]
    states, head = torch.randn(tokens, width), torch.randn(vocabulary, width).div_(width**0.5)
    sources = [states.requires_grad_(), head.requires_grad_()]
    if form == "hidden":
        teacher = Hidden(torch.randn(tokens, 2 * width), torch.randn(vocabulary, 2 * width).div_((2 * width) ** 0.5))
        return Hidden(*sources), teacher, sources
    parts = [truncate(torch.randn(1, vocabulary).log_softmax(-1), 64) for _ in range(tokens)]
    return Hidden(*sources), TopK(*(torch.cat(column) for column in zip(*parts, strict=True))), sources


def measure(form, backend, *, tokens, vocabulary, width, memory_mb):
    """Peak above inputs and gradients, and seconds, of value and backward, in this process."""
    import torch

    from amidkd.kernels import distillation_loss
    from amidkd.maths import Objective

    student, teacher, sources = signals(form, tokens=tokens, vocabulary=vocabulary, width=width)
    objective = Objective(alpha=-3.0, lam=0.1)
    small = signals("logits", tokens=2, vocabulary=64, width=width)
    distillation_loss(student=small[0], teacher=small[1], objective=objective).loss.backward()
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in sources)
    forget_peak()
    before = resident()
    start = time.perf_counter()
    out = distillation_loss(student=student, teacher=teacher, objective=objective, backend=backend, memory_mb=memory_mb)
    out.loss.backward()
    seconds = time.perf_counter() - start
    added = resident(peak=True) - before - gradients
    assert all(bool(torch.isfinite(tensor.grad).all()) for tensor in sources)
    return {"added_mb": added / MB, "gradients_mb": gradients / MB, "seconds": seconds, "loss": out.loss.item()}


def machine() -> dict:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--naive-tokens", type=int, default=128, help="as --tokens, for naive")
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--width", type=int, default=896, help="hidden width of the student; the teacher's is double")
    parser.add_argument("--memory-mb", type=float, default=128.0, help="memory_mb of the chunked backend")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--one", nargs=2, metavar=("FORM", "BACKEND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("tokens", "vocabulary", "width", "memory_mb")}
    if options.one:
        print(json.dumps(measure(*options.one, **sizes)))
        return
    rows = []
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, torch {about['torch']} ({about['threads']} threads)")
    print(f"V = {options.vocabulary}, float32, memory_mb = {options.memory_mb:g}; MB = 10^6 bytes\n")
    names = ("added, MB", "gradients, MB", "seconds", "loss")
    print(f"{'student/teacher':<16}{'backend':<10}{'N':>6}{names[0]:>12}{names[1]:>16}{names[2]:>10}{names[3]:>12}")
    for form in options.forms:
        for backend in options.backends:
            sizes["tokens"] = options.naive_tokens if backend == "naive" else options.tokens
            flags = [text for name in sizes for text in (f"--{name.replace('_', '-')}", str(sizes[name]))]
            command = [sys.executable, __file__, *flags, "--one", form, backend]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{form:<16}{backend:<10}  failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
                continue
            found = json.loads(done.stdout)
            rows.append({"form": form, "backend": backend, "tokens": sizes["tokens"], **found})
            print(
                f"{form:<16}{backend:<10}{sizes['tokens']:>6}{found['added_mb']:>12.1f}{found['gradients_mb']:>16.1f}"
                f"{found['seconds']:>10.1f}{found['loss']:>12.6f}"
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "command": " ".join(["python", *sys.argv]),
            "machine": about,
            "sizes": {name: value for name, value in vars(options).items() if name not in ("json", "one")},
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
