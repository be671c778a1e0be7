"""What is said of a run in each state that it can be in."""

from pathlib import Path

import pytest
from watched_folders import ELSEWHERE, GONE, age, begin, finish, log, trial, write_sweep

from amidkd.errors import SettingError
from amidkd.record import RunFolder, append_json_line, write_json_lines
from amidkd.watch.run import follow
from amidkd.watch.runs import RunFollower
from amidkd.watch.sweeps import SweepFollower


def test_a_run_that_has_not_begun_is_waited_for(tmp_path) -> None:
    follower = follow(tmp_path / "run")
    view = follower.look()
    assert view.state == "waiting"
    assert "not there yet" in view.sentence
    assert str(tmp_path / "run") in view.sentence
    (tmp_path / "run" / "generated").mkdir(parents=True)
    (tmp_path / "run" / "generated" / "shard-00000.parquet").touch()
    assert "1 shards are complete" in follower.look().sentence
    begin(tmp_path / "run" / "x")
    (tmp_path / "run" / "x").rename(tmp_path / "moved")
    for file in (tmp_path / "moved").iterdir():
        file.rename(tmp_path / "run" / file.name)
    view = follower.look()
    assert (view.state, view.sentence) == ("running", "Under way before the first step.")
    assert view.bars[-1].text == "not begun"


def test_a_run_under_way(tmp_path) -> None:
    folder = begin(tmp_path / "run")
    follower = RunFollower(folder.path)
    log(folder.path / "warm_start", range(1, 21), total=20)
    folder.update_record(stages={"warm_start": {"steps": 20, "seconds": 10.0}})
    log(folder.path, range(1, 11), student_text=0.25, alpha=-0.5)
    view = follower.look()
    assert view.state == "running"
    # Half a second a step, thirty steps to go.
    assert view.sentence == "Under way (distill: step 10 of 40, about 15 s left)."
    assert [(bar.name, bar.text) for bar in view.bars] == [
        ("warm start", "20 steps in 10 s"),
        ("distill", "step 10 of 40, about 15 s left"),
    ]
    assert view.bars[1].share == 0.25
    readings = {reading.key: reading for reading in view.readings}
    assert readings["loss"].value == "1.213"
    assert readings["peak_memory_mb"].value == "321 MiB"
    assert (readings["tokens_per_second"].value, readings["tokens_per_second"].unit) == ("1.23 k", "tokens/s")
    assert (readings["student_text"].value, readings["student_text"].unit) == ("25", "%")
    assert readings["kl_teacher_student"].label == "KL(teacher‖student)"
    assert readings["alpha"].label == "α"
    assert len(readings["loss"].history) == 10
    assert {line["stage"] for line in view.lines} == {"warm_start", "distill"}
    assert "KL(teacher‖assistant), α = −0.5, λ = 0.1" in view.about
    # A step that no log line told of yet.
    log(folder.path, range(11, 12))
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 12, "lo')
    assert "step 11 of 40" in follower.look().sentence


def test_a_number_that_is_none_is_said(tmp_path) -> None:
    folder = begin(tmp_path / "run")
    log(folder.path, range(1, 4))
    append_json_line(folder.metrics_file, {"step": 4, "loss": None})
    reading = RunFollower(folder.path).look().readings[0]
    assert (reading.key, reading.value, len(reading.history)) == ("loss", "not a number", 3)


def test_a_killed_run_is_said_to_be_stopped_with_the_command_that_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = begin(tmp_path / "my run", process=GONE)
    log(folder.path, range(1, 11))
    age(folder.path, 90)
    view = RunFollower(folder.path).look()
    assert view.state == "stopped"
    assert "(distill: step 10 of 40): its process has ended" in view.sentence
    assert "Nothing was written for 1 min 3" in view.sentence
    assert view.command == "amidkd distill 'my run' training.resume_from_checkpoint=true"


@pytest.mark.parametrize(("seconds", "state"), [(5, "running"), (400, "silent")])
def test_a_run_on_another_machine_is_judged_by_what_it_writes(tmp_path, seconds, state) -> None:
    folder = begin(tmp_path / "run", process=ELSEWHERE)
    log(folder.path, range(1, 11))
    age(folder.path, seconds)
    view = RunFollower(folder.path).look()
    assert view.state == state
    assert ("another-machine" in view.sentence) == (state == "silent")


def test_a_process_that_lives_but_is_quiet_is_said(tmp_path) -> None:
    folder = begin(tmp_path / "run")
    log(folder.path, range(1, 11))
    age(folder.path, 300)
    view = RunFollower(folder.path).look()
    assert view.state == "running"
    assert "Nothing was written for 5 min" in view.sentence
    assert "its process runs" in view.sentence


