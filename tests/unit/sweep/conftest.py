"""A tiny world on disk, and run files of sweeps over it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from amidkd.config import RunConfig, parse
from tiny_world import WORDS, make_rows, save_models

pytest.importorskip("optuna", reason="sweeps need Optuna: pip install 'amidkd[sweep]'")


@pytest.fixture(scope="session")
def sweep_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``teacher/``, ``student/``, ``train.jsonl`` (every third row without its completion),
    ``held_out.jsonl`` and ``texts.jsonl``."""
    folder = tmp_path_factory.mktemp("world")
    save_models(folder)
    for name, count in (("train", 24), ("held_out", 8)):
        rows = make_rows(count)
        if name == "train":
            rows = [row if i % 3 else {"prompt": row["prompt"]} for i, row in enumerate(rows)]
        _write(folder / f"{name}.jsonl", rows)
    _write(folder / "texts.jsonl", [{"text": " ".join(WORDS[:5])}] * 4)
    _write(folder / "prompts.jsonl", [{"prompt": WORDS[0]}] * 4)
    return folder


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def sweep_tree(sweep_world: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The tree of a sweep; keyword arguments replace whole sections or, given as mappings, some of their settings."""

    def make(**sections: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "student": {"model": str(sweep_world / "student")},
            "teacher": {"model": str(sweep_world / "teacher")},
            "data": {
                "train": str(sweep_world / "train.jsonl"),
                "validation": str(sweep_world / "held_out.jsonl"),
                "prompt_template": "<s> {prompt} <sep>",
                "unlabelled": "drop",
                "generation": {"max_new_tokens": 6},
            },
            "objective": {"alpha": -0.5, "lam": 0.1},
            "training": {
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "logging_steps": 1,
                "save_steps": 2,
                "learning_rate": 0.01,
                "use_cpu": True,
            },
            "evaluation": {"sampling_seeds": [1], "max_new_tokens": 4, "max_rows": 4, "bootstrap": 100},
            "sweep": {"space": {"objective.alpha": [-1.0, 0.5]}, "sampler": "grid"},
            "output": str(tmp_path / "sweep"),
        }
        for name, values in sections.items():
            given = isinstance(values, dict) and isinstance(tree.get(name), dict)
            tree[name] = {**tree[name], **values} if given else values
        return tree

    return make


@pytest.fixture
def sweep_config(sweep_tree: Callable[..., dict[str, Any]]) -> Callable[..., RunConfig]:
    """The same, parsed."""
    return lambda **sections: parse(sweep_tree(**sections))
