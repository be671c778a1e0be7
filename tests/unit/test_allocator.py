"""The command line keeps large blocks of memory; whoever chose otherwise is left alone."""

import subprocess
import sys

import pytest

from amidkd import allocator

FAULTS = """
import resource, sys
import torch
from amidkd.allocator import keep_large_blocks
if sys.argv[1] == "keep":
    assert keep_large_blocks()
student, teacher = torch.randn(300, 32_000, requires_grad=True), torch.randn(300, 32_000)

def step():
    mixture = torch.logaddexp(student.log_softmax(-1), teacher.log_softmax(-1))
    (mixture - mixture.logsumexp(-1, keepdim=True)).square().mean().backward()
    student.grad = None

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

# The heap grows while its blocks are split in new ways; then it has what a step needs.
for _ in range(8):
    step()
before = faults()
step(), step(), step()
print(faults() - before)
"""


def faults(mode):
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not allocator.keep_large_blocks(), reason="not glibc, or its allocator was chosen by the user")
def test_large_tensors_find_the_pages_of_earlier_ones():
    assert faults("keep") < faults("leave") / 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMIDKD_ALLOCATOR", "default"),
        ("MALLOC_ARENA_MAX", "2"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
    ],
)
def test_whoever_chose_an_allocator_keeps_it(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert not allocator.keep_large_blocks()
