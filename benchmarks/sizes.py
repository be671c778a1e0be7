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
        texts: Prompts to choose from.
        written: Prompts that the section generate answers.
        real_written: The same for the real models.
        answer: Tokens of each answer.
        passes: Sequences in a forward pass of on-policy training.
        real_passes: The same for the real models.
        accumulation: Forward passes in a step of it.
        on_policy_steps: Steps of it that are timed in a round, after an untimed one.
        dtypes: Of logits, hidden states and heads.
        rounds: Rounds of the sections loss; linear; step, generate and on_policy.
        seconds: No new round of a group starts after this long, once there are two.
        training_seconds: The same of on_policy.
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
    texts: int = 512
    written: int = 32
    real_written: int = 256
    answer: int = 64
    passes: int = 4
    real_passes: int = 16
    accumulation: int = 2
    on_policy_steps: int = 4
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    rounds: tuple[int, int, int] = (7, 3, 5)
    seconds: float = 32.0
    training_seconds: float = 75.0


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
    texts=64,
    written=4,
    real_written=4,
    answer=4,
    passes=2,
    real_passes=2,
    rounds=(3, 2, 2),
    seconds=2.0,
    training_seconds=2.0,
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
