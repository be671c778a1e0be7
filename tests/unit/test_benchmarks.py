"""The benchmark's scripts run, and the rows of its tables carry numbers."""

import json
import math
import os
import re
import subprocess
import sys

import pytest


def run_script(repository, folder, *arguments: str) -> tuple[str, dict]:
    file = folder / "bench.json"
    command = [sys.executable, str(repository / "benchmarks" / "run.py"), "--quick", "--json", str(file), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(repository, tmp_path_factory) -> tuple[str, dict]:
    return run_script(repository, tmp_path_factory.mktemp("bench"), "--sections", "accuracy,loss")


@pytest.fixture(scope="module")
def writing(repository, tmp_path_factory) -> tuple[str, dict]:
    sections = ("--sections", "generate,on_policy", "--heaps", "default")
    return run_script(repository, tmp_path_factory.mktemp("writing"), *sections)


def rows_of(record: dict, section: str) -> list[dict]:
    return [row for row in record["rows"] if row["section"] == section]


def test_every_row_carries_numbers_or_says_why_not(run) -> None:
    for row in run[1]["rows"]:
        if row.get("missing"):
            # Peers are optional; this package is not.
            assert row["method"] in ("TRL GKD", "TRL chunked", "Liger"), row
            continue
        figures = [*row["rounds"], *row.get("figures", {}).values()]
        assert all(math.isfinite(figure) for figure in figures), row


@pytest.mark.parametrize("section", ["accuracy", "loss"])
def test_own_backends_and_peers_are_compared_in_every_group(run, section) -> None:
    record = run[1]
    auto = record["parts"][0]["auto"]
    groups: dict[tuple, set] = {}
    for row in rows_of(record, section):
        groups.setdefault((row["heap"], row["group"]), set()).add(row["method"])
    assert len({group for _, group in groups}) >= 9
    for methods in groups.values():
        assert auto in methods
        assert "chunked" in methods
        assert len(methods) > 1


def test_own_backends_are_accurate_where_the_textbook_form_has_no_digit_left(run) -> None:
    ordinary = [row for row in rows_of(run[1], "accuracy") if re.match("ordinary .* float32", row["group"])]
    ordinary = [row for row in ordinary if not row.get("missing")]
    assert ordinary
    assert all(max(row["figures"][name] for name in ("value error", "gradient error")) < 1e-4 for row in ordinary)
    near = {
        row["method"]: row["figures"] for row in rows_of(run[1], "accuracy") if row["group"] == "near alpha=-3 float32"
    }
    assert near["textbook"]["value error"] > 1
    assert near["textbook"]["smallest value"] < 0
    assert near["chunked"]["value error"] < 1e-3
    assert near["chunked"]["smallest value"] >= 0


def test_both_heaps_are_timed_round_by_round(run) -> None:
    timed = rows_of(run[1], "loss")
    assert {row["heap"] for row in timed} == {"default", "warm"}
    for row in timed:
        assert len(row.get("rounds", [0, 0])) >= 2, row
    assert all(seconds > 0 for row in timed for seconds in row.get("rounds", []))


def test_machine_comes_first_and_goals_last(run) -> None:
    text, record = run
    assert text.startswith("machine: ")
    for rate in ("in-place", "exp", "GEMM float32", "GEMM bfloat16"):
        assert re.search(rf"{rate} [\d.e+]+ G", text), rate
    assert "default heap" in text
    assert "warm heap" in text
    table = text.rpartition("== Goals")[2]
    for goal in record["goals"]:
        assert goal["goal"] in table
        given = "given logits / " in goal["goal"] or "torch path" in goal["goal"]
        if given and "TRL" not in goal["goal"]:
            assert goal["verdict"] in ("pass", "fail")
            assert goal["value"]["low"] <= goal["value"]["median"] <= goal["value"]["high"]
    assert record["versions"]["torch"]
    assert [part["heap"] for part in record["parts"]] == ["default", "warm"]


def test_writing_and_on_policy_training_have_numbers_or_say_why_not(writing, repository) -> None:
    text, record = writing
    for row in record["rows"]:
        if row.get("missing"):
            # TRL is optional, and so are the models beside the repository.
            absent = row["group"].startswith("stories") and "../shared" in row["missing"]
            assert row["method"].startswith("TRL ") or (absent and not (repository.parent / "shared").is_dir()), row
            continue
        assert all(seconds > 0 for seconds in row["rounds"])
        assert row["figures"]["tokens"] >= 16
        if row["section"] == "on_policy":
            assert 0 < row["figures"]["writing"] < 1
            assert re.search(rf"{re.escape(row['method'])} .* tokens/s; \d+% of it writing", text), row
    found = {(row["group"], row["method"]) for row in record["rows"]}
    assert {("made Llama, greedy", "amidkd"), ("made Llama", "amidkd"), ("made Llama", "amidkd, text for 4")} <= found


def test_goals_of_writing_are_judged(writing) -> None:
    goal = next(goal for goal in writing[1]["goals"] if goal["goal"].startswith("writing / ") and goal["value"])
    assert "default heap" in goal["goal"]
    assert goal["verdict"] in ("pass", "fail")


def test_answers_that_are_not_generates_own_are_no_comparison(repository, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from generate import check

    same = {"transformers generate": lambda: [[5, 6], [7, 8]], "amidkd": lambda: [[5, 6], [7, 8]]}
    check(same, answer=2, greedy=True)
    other = same | {"amidkd": lambda: [[5, 6], [7, 9]]}
    check(other, answer=2, greedy=False)
    with pytest.raises(RuntimeError, match="differ in 1 of 2"):
        check(other, answer=2, greedy=True)
    with pytest.raises(RuntimeError, match="not 3 tokens"):
        check(same, answer=3, greedy=False)
