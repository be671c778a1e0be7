"""A tiny world: words as tokens, a teacher and a student with random weights in float64."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from amidkd.config import DataConfig
from amidkd.data import Encoder, Row
from tiny_world import WORDS, make_model, make_tokenizer


@dataclass(frozen=True)
class World:
    """What the tests of this folder share."""

    tokenizer: Any
    encoder: Encoder
    student: Any
    teacher: Any
    rows: list[Row]


@pytest.fixture(scope="session")
def world() -> World:
    tokenizer = make_tokenizer()
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(WORDS[int(n)] for n in torch.randint(0, len(WORDS), (count,), generator=generator))

    rows = [
        Row(index, f"rows.jsonl, line {index + 1}", prompt=words(1 + index % 4), completion=words(1 + index % 3))
        for index in range(11)
    ]
    student = make_model(width=8, layers=1, seed=1, padded_vocab=20).double()
    teacher = make_model(width=16, layers=2, seed=2, padded_vocab=24).double()
    config = DataConfig(train="unused", prompt_template="<s> {prompt} <sep>", max_length=32)
    return World(tokenizer, Encoder(tokenizer, config), student, teacher, rows)


@pytest.fixture(scope="session")
def saved_world(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's models in folders ``student`` and ``teacher``."""
    folder = tmp_path_factory.mktemp("world")
    for name, model in (("student", world.student), ("teacher", world.teacher)):
        model.save_pretrained(folder / name)
        world.tokenizer.save_pretrained(folder / name)
    return folder
