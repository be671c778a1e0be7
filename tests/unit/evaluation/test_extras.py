"""Extras from the run file to the record: code, drafts, speed, a judge, a task of the harness; and what is refused."""

import json
from pathlib import Path

import pytest

from amidkd.config import parse
from amidkd.errors import SettingError, SettingWarning
from amidkd.evaluation import Estimate, evaluate_run, print_evaluation
from amidkd.evaluation.extra_lines import extra_lines
from amidkd.evaluation.scores import read_scores
from amidkd.record import RunFolder, read_json_lines, write_json_lines
from judge_world import judging, longer


@pytest.fixture
def run(world, saved_world: Path, tmp_path: Path):
    """A run file's tree and its folder: rows with tests that a third of all answers pass."""
    rows = [
        {"prompt": row.prompt, "completion": row.completion, "test": "pass" if place % 3 else "assert False"}
        for place, row in enumerate(world.rows)
    ]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    tree = {
        "student": {"model": str(saved_world / "student"), "dtype": "float32"},
        "teacher": {"model": str(saved_world / "teacher"), "dtype": "float32"},
        "data": {
            "train": str(tmp_path / "rows.jsonl"),
            "validation": str(tmp_path / "rows.jsonl"),
            "prompt_template": "<s> {prompt} <sep>",
        },
        "evaluation": {"sampling_seeds": [1, 2], "max_new_tokens": 6, "samples_kept": 4, "bootstrap": 100},
        "output": str(tmp_path / "run"),
    }
    return tree, RunFolder(tmp_path / "run")


def with_evaluation(tree: dict, **settings):
    return parse({**tree, "evaluation": {**tree["evaluation"], **settings}})


def test_all_of_them_end_in_the_record(run, capsys: pytest.CaptureFixture[str]) -> None:
    tree, folder = run
    settings = {"speculative": {"rows": 5, "draft_tokens": 2}, "code": {"k": [1, 2]}}
    with judging(longer) as (judge, seen):
        config = with_evaluation(tree, **settings, judge={"url": judge.url, "model": "judge-1", "rows": 6})
        with pytest.warns(SettingWarning, match="runs code that a model wrote"):
            evaluate_run(config, folder)
    entry = folder.record()["results"]["evaluation"]
    assert entry["missing"] == []
    metrics = entry["student"]["metrics"]
    assert {"acceptance_measured", "acceptance_predicted", "judge_win_rate", "pass_at_1", "pass_at_2"} <= set(metrics)
    assert "pass_at_1" in entry["teacher"]["metrics"]
    assert "pass_at_1" in entry["difference"]["metrics"]
    assert "judge_win_rate" not in entry["teacher"]["metrics"]

    # Words are no Python unless there is one alone, or none.
    lines = read_json_lines(folder.path / "code.jsonl")
    assert len(lines) == 2 * 2 * 11
    ours = [line for line in lines if line["side"] == "student"]
    share = sum(line["passed"] for line in ours) / len(ours)
    assert Estimate.from_json(metrics["pass_at_1"]).value == pytest.approx(share)
    assert entry["code"]["student"]["passed"] == sum(line["passed"] for line in ours)

    drafts = entry["speculative"]
    assert drafts["prompts"] == 5
    assert Estimate.from_json(metrics["acceptance_measured"]).value == drafts["accepted"] / drafts["judged"]
    judged = entry["judge"]
    assert judged["pairs"] == judged["wins"] + judged["ties"] + judged["losses"] == 6
    win_rate = (judged["wins"] + judged["ties"] / 2) / 6
    assert Estimate.from_json(metrics["judge_win_rate"]).value == pytest.approx(win_rate)
    assert len(read_json_lines(folder.path / "judge.jsonl")) == len(seen) - 1
    assert entry["speed"]["student"]["parameters"] == entry["student"]["parameters"]

    stored = read_scores(folder.scores_file)[""]
    assert stored.student["judge_win_rate"].counts.sum() == 6
    assert stored.student["acceptance_measured"].counts[5:].sum() == 0
    print_evaluation(entry)
    shown = capsys.readouterr().out
    for words in (
        "pass@2",
        "Wins before the judge",
        "As a draft, 2 tokens at a time",
        "Judge judge-1: ",
        "Speed: student",
    ):
        assert words in shown


def test_a_run_without_any_has_its_speed_alone(run) -> None:
    tree, folder = run
    entry = evaluate_run(with_evaluation(tree), folder)
    assert "speed" in entry
    assert not {"speculative", "code", "judge", "lm_eval"} & set(entry)
    assert not (folder.path / "code.jsonl").exists()
    assert len(extra_lines(entry)) == 1


def test_a_judge_that_stops_leaves_the_rest_of_the_evaluation(run) -> None:
    tree, folder = run
    left = iter(range(4))

    def dying(a: str, b: str, talk: list[dict]) -> str:
        if next(left, None) is None:
            raise ValueError("402 no credit left")
        return longer(a, b, talk)

    with judging(dying) as (judge, _):
        settings = {"url": judge.url, "model": "judge-1", "parallel": 1, "answers": "sampled", "against": "reference"}
        entry = evaluate_run(with_evaluation(tree, judge=settings), folder)
    assert "nll" in entry["student"]["metrics"]
    (gap,) = entry["missing"]
    assert "stopped answering" in gap
    assert "no credit left" in gap


