"""The packaged teacher: its tokenizer is what the code builds, its size is in bounds, and it is good."""

import json
import math
import re

import pytest

from amidkd.config import load
from amidkd.demo.runs import FULL, METHODS, STUDENT, run_config, teacher_folder
from amidkd.demo.task import PROMPT_TEMPLATE, make_rows
from amidkd.demo.tokenizer import build_tokenizer
from amidkd.models import generate, load_model, load_tokenizer, make_student

ROWS = make_rows(2, 400, "test")


@pytest.fixture(scope="module")
def teacher():
    return load_model(teacher_folder(), dtype="float32")


def test_packaged_tokenizer_is_what_the_code_builds() -> None:
    packaged, built = load_tokenizer(teacher_folder()), build_tokenizer()
    assert json.loads(packaged.backend_tokenizer.to_str()) == json.loads(built.backend_tokenizer.to_str())
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(packaged, name) for name in special] == [getattr(built, name) for name in special]
    assert None not in [getattr(packaged, name) for name in special]


def test_text_survives_the_tokenizer() -> None:
    tokenizer = load_tokenizer(teacher_folder())
    for row in ROWS:
        for text in (row["prompt"], *row["references"]):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    known = tokenizer("Sort these words: cat", add_special_tokens=False).tokens()
    assert known == ["▁Sort", "▁these", "▁words", ":", "▁cat"]
    assert tokenizer.decode(tokenizer("xylem!", add_special_tokens=False)["input_ids"]) == "xylem!"


def test_package_stays_small() -> None:
    files = [path for path in teacher_folder().iterdir() if path.is_file()]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_teacher_is_as_good_as_its_page_says(teacher) -> None:
    tokenizer = load_tokenizer(teacher_folder())
    prompts = [
        tokenizer(PROMPT_TEMPLATE.format(prompt=row["prompt"]), add_special_tokens=False)["input_ids"] for row in ROWS
    ]
    answers = generate(
        teacher, prompts, eos_ids=[tokenizer.eos_token_id], pad_id=tokenizer.pad_token_id, max_new_tokens=16,
        temperature=0, batch_size=200, seed=0,
    )  # fmt: skip
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    right = [text in row["references"] for text, row in zip(texts, ROWS, strict=True)]
    rate = sum(right) / len(right)
    assert rate >= 0.9
    page = (teacher_folder() / "README.md").read_text(encoding="utf-8")
    stated = float(re.search(r"\*\*Quality\.\*\* ([\d.]+) %", page)[1]) / 100
    assert abs(rate - stated) <= 3 * math.sqrt(stated * (1 - stated) / len(right))


def test_teacher_is_what_its_recipe_says(teacher, repository) -> None:
    recipe = load(repository / "recipes" / "demo_teacher.yaml")
    for name, value in recipe.student.config.items():
        assert getattr(teacher.config, name) == value, name
    assert recipe.data.prompt_template == PROMPT_TEMPLATE


def test_student_is_five_to_eight_times_smaller(teacher, tmp_path) -> None:
    config = run_config(METHODS[0], 1, folder=tmp_path, scale=FULL)
    student = make_student(config.student, tokenizer=build_tokenizer(), seed=0)
    ratio = sum(p.numel() for p in teacher.parameters()) / sum(p.numel() for p in student.parameters())
    assert 5 <= ratio <= 8
    assert student.config.hidden_size == STUDENT["hidden_size"]