def test_a_run_that_is_done(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = begin(tmp_path / "run", process=GONE)
    log(folder.path, range(1, 41))
    finish(folder)
    follower = RunFollower(folder.path)
    view = follower.look()
    assert (view.state, view.sentence) == ("done", "Done, in 20 s; not evaluated yet.")
    assert view.command == "amidkd eval run"
    write_json_lines(folder.samples_file, [{"prompt": "red", "references": [], "answers": {"student": "cat"}}])
    folder.update_record(results={"evaluation": {"student": {"metrics": {}}}})
    view = follower.look()
    assert view.command == "amidkd report run"
    assert view.samples[0]["prompt"] == "red"
    assert "A student of" in view.about


def test_the_measuring_after_training_is_seen(tmp_path) -> None:
    folder = begin(tmp_path / "run", evaluation={"after_training": True}, data={"train": "a", "validation": "b"})
    log(folder.path, range(1, 41))
    finish(folder)
    view = RunFollower(folder.path).look()
    assert (view.state, view.sentence) == ("running", "Trained; the student is being measured.")


def test_warnings_and_broken_files_are_shown(tmp_path) -> None:
    folder = begin(tmp_path / "run")
    folder.update_record(warnings=[{"at": "now", "text": "the first step can teach nothing"}])
    log(folder.path, range(1, 3))
    with folder.metrics_file.open("a") as file:
        file.write("no json\n")
    folder.run_file.write_text("objective: {alhpa: 1}\n")
    view = RunFollower(folder.path).look()
    assert any("did you mean 'alpha'" in text for text in view.warnings)
    assert any("the first step can teach nothing" in text for text in view.warnings)
    assert any("1 lines are not JSON" in text for text in view.warnings)
    assert view.bars[-1].total == 40


def test_stages_of_a_run_file(tmp_path) -> None:
    stages = [{"name": "first", "verb": "sft"}, {"name": "second", "training": {"max_steps": 8}}]
    whole = begin(tmp_path / "run", stages=stages)
    whole.record_file.unlink()
    first = RunFolder(tmp_path / "run" / "stages" / "first")
    first.path.mkdir(parents=True)
    process = begin(tmp_path / "other").record()["process"]
    first.update_record(verb="sft", started="now", finished=None, process=process)
    log(first.path, range(1, 5))
    view = RunFollower(whole.path).look()
    assert view.sentence == "Under way (first: sft: step 4 of 40, about 18 s left)."
    assert [(bar.name, bar.text) for bar in view.bars][1] == ("second: distill", "not begun")
    assert view.bars[1].total == 8


def test_a_run_file_leads_to_its_folder(tmp_path) -> None:
    folder = begin(tmp_path / "run")
    log(folder.path, range(1, 3))
    assert follow(folder.run_file).look().title == "run"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SettingError, match=r"notes\.txt is a file; give the folder"):
        follow(tmp_path / "notes.txt")


def test_a_sweep_with_a_trial_under_way(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    folder.mkdir()
    follower = follow(folder)
    assert follower.look().state == "waiting"
    metrics = {"nll": {"value": 0.5, "errors": [{"over": "prompts", "stderr": 0.01, "n": 100}]}}
    trials = [
        trial(0, "complete", -3.0, values={"nll": 0.5}, metrics=metrics, seconds=12.0, tokens=900),
        trial(1, "failed", -1.0, error="LossError: the loss is inf"),
        trial(2, "running", 1.0),
    ]
    write_sweep(folder, trials, best=[0])
    run = folder / "trials" / "0002" / "seed-42"
    run.parent.mkdir(parents=True)
    log(run, range(1, 11))
    view = follower.look()
    assert view.state == "running"
    assert view.sentence == "Under way. Trials: 1 done, 1 running, 1 failed."
    assert view.about == "Best so far: trial 0, NLL of real text 0.500 ± 0.010, with α = −3."
    assert [(bar.name, bar.text) for bar in view.bars] == [
        ("trials", "2 of 3"),
        ("trial 2, seed-42", "step 10 of 40, about 15 s left"),
    ]
    assert view.trials is not None
    assert view.trials.heads == ("trial", "state", "α", "NLL of real text", "time")
    assert view.trials.rows == (
        ("2", "running", "1", "–", "–"),
        ("1", "failed", "−1", "–", "–"),
        ("0", "done, best", "−3", "0.500 ± 0.010", "12 s"),
    )
    assert view.trials.values == {"NLL of real text": [(0, 0.5)]}
    assert "Trial 1 failed: LossError: the loss is inf" in view.warnings
    age(folder, 500)
    assert follower.look().state == "silent"
    write_sweep(folder, trials[:2], best=[0], stopped="every combination was tried")
    view = follower.look()
    assert view.state == "done"
    assert "every combination was tried" in view.sentence
    assert view.command == "amidkd report sweep"


def test_a_sweep_file_of_something_else_is_said(tmp_path) -> None:
    (tmp_path / "sweep.json").write_text('{"trials": 3}')
    view = SweepFollower(tmp_path).look()
    assert view.state == "waiting"
    assert "is not what amidkd sweep writes" in view.warnings[0]


def test_the_folder_that_is_watched_is_not_written(tmp_path) -> None:
    folder = begin(tmp_path / "run")
    log(folder.path, range(1, 11))
    before = {path: path.stat().st_mtime_ns for path in Path(folder.path).rglob("*")}
    follower = RunFollower(folder.path)
    for _ in range(3):
        follower.look()
    assert {path: path.stat().st_mtime_ns for path in Path(folder.path).rglob("*")} == before