def own_task(folder: Path) -> Path:
    """A task of one's own with its rows beside it, as the harness reads them."""
    folder.mkdir()
    rows = [{"q": "red cat", "choices": ["sits here", "sings there now"], "gold": int(n < 2)} for n in range(6)]
    write_json_lines(folder / "rows.jsonl", rows)
    (folder / "words.yaml").write_text(
        f"""task: words_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
    )
    return folder


def test_a_task_of_the_harness_offline(run, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    import torch

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tree, folder = run
    settings = {"tasks": ["words_choice"], "include_path": str(own_task(tmp_path / "tasks")), "batch_size": 4}
    entry = evaluate_run(with_evaluation(tree, lm_eval=settings), folder)
    found = entry["lm_eval"]["tasks"]["words_choice"]
    assert found["rows"] == 6
    metric = found["metrics"]["acc,none"]
    assert (metric["label"], metric["better"]) == ("acc", "higher")

    def likelihood(model, text: str) -> float:
        """Log-probability of a choice after the question, in the shared vocabulary of 17."""
        ids = world.tokenizer("red cat", add_special_tokens=False)["input_ids"]
        answer = world.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([ids + answer])).logits[0, :, :17].log_softmax(-1)
        return sum(float(logs[len(ids) - 1 + place, token]) for place, token in enumerate(answer))

    expected = {}
    for side, model in (("student", world.student), ("teacher", world.teacher)):
        first = likelihood(model, "sits here") > likelihood(model, "sings there now")
        # The first choice is the right one in four rows of six.
        expected[side] = 4 / 6 if first else 2 / 6
        assert Estimate.from_json(metric[side]).value == pytest.approx(expected[side])
    gap = expected["student"] - expected["teacher"]
    assert Estimate.from_json(metric["difference"]).value == pytest.approx(gap)
    shown = f"lm-eval words_choice, acc, 6 rows: student {expected['student']:.3f}"
    assert any(line.startswith(shown) for line in extra_lines(entry))
    json.dumps(entry, allow_nan=False)


def test_a_task_that_fails_while_it_runs_costs_nothing_else(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    tree, folder = run
    tasks = own_task(tmp_path / "tasks")
    # The harness looks at the first row when it loads a task; it is the last that cannot be asked.
    rows = read_json_lines(tasks / "rows.jsonl")
    write_json_lines(tasks / "rows.jsonl", [*rows, {**rows[0], "gold": 9}])
    task = (tasks / "words.yaml").read_text()
    (tasks / "words.yaml").write_text(task.replace("{{q}}", "{{ 1 / (gold - 9) }}"))
    entry = evaluate_run(with_evaluation(tree, lm_eval={"tasks": ["words_choice"], "include_path": str(tasks)}), folder)
    (gap,) = entry["missing"]
    assert gap.startswith("lm-eval: ZeroDivisionError")
    assert "nll" in entry["student"]["metrics"]


def test_tasks_that_are_not_there_are_refused_before_work(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    import lm_eval.tasks

    from amidkd.config import LmEvalConfig
    from amidkd.evaluation.lm_eval import Harness

    folder = own_task(tmp_path / "tasks")
    with pytest.raises(SettingError, match=r"include_path: .*there is no such folder"):
        Harness.ready(LmEvalConfig(tasks=["words_choice"], include_path=str(tmp_path / "nowhere")))
    task = (folder / "words.yaml").read_text()
    (folder / "words.yaml").write_text(task + "unsafe_code: true\n")
    with pytest.raises(SettingError, match="words_choice runs code that a model wrote, without a sandbox"):
        Harness.ready(LmEvalConfig(tasks=["words_choice"], include_path=str(folder)))
    (folder / "words.yaml").write_text(task)
    (folder / "rows.jsonl").unlink()
    with pytest.raises(SettingError, match="words_choice cannot be loaded"):
        Harness.ready(LmEvalConfig(tasks=["words_choice"], include_path=str(folder)))
    manager = lm_eval.tasks.TaskManager
    # The index of all tasks of the harness takes seconds to read.
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda **settings: manager(**{**settings, "include_defaults": False})
    )
    with pytest.raises(SettingError, match="no task 'words_choise'; did you mean words_choice"):
        Harness.ready(LmEvalConfig(tasks=["words_choise"], include_path=str(folder)))


@pytest.mark.parametrize(
    ("settings", "without_teacher", "message"),
    [
        ({"code": {"tests": "checks"}}, False, r"evaluation\.code\.tests: .*column `checks` must hold Python code"),
        ({"speculative": {}}, True, r"evaluation\.speculative: there is no teacher"),
        ({"judge": {"url": "http://127.0.0.1:9/v1", "model": "m"}}, True, r"evaluation\.judge\.against: teacher"),
        ({"judge": {"url": "no address", "model": "m"}}, False, r"evaluation\.judge\.url: 'no address' is no address"),
        (
            {"judge": {"url": "http://127.0.0.1:9/v1", "model": "m"}},
            False,
            r"evaluation\.judge\.url: .*does not answer",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    run, settings: dict, without_teacher: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amidkd import transport
    from amidkd.evaluation import run as evaluating

    monkeypatch.setattr(transport, "_LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(evaluating, "load_pair", lambda *_: pytest.fail("a model was loaded"))
    tree, folder = run
    tree = {**tree, "teacher": None, "objective": None} if without_teacher else tree
    with pytest.raises(SettingError, match=message):
        evaluate_run(with_evaluation({k: v for k, v in tree.items() if v is not None}, **settings), folder)


@pytest.mark.parametrize("k", [[6], [3], [0]])
def test_a_k_that_cannot_be_measured_is_refused(run, k: list[int]) -> None:
    with pytest.raises(SettingError, match="k"):
        with_evaluation(run[0], code={"k": k})
