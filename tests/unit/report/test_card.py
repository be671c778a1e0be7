"""The model card: what the hub reads in it, and what people do."""

from pathlib import Path

import pytest

from amidkd.config import dump_yaml, parse
from amidkd.evaluation import Estimate, Interval, StandardError
from amidkd.record import RunFolder, write_atomic, write_json
from amidkd.report.card import refresh_card


def entry(value: float, low: float | None = None, high: float | None = None) -> dict:
    interval = None if low is None or high is None else Interval(low, high, 0.95)
    return Estimate(value, (StandardError("prompts", 0.01, 40),), interval).to_json()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "my-student")
    run = {"student": "org/small", "teacher": "org/large", "data": {"train": "org/rows"}, "output": "o"}
    write_atomic(folder.run_file, dump_yaml(parse(run)))
    folder.student.mkdir(parents=True)
    metrics = {"exact_match_greedy": entry(0.451, 0.4, 0.5), "nll": entry(float("inf")), "perplexity": entry(1.5)}
    evaluation = {
        "data": {"file": "somewhere/valid.jsonl", "rows": 200},
        "student": {"metrics": metrics},
        "teacher": {"metrics": {"exact_match_greedy": entry(0.576)}},
        "difference": {"metrics": {"exact_match_greedy": entry(-0.125, -0.2, -0.05)}},
        "suite": {"self_instruct": {"data": {"file": "s", "rows": 9}, "student": {"metrics": {"nll": entry(2.0)}}}},
    }
    models = {"student": {"parameters": 1000}}
    write_json(folder.record_file, {"verb": "distill", "models": models, "results": {"evaluation": evaluation}})
    return folder


def test_the_hub_reads_models_data_and_finite_results(folder: RunFolder) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = refresh_card(folder)
    assert card is not None
    data = hub.ModelCard.load(card).data
    assert data.base_model == "org/small"
    assert data.datasets == ["org/rows"]
    assert data.tags == ["amidkd", "distillation"]
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("valid.jsonl", "exact_match_greedy", 0.451),
        ("valid.jsonl", "perplexity", 1.5),
        ("self instruct", "nll", 2.0),
    ]


def test_people_read_each_number_with_its_interval_beside_the_teachers(folder: RunFolder) -> None:
    card = refresh_card(folder)
    assert card is not None
    text = card.read_text(encoding="utf-8")
    assert "| Exact match, greedy | 45.1 % (40.0 to 50.0) | 57.6 % ± 1.0 | −12.5 % (−20.0 to −5.0) |" in text
    assert "| NLL of real text | ∞ ± 0.010 | – | – |" in text
    assert "### self instruct\n\n| 9 rows | student |" in text
    assert "@inproceedings{shin2026amid," in text
    assert "KL(teacher‖assistant), α = −0.5, λ = 0.1" in text


def test_a_card_without_an_evaluation_claims_none(folder: RunFolder) -> None:
    write_json(folder.record_file, {"verb": "distill"})
    card = refresh_card(folder)
    assert card is not None
    text = card.read_text(encoding="utf-8")
    assert "model-index" not in text
    assert "Results" not in text


def test_there_is_no_card_without_a_student(folder: RunFolder) -> None:
    folder.student.rmdir()
    assert refresh_card(folder) is None


def test_a_prompt_template_stays_in_its_cell(folder: RunFolder) -> None:
    template = "<|user|>\n{prompt}\n<|assistant|>\n"
    data = {"train": "org/rows", "prompt_template": template}
    run = {"student": "org/small", "teacher": "org/large", "data": data, "output": "o"}
    write_atomic(folder.run_file, dump_yaml(parse(run)))
    card = refresh_card(folder)
    assert card is not None
    lines = card.read_text(encoding="utf-8").splitlines()
    assert r"| prompt template | `<\|user\|>\n{prompt}\n<\|assistant\|>\n` |" in lines
