"""Pinned losses of the whole training step: order of rows, accumulation, objective, optimizer, schedule.

A change that moves them changes what every run learns; it needs a reason. To see the present ones:
``python tests/golden/test_training_curve.py``.
"""

import math
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from amidkd.config import parse
from amidkd.data import Example
from amidkd.teachers import LiveTeacher
from amidkd.training import Corpus, DistillationTrainer, LossSettings, ScheduledObjective, training_arguments

VOCABULARY = 31

OBJECTIVES: dict[str, dict[str, Any]] = {
    "forward KL": {"between": "teacher||student"},
    "AMiD": {"alpha": -3, "lam": 0.1},
    "alpha_beta, α falling": {
        "divergence": {"name": "alpha_beta", "a": 0.2, "b": 0.7},
        "alpha": {"kind": "linear", "start": 1, "end": -3},
        "cross_entropy_weight": 0.1,
    },
    "GKD": {
        "terms": [
            {"weight": 0.3, "alpha": -1, "lam": 0.3},
            {"weight": 0.7, "between": "student||assistant", "alpha": -1, "lam": 0.3},
        ],
        "temperature": 1.5,
    },
    "TAID": {
        "between": "assistant||student",
        "alpha": 1,
        "lam": {"kind": "adaptive", "rate": 0.1},
        "detach_assistant": True,
    },
    "cross-entropy": {},
}

# fmt: off
PINNED: dict[str, list[float]] = {
    "forward KL": [
        2.145046, 2.196801, 2.145738, 2.063629, 2.033618, 2.054502, 1.995521, 1.962848, 2.063391,
        1.903291,
    ],
    "AMiD": [
        0.32741, 0.3583079, 0.3402299, 0.3004355, 0.3055852, 0.3303043, 0.3430895, 0.3029861,
        0.3404141, 0.2983558,
    ],
    "alpha_beta, α falling": [
        0.9311296, 1.018903, 0.9869806, 0.8950892, 0.9173312, 0.9710984, 0.9916765, 0.937261,
        0.9705388, 0.8841093,
    ],
    "GKD": [
        0.04950055, 0.0551897, 0.05200657, 0.04497241, 0.04612942, 0.05061821, 0.05228698,
        0.04731099, 0.05178815, 0.04525157,
    ],
    "TAID": [
        0.09653382, 0.143365, 0.1697895, 0.1775059, 0.2158613, 0.2743237, 0.324795, 0.3216067,
        0.4002061, 0.3826683,
    ],
    "cross-entropy": [
        3.43847, 3.46214, 3.409537, 3.176566, 3.151436, 2.991252, 3.236145, 2.783338, 3.044405,
        2.786357,
    ],
}
# fmt: on


def patterned_model(width: int, phase: float, *, sharpness: float) -> Any:
    """A model whose weights come from a formula, so that no random generator decides them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            waves = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (1.3 + 0.1 * number) + phase)
            centre = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_((centre + 0.5 * waves / math.sqrt(parameter.shape[-1])).view_as(parameter))
        model.lm_head.weight *= sharpness
    return model


def examples(count: int, phase: int) -> list[Example]:
    made = []
    for row in range(count):
        length = 4 + (5 * row + phase) % 9
        tokens = tuple(3 + (7 * row + place * place + phase) % (VOCABULARY - 3) for place in range(length))
        made.append(Example(tokens, (False, False, *[True] * (length - 2)), row))
    return made


def curve(name: str, folder: Path) -> list[float]:
    config = parse(
        {
            "student": {"kind": "from_scratch", "config": {"model_type": "llama"}, "tokenizer": "unused"},
            "data": {"train": "unused"},
            "output": str(folder),
            "objective": OBJECTIVES[name],
            "training": {
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "max_steps": 10,
                "learning_rate": 3e-3,
                "warmup_steps": 0.2,
                "weight_decay": 0.01,
                "logging_steps": 1,
                "save_strategy": "no",
                "use_cpu": True,
            },
        }
    )
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    objective, distills = config.objective, name != "cross-entropy"
    teacher = LiveTeacher(patterned_model(20, 1.9, sharpness=10), tokenizer, vocab_size=VOCABULARY)
    trainer = DistillationTrainer(
        student=patterned_model(12, 0.3, sharpness=3),
        tokenizer=tokenizer,
        arguments=training_arguments(config, folder, warmup_steps=2),
        examples=examples(13, 0),
        loss=LossSettings(
            objective=ScheduledObjective(objective, steps=10) if distills else None,
            cross_entropy_weight=objective.cross_entropy_weight,
            temperature=objective.temperature,
            vocab_size=VOCABULARY,
        ),
        teacher=teacher if distills else None,
        corpus=Corpus(examples(5, 3), weight=0.5, per_step=3) if name == "forward KL" else None,
    )
    trainer.fit(None)
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_the_pinned_ones(name: str, tmp_path: Path) -> None:
    # The room is for other orders of summation on other processors; ten steps amplify them little.
    assert curve(name, tmp_path) == pytest.approx(PINNED[name], rel=2e-4)


def test_the_pinned_curves_tell_the_objectives_apart() -> None:
    first = {name: losses[0] for name, losses in PINNED.items()}
    assert len({round(loss, 4) for loss in first.values()}) == len(OBJECTIVES)


if __name__ == "__main__":
    for each in OBJECTIVES:
        losses = ", ".join(f"{loss:.7g}" for loss in curve(each, Path(tempfile.mkdtemp())))
        sys.stdout.write(f'    "{each}": [{losses}],\n')
