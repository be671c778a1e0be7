"""How large the benchmark's tensors are: as the goals are stated, or small enough to try the scripts."""

from dataclasses import dataclass

__all__ = ["FULL", "GPU", "QUICK", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of all sections.

    Args:
        tokens: N, logits given.
        vocabulary: V.
        naive_tokens: N for the oracle, which is no yardstick: it computes everything in the plainest way.
        accuracy_tokens: N of the accuracy section.
        linear_tokens: N, hidden states given.
        student_width: H of the student's hidden states.
        teacher_width: H of the teacher's.
        memory_tokens: N of the memory section.
        batch: Sequences of the training step.
        length: Their length.
        prompt: How many of their tokens are not supervised.
        step_width: Hidden size of the step's student; its teacher is twice as wide.
        step_layers: Layers of both.
        dtypes: Of logits, hidden states and heads.
        rounds: Rounds of the sections loss, linear and step.
        seconds: No new round of a group starts after this long, once there are two.
    """

    tokens: int = 512
    vocabulary: int = 32_000
    naive_tokens: int = 32
    accuracy_tokens: int = 16
    linear_tokens: int = 1024
    student_width: int = 896
    teacher_width: int = 1792
    memory_tokens: int = 2048
    batch: int = 8
    length: int = 128
    prompt: int = 32
    step_width: int = 128
    step_layers: int = 4
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    rounds: tuple[int, int, int] = (7, 3, 5)
    seconds: float = 32.0


FULL = Sizes()
QUICK = Sizes(
    tokens=16,
    vocabulary=1000,
    naive_tokens=4,
    accuracy_tokens=4,
    linear_tokens=32,
    student_width=32,
    teacher_width=64,
    memory_tokens=64,
    batch=2,
    length=16,
    prompt=4,
    step_width=32,
    step_layers=2,
    rounds=(3, 2, 2),
    seconds=2.0,
)
GPU = Sizes(
    tokens=8192,
    vocabulary=151_936,
    naive_tokens=128,
    accuracy_tokens=64,
    linear_tokens=8192,
    student_width=4096,
    teacher_width=8192,
    memory_tokens=8192,
    length=1024,
    prompt=256,
    step_width=1024,
    step_layers=8,
    dtypes=("bfloat16",),
    rounds=(5, 5, 5),
    seconds=30.0,
)
