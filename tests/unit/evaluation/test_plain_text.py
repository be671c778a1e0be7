"""Perplexity of plain text against a plain loop over windows."""

import math
from pathlib import Path

import pytest
import torch

from amidkd.config import parse
from amidkd.data import Row
from amidkd.errors import SettingError
from amidkd.evaluation import Estimate, evaluate_run
from amidkd.evaluation.plain_text import measure_text
from amidkd.record import RunFolder, write_json_lines

TEXTS = ["red cat sits here now", "dog", "blue bird sings there red green dog runs now here cat"]
SHARED = 17


def nll_by_hand(model, tokenizer, text: str, window: int) -> tuple[float, int]:
    tokens = tokenizer.convert_tokens_to_ids([*text.split(), "</s>"])
    total = 0.0
    for start in range(0, len(tokens) - 1, window - 1):
        part = tokens[start : start + window]
        with torch.no_grad():
            log_q = model(torch.tensor([part])).logits[0, :-1, :SHARED].log_softmax(-1)
        total -= float(log_q.gather(-1, torch.tensor(part[1:]).unsqueeze(-1)).sum())
    return total, len(tokens) - 1


@pytest.mark.parametrize("window", [4, 40])
def test_every_token_counts_once_with_its_window_before_it(world, window: int) -> None:
    rows = [Row(0, f"line {n}", text=text) for n, text in enumerate(TEXTS)]
    result = measure_text(world.student, tokenizer=world.tokenizer, rows=rows, max_length=window, batch_size=2)
    sums, counts = zip(*(nll_by_hand(world.student, world.tokenizer, text, window) for text in TEXTS), strict=True)
    assert result.scores["text_nll"].sums.tolist() == pytest.approx(sums, rel=1e-10)
    assert result.scores["text_nll"].counts.tolist() == list(counts)
    assert result.estimates["text_perplexity"].value == pytest.approx(math.exp(sum(sums) / sum(counts)))


@pytest.fixture
def tree(saved_world: Path, tmp_path: Path) -> dict:
    write_json_lines(tmp_path / "valid.jsonl", [{"prompt": "red", "completion": "cat"}] * 3)
    write_json_lines(tmp_path / "text.jsonl", [{"text": text} for text in [*TEXTS, "red cat " * 60]])
    return {
        "student": {"model": str(saved_world / "student"), "dtype": "auto"},
        "teacher": {"model": str(saved_world / "teacher"), "dtype": "auto"},
        "data": {"train": str(tmp_path / "valid.jsonl"), "validation": str(tmp_path / "valid.jsonl")},
        "evaluation": {"sampling_seeds": [1], "max_new_tokens": 2, "text": str(tmp_path / "text.jsonl")},
        "output": str(tmp_path / "run"),
    }


def test_it_stands_beside_the_metrics_of_the_held_out_rows(tree: dict, world) -> None:
    entry = evaluate_run(parse(tree), RunFolder(Path(tree["output"])))
    assert entry["data"]["text"]["rows"] == 4
    for side, model in (("student", world.student), ("teacher", world.teacher)):
        # 64 positions are what both models read, whatever data.max_length says.
        pairs = [nll_by_hand(model, world.tokenizer, text, 64) for text in [*TEXTS, "red cat " * 60]]
        found = Estimate.from_json(entry[side]["metrics"]["text_nll"])
        assert found.value == pytest.approx(sum(nll for nll, _ in pairs) / sum(count for _, count in pairs), rel=1e-9)
        assert "text_perplexity" in entry[side]["metrics"]
    assert "text_nll" in entry["difference"]["metrics"]


def test_rows_without_text_are_refused(tree: dict) -> None:
    other = {**tree, "evaluation": {**tree["evaluation"], "text": tree["data"]["train"]}}
    with pytest.raises(SettingError, match=r"evaluation\.text: valid\.jsonl, line 1: .* column `text`"):
        evaluate_run(parse(other), RunFolder(Path(tree["output"])))


def test_an_empty_text_has_no_part(tree: dict, world, tmp_path: Path) -> None:
    rows = [Row(n, f"line {n}", text=text) for n, text in enumerate(["red cat", "", "dog"])]
    result = measure_text(world.student, tokenizer=world.tokenizer, rows=rows, max_length=40, batch_size=2)
    assert result.scores["text_nll"].counts.tolist() == [2, 0, 1]
    write_json_lines(tmp_path / "text.jsonl", [{"text": ""}])
    with pytest.raises(SettingError, match=r"evaluation\.text: all texts of .*text\.jsonl are empty"):
        evaluate_run(parse(tree), RunFolder(Path(tree["output"])))
