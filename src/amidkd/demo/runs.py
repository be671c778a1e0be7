"""The runs of the demo: which methods are compared, how large everything is, and the run file of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from amidkd.config import RunConfig, parse
from amidkd.demo.task import PROMPT_TEMPLATE

__all__ = ["FULL", "METHODS", "QUICK", "STUDENT", "Method", "Scale", "run_config", "teacher_folder"]

STUDENT: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}
"""The student's shape."""

_MAX_LENGTH, _LONGEST_ANSWER = 48, 16


@dataclass(frozen=True)
class Scale:
    """How large the comparison is.

    Args:
        rows: Prompts to learn from.
        test_rows: Prompts to measure on.
        steps: Optimizer steps of every method, the warm start's included.
        warm_start: How many of them are the warm start of the distillations.
        batch_size: Rows in a step.
        learning_rate: Peak learning rate of every stage of every method.
        label_fraction: Part of the prompts that keep their label.
        training_seeds: One run of every method for each.
        sampling_seeds: One set of sampled answers for each.
    """

    rows: int
    test_rows: int
    steps: int
    warm_start: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    label_fraction: float = 0.05
    training_seeds: tuple[int, ...] = (1, 2)
    sampling_seeds: tuple[int, ...] = (10, 20)


FULL = Scale(rows=10_000, test_rows=500, steps=800, warm_start=200)
QUICK = Scale(rows=400, test_rows=40, steps=24, warm_start=8, label_fraction=0.1, sampling_seeds=(10,))


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Args:
        key: Beginning of the names of its run folders.
        name: What tables call it.
        detail: What it learns from, in a few words.
        verb: The verb that trains it.
        data: Its settings of ``data``.
        objective: Its settings of ``objective``.
    """

    key: str
    name: str
    detail: str
    verb: Literal["sft", "distill"]
    data: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)


METHODS: tuple[Method, ...] = (
    Method("labels", "labels", "cross-entropy on the few labels", "sft", data={"unlabelled": "drop"}),
    Method("texts", "labels + texts", "cross-entropy on the labels and the teacher's answers", "sft"),
    Method(
        "fkl",
        "forward KL",
        "KL(teacher‖student) on the same texts",
        "distill",
        objective={"divergence": "kl", "between": "teacher||student"},
    ),
    # Divergence, pair, α and λ are the run file's defaults; nothing is set for this task.
    Method("amid", "AMiD", "KL(teacher‖assistant), α = −0.5, λ = 0.1, on the same texts", "distill"),
)
"""What is compared; every method gets the same student, prompts, steps and learning rate."""


def teacher_folder() -> Path:
    """The folder of the teacher that comes with the package."""
    return Path(str(resources.files("amidkd.demo") / "teacher"))


def run_config(method: Method, seed: int, *, folder: Path, scale: Scale) -> RunConfig:
    """The settings of one run.

    Args:
        method: How it trains.
        seed: Training seed.
        folder: The demo's folder, which holds ``data/``.
        scale: How large it is.
    """
    distils = method.verb == "distill"
    warm_start = {"max_steps": scale.warm_start, "learning_rate": scale.learning_rate}
    tree = {
        "student": {"kind": "from_scratch", "config": dict(STUDENT), "warm_start": warm_start if distils else None},
        "teacher": {"model": str(teacher_folder())},
        "data": {
            "train": str(folder / "data" / "train.jsonl"),
            "validation": str(folder / "data" / "test.jsonl"),
            "prompt_template": PROMPT_TEMPLATE,
            "max_length": _MAX_LENGTH,
            "label_fraction": scale.label_fraction,
            "generation": {"max_new_tokens": _LONGEST_ANSWER, "batch_size": 256},
            **method.data,
        },
        "objective": dict(method.objective),
        "training": {
            "learning_rate": scale.learning_rate,
            "max_steps": scale.steps - (scale.warm_start if distils else 0),
            "per_device_train_batch_size": scale.batch_size,
            "logging_steps": max(1, scale.steps // 40),
            "save_steps": scale.steps,
            "seed": seed,
            # A demo that was stopped goes on, and what is finished stands.
            "resume_from_checkpoint": True,
        },
        "evaluation": {"batch_size": 256, "sampling_seeds": list(scale.sampling_seeds), "samples_kept": 50},
        "output": str(folder / f"{method.key}-seed{seed}"),
    }
    return parse(tree, where=f"the demo's run {method.key}-seed{seed}")
