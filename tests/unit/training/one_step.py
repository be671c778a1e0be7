"""One optimizer step in double precision, from which tests read the weights; also a script for two processes.

accelerate launch --cpu --num_processes 2 one_step.py FOLDER BATCH ACCUMULATION KIND
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tiny import VOCABULARY, byte_tokenizer, tiny_gpt2

from amidkd.config import parse
from amidkd.data import Collator, Example
from amidkd.teachers import LiveTeacher
from amidkd.training import Corpus, DistillationTrainer, training_arguments
from amidkd.training.lessons import Lessons
from amidkd.training.main_stage import main_loss, main_policy

KINDS: dict[str, dict[str, Any]] = {
    "kl": {},
    "labels": {"cross_entropy_weight": 0.7, "temperature": 1.7},
    "corpus": {"cross_entropy_weight": 0.2},
    "sft": {},
}

POLICIES: dict[str, dict[str, Any]] = {
    "on_policy": {"kind": "on_policy"},
    "mixed": {"kind": "mixed", "on_policy_fraction": 0.5},
    "contrastive": {"kind": "contrastive", "beta": 1.3, "adaptive_skew": True},
}
"""Policies that let the student write; each row's prompt is what comes before its first supervised token."""

WEIGHTING = {"student": 0.7, "by": "disagreement", "strength": 0.5}


def policy_of(config: Any, examples: list[Example], student: Any, tokenizer: Any, arguments: Any) -> Any:
    """The run file's policy, writing with the student itself."""
    prompts = {row.row: row.tokens[: row.targets.index(True)] for row in examples}
    lessons = Lessons(examples, examples, prompts, [], {})
    return main_policy(
        config,
        student=student,
        tokenizer=tokenizer,
        lessons=lessons,
        arguments=arguments,
        vocab_size=VOCABULARY,
        folder=Path(config.output.folder),
    )


def rows(count: int = 8) -> list[Example]:
    """Rows of very different lengths, so that means of means would be wrong; one has a single supervised token."""
    lengths = [(2, 1), (3, 14), (9, 2), (2, 7), (5, 5), (12, 1), (4, 20), (3, 3), (2, 2), (7, 9)]
    made = []
    for number in range(count):
        prompt, answer = lengths[number % len(lengths)]
        tokens = tuple(2 + (7 * number + 11 * place) % 250 for place in range(prompt + answer))
        made.append(Example(tokens, (False,) * prompt + (True,) * answer, number))
    return made


def windows(count: int = 5) -> list[Example]:
    return [
        Example(tuple(3 + (5 * n + 3 * t) % 200 for t in range(6 + 4 * n)), (False, *[True] * (5 + 4 * n)), n)
        for n in range(count)
    ]


def one_step(
    folder: Path, *, batch: int, accumulation: int, kind: str, steps: int = 1, count: int = 8, multiple_of: Any = None
) -> dict[str, Any]:
    """Weights after a step (plain SGD, so that they show the gradient itself), and what was logged."""
    policy = POLICIES.get(kind, {"kind": "dataset"})
    writing = {"generation": {"max_new_tokens": 9, "seed": 5}} if kind in POLICIES else {}
    objective = {"alpha": -0.5, "lam": 0.3, **KINDS.get(kind, {"weighting": WEIGHTING, "cross_entropy_weight": 0.2})}
    config = parse(
        {
            "student": {"kind": "from_scratch", "config": {"model_type": "gpt2"}, "tokenizer": "unused"},
            "data": {"train": "unused", "max_length": 40},
            "output": str(folder),
            "training": {
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": accumulation,
                "max_steps": steps,
                "learning_rate": 1.0,
                "optim": "sgd",
                "max_grad_norm": 0,
                "logging_steps": 1,
                "warmup_steps": 0,
                "lr_scheduler_type": "constant",
                "save_strategy": "no",
                "use_cpu": True,
            },
            "policy": {**policy, **writing},
            "objective": {"weighting": WEIGHTING} if kind == "contrastive" else objective,
        }
    )
    student, tokenizer, examples = tiny_gpt2(2).double(), byte_tokenizer(), rows(count)
    distills, arguments = kind != "sft", training_arguments(config, folder)
    trainer = DistillationTrainer(
        student=student,
        tokenizer=tokenizer,
        arguments=arguments,
        examples=examples,
        loss=main_loss(
            config,
            verb="distill" if distills else "sft",
            steps=steps,
            vocab_size=VOCABULARY,
            corpus=kind == "corpus",
        ),
        teacher=LiveTeacher(tiny_gpt2(1, width=24).double(), tokenizer, vocab_size=VOCABULARY) if distills else None,
        policy=policy_of(config, examples, student, tokenizer, arguments),
        corpus=Corpus(windows(), weight=0.6, per_step=5) if kind == "corpus" else None,
    )
    trainer.data_collator = Collator(0, multiple_of)
    trainer.fit(None)
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "weights": weights,
        "lines": lines,
        "first": trainer.is_world_process_zero(),
        "ranks": trainer.args.world_size,
    }


if __name__ == "__main__":
    target, kinds = Path(sys.argv[1]), sys.argv[4].split(",")
    size, parts, number, made = (int(sys.argv[place]) for place in (2, 3, 5, 6))
    for name in kinds:
        found = one_step(target / name, batch=size, accumulation=parts, kind=name, count=number, steps=made)
        if found.pop("first"):
            torch.save(found, target / f"{name}.pt")
