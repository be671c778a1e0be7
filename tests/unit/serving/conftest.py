"""A teacher to serve."""

from pathlib import Path

import pytest

from serving_world import save_teacher


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with its tokenizer."""
    return save_teacher(tmp_path_factory.mktemp("served") / "teacher")
