"""Tiny models, a tokenizer of bytes and a few rows, made on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import byte_tokenizer, tiny_gpt2


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``teacher/``, ``pretrained/``, ``train.jsonl`` and ``corpus.jsonl``."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = byte_tokenizer()
    for name, seed, width, layers in (("teacher", 1, 24, 2), ("pretrained", 2, 16, 1)):
        tiny_gpt2(seed, width=width, layers=layers).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": f"{2 * n + 1}" * (1 + n % 3)} for n in range(22)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": f"The number {n} follows {n - 1}, and so on."} for n in range(9)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


@pytest.fixture
def run_tree(world: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of 12 steps: two epochs of 11 batches, two to a step, and one left over."""
    return {
        "student": {
            "kind": "from_scratch",
            "config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
            "warm_start": False,
        },
        "teacher": str(world / "teacher"),
        "data": {"train": str(world / "train.jsonl"), "max_length": 32, "generation": {"max_new_tokens": 8}},
        "objective": {"alpha": -0.5, "lam": 0.3},
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 3,
            "save_steps": 4,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        "output": str(tmp_path / "run"),
    }
