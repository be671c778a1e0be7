"""A tiny world on disk: teacher, student, rows, and run files over them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_world import make_rows, save_models


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_models(folder)
    for name, count in (("train", 24), ("held_out", 8)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(count)))
    return folder


@pytest.fixture
def run_file(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a run file; keyword arguments replace whole sections or, given as mappings, some of their settings."""

    def write(**sections: Any) -> Path:
        tree: dict[str, Any] = {
            "student": {"model": str(tiny_folder / "student")},
            "teacher": {"model": str(tiny_folder / "teacher")},
            "data": {
                "train": str(tiny_folder / "train.jsonl"),
                "validation": str(tiny_folder / "held_out.jsonl"),
                "prompt_template": "<s> {prompt} <sep>",
                "generation": {"max_new_tokens": 6},
            },
            "objective": {"alpha": -0.5, "lam": 0.1},
            "training": {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 2, "learning_rate": 0.001},
            "evaluation": {"sampling_seeds": [1, 2], "max_new_tokens": 6},
            "output": {"folder": "run"},
        }
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write
