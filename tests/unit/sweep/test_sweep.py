"""``amidkd sweep`` as a user has it: to its end, killed and resumed, with failures, with several workers."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from amidkd.cli import main
from amidkd.config import load, parse
from amidkd.record import read_json_lines
from amidkd.sweep.sharing import read_shared
from amidkd.sweep.trial import Shared

SCRIPT = Path(__file__).with_name("killed_sweep.py")
SHAPE = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64}


@pytest.fixture
def run_file(sweep_tree, tmp_path: Path) -> Any:
    def write(**sections: Any) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(sweep_tree(**sections)))
        return path

    return write


def found_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def numbers_of(found: dict[str, Any]) -> list[Any]:
    """What must not depend on kills: settings and metrics of each trial."""
    return [
        (trial["params"], {name: entry["value"] for name, entry in trial["metrics"].items()})
        for trial in found["trials"]
    ]


def test_a_sweep_killed_in_a_trial_goes_on_there_and_ends_as_if_nothing_had_happened(
    run_file, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = {"kind": "from_scratch", "model": None, "config": SHAPE, "warm_start": {"max_steps": 2}}
    del student["model"]
    tree = yaml.safe_load(run_file(data={"unlabelled": "teacher_answers"}).read_text())
    tree["student"] = student
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), "0001", "4"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    sweep = tmp_path / "sweep"
    before = found_in(sweep)
    assert [trial["state"] for trial in before["trials"]] == ["complete", "running"]
    assert list((sweep / "trials" / "0001" / "seed-42").glob("checkpoint-2"))
    lines = read_json_lines(sweep / "trials" / "0000" / "seed-42" / "metrics.jsonl")

    assert main(["sweep", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "Trial 1 goes on" in said
    assert "Trial 0 begins" not in said
    assert read_json_lines(sweep / "trials" / "0000" / "seed-42" / "metrics.jsonl") == lines, "it is not run again"

    assert main(["sweep", str(path), f"output={tmp_path / 'unbroken'}"]) == 0
    assert numbers_of(found_in(sweep)) == numbers_of(found_in(tmp_path / "unbroken"))
    assert found_in(sweep)["trials"][1]["resumed"] == 1
    _check_what_is_left(sweep)


def _check_what_is_left(sweep: Path) -> None:
    found = found_in(sweep)
    (best,) = found["best"]
    values = {trial["number"]: trial["values"]["nll"] for trial in found["trials"]}
    assert values[best] == min(values.values())
    config = load(sweep / "best.yaml")
    assert config.sweep is None
    assert config.objective.alpha == found["trials"][best]["params"]["objective.alpha"]
    assert (sweep / "report.html").is_file()
    students = {path.parents[1].name for path in sweep.glob("trials/*/seed-42/student")}
    assert students == {f"{best:04d}"}, "keep_students: best"
    assert (sweep / "trials" / "0000" / "seed-42" / "generated").is_symlink(), "the teacher's text is written once"
    assert (sweep / "trials" / "0001" / "seed-42" / "warm_start").is_symlink()


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(
    run_file, sweep_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students = [str(sweep_world / "nowhere"), str(sweep_world / "student")]
    path = run_file(sweep={"space": {"student.model": students}})
    assert main(["sweep", str(path)]) == 0
    found = found_in(tmp_path / "sweep")
    assert [trial["state"] for trial in found["trials"]] == ["failed", "complete"]
    assert "nowhere" in found["trials"][0]["error"]
    assert "Traceback" in (tmp_path / "sweep" / "trials" / "0000" / "error.txt").read_text()
    assert "Trial 0 failed" in capsys.readouterr().out


def test_the_same_failure_stops_the_sweep(run_file, sweep_world: Path, tmp_path: Path) -> None:
    students = [str(sweep_world / f"nowhere{number}") for number in range(4)]
    path = run_file(sweep={"space": {"student.model": students}, "same_failures": 2})
    assert main(["sweep", str(path)]) == 1
    found = found_in(tmp_path / "sweep")
    assert len(found["trials"]) == 2
    assert found["stopped"].startswith("the same failure came 2 times")


def test_two_workers_share_a_sweep(run_file, tmp_path: Path) -> None:
    path = run_file(sweep={"space": {"objective.alpha": [-3.0, -1.0, 0.0, 0.5]}, "workers": 2})
    assert main(["sweep", str(path)]) == 0
    found = found_in(tmp_path / "sweep")
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 4
    assert sorted(trial["params"]["objective.alpha"] for trial in found["trials"]) == [-3.0, -1.0, 0.0, 0.5]
    assert {path.name for path in (tmp_path / "sweep").glob("worker-*.log")} == {"worker-0.log", "worker-1.log"}


def test_a_cached_teacher_is_asked_once_for_all_trials(run_file, tmp_path: Path) -> None:
    teacher = {"kind": "cached", "format": "hidden"}
    assert main(["sweep", str(run_file(teacher=teacher, data={"unlabelled": "teacher_answers"}))]) == 0
    sweep = tmp_path / "sweep"
    assert [trial["state"] for trial in found_in(sweep)["trials"]] == ["complete"] * 2
    assert list(sweep.rglob("teacher-cache")) == [sweep / "teacher-cache"]
    assert str(sweep / "teacher-cache") in (sweep / "best.yaml").read_text()


def test_several_objectives_leave_a_front(run_file, tmp_path: Path) -> None:
    path = run_file(sweep={"objective": ["nll", "-nll"]})
    assert main(["sweep", str(path)]) == 2, "one metric twice"
    path = run_file(sweep={"objective": ["kl_teacher_student", "teacher_nll_of_samples"]})
    assert main(["sweep", str(path)]) == 0
    sweep = tmp_path / "sweep"
    best = found_in(sweep)["best"]
    assert {file.name for file in sweep.glob("best*.yaml")} == {f"best-{number}.yaml" for number in best}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sweep": None}, "no `sweep` section"),
        ({"sweep": {"space": {}}}, "an empty space"),
        ({"sweep": {"space": {"objective.alpha": {"low": 1, "high": 1}}}}, "an empty range"),
        ({"sweep": {"space": {"training.weight_decay": [1, 1.0]}}}, "choices given twice: 1.0"),
        ({"sweep": {"space": {"objective.alfa": [1, 2]}}}, "did you mean objective.alpha"),
        ({"teacher": None}, "objective.alpha has no effect without a teacher"),
        (
            {"teacher": None, "sweep": {"space": {"policy.kind": ["dataset", "on_policy"]}}},
            "policy.kind = on_policy: policy.kind: on_policy has the student learn from its own text",
        ),
        ({"sweep": {"objective": "bleu_greedy"}}, "add bleu to evaluation.metrics"),
        ({"sweep": {"pruner": "median"}, "data": {"validation": None}}, "nothing to evaluate on"),
        ({"sweep": {"space": {"data.max_rows": [8, 16]}}, "teacher": {"kind": "cached"}}, "teacher.kind: cached"),
    ],
)
def test_what_cannot_be_swept_is_one_message(
    run_file, capsys: pytest.CaptureFixture[str], sections: dict[str, Any], said: str
) -> None:
    assert main(["sweep", str(run_file(**sections))]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_where_nothing_was_made_has_nothing_in_common(tmp_path: Path) -> None:
    assert read_shared(tmp_path) == Shared()


def test_a_folder_with_a_run_in_it_is_left_alone(run_file, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "record.json").write_text("{}")
    assert main(["sweep", str(run_file())]) == 2
    assert "holds a run" in capsys.readouterr().err


def test_an_interrupt_leaves_the_trial_to_the_next_session(
    run_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from amidkd.sweep import work

    real = work.run_trial

    def interrupted(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    path = run_file()
    monkeypatch.setattr(work, "run_trial", interrupted)
    assert main(["sweep", str(path)]) == 130
    assert "To go on: amidkd sweep" in capsys.readouterr().out
    monkeypatch.setattr(work, "run_trial", real)
    assert main(["sweep", str(path)]) == 0
    assert [trial["state"] for trial in found_in(tmp_path / "sweep")["trials"]] == ["complete"] * 2


def test_the_resolved_run_file_of_a_sweep_is_read_back_as_it_was(run_file, tmp_path: Path) -> None:
    config = load(run_file())
    from amidkd.config import dump_yaml

    assert parse(yaml.safe_load(dump_yaml(config))) == config
