"""Reports as Markdown and JSON hold the record's numbers, and are what their names say."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from amidkd.cli import main
from amidkd.config import dump_yaml, parse
from amidkd.errors import SettingError
from amidkd.evaluation import Estimate, StandardError
from amidkd.evaluation.statistics import Interval
from amidkd.record import RunFolder, write_atomic, write_json, write_json_lines
from amidkd.report import report_on
from sweep_world import grid_sweep

NLL = Estimate(0.334, (StandardError("prompts", 0.021, 200),), Interval(0.293, 0.377, 0.95))
MATCH = Estimate(0.38, (StandardError("prompts", 0.03, 200), StandardError("sampling seeds", 0.006, 5)))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    config = parse({"student": "s", "teacher": "t", "data": {"train": "d"}, "output": str(folder.path)})
    write_atomic(folder.run_file, dump_yaml(config))
    side = {"metrics": {"nll": NLL.to_json(), "exact_match_sampled": MATCH.to_json()}}
    infinite = {"metrics": {"nll": Estimate(float("inf")).to_json()}}
    entry = {
        "data": {"file": "valid.jsonl", "rows": 200, "rows_dropped": 3},
        "settings": {"temperature": 1.0, "sampling_seeds": [10], "max_new_tokens": 32},
        "student": side,
        "teacher": infinite,
        "missing": ["a thing: a reason | with a bar"],
    }
    ended = {"programs": 4, "passed": 1, "stopped_by": {"time": 3}}
    entry["code"] = {"guards": {}, "student": ended}
    suite = {"dolly": {**entry, "data": {"file": "dolly.jsonl", "rows": 50}}}
    record = {
        "verb": "distill",
        "config": config.model_dump(mode="json"),
        "versions": {"torch": "2.99"},
        "models": {"student": {"parameters": 107072}, "teacher": {"parameters": 816768}},
        "stages": {"distill": {"steps": 20, "seconds": 2.0}},
        "results": {"evaluation": {**entry, "suite": suite}},
    }
    write_json(folder.record_file, record)
    write_json_lines(folder.samples_file, [{"prompt": "p", "references": [], "answers": {"student, greedy": "x"}}])
    return folder


def test_markdown_holds_every_number_with_its_errors(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder.path), "--format", "md"]) == 0
    path = folder.path / "report.md"
    assert capsys.readouterr().out == f"Report: {path}\n"
    text = path.read_text()
    assert "| NLL of real text (nats a token, lower is better) | 0.334 (0.293 to 0.377) | ∞ |" in text
    assert "38.0 % (± 3.0 prompts; ± 0.6 sampling seeds)" in text
    assert "Not measured: a thing: a reason | with a bar" in text
    for words in ("# run\n", "A student of 107 k parameters", "### dolly", "| distill | 20 | 2.0 s |", "lam: 0.1"):
        assert words in text
    assert "\n## More tests\n\n- Code: 1 of the student's 4 programs pass; the others stopped by time (3)\n" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for first, second in pairwise(tables):
        if second.startswith("| ---"):
            assert first.replace("\\|", "").count("|") == second.count("|")


def test_json_is_the_record_with_its_samples(folder: RunFolder) -> None:
    found = json.loads(report_on(folder.path, "json").read_text())
    assert (found["kind"], found["name"]) == ("run", "run")
    assert found["record"] == folder.record()
    assert found["samples"][0]["prompt"] == "p"
    assert Estimate.from_json(found["record"]["results"]["evaluation"]["student"]["metrics"]["nll"]) == NLL


def test_a_run_without_an_evaluation_says_so(folder: RunFolder) -> None:
    write_json(folder.record_file, {**folder.record(), "results": {}})
    assert "This run has not been evaluated: amidkd eval" in report_on(folder.path, "md").read_text()


def test_a_sweep_has_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = grid_sweep(tmp_path / "sweep")
    sweep = json.loads((folder / "sweep.json").read_text())
    for form in ("html", "md", "json"):
        assert main(["report", str(folder), "--format", form]) == 0
        assert f"report.{form}" in capsys.readouterr().out
    text, found = ((folder / f"report.{form}").read_text() for form in ("md", "json"))
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.split("|")[1].strip().isdigit()]
    assert len(rows) == len(sweep["trials"])
    assert json.loads(found)["sweep"] == sweep
    assert json.loads(found)["sentence"] in text


def test_what_is_neither_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingError, match=r"holds no record\.json"):
        report_on(tmp_path, "md")
    assert main(["report"]) == 2
    assert "name the folder of a run or a sweep" in capsys.readouterr().err


def test_a_folder_that_was_moved_is_reported_where_it_is(folder: RunFolder, tmp_path: Path) -> None:
    folder.path.rename(tmp_path / "elsewhere")
    assert main(["report", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "report.html").is_file()
    assert not folder.path.exists()
