"""What a run says of itself for whoever watches: how far it is, which process it is, what it warned of."""

import json
import logging
import os
import warnings

import psutil
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from amidkd.config import parse
from amidkd.errors import SettingWarning
from amidkd.record import RunFolder, process_runs, this_process
from amidkd.training import distill
from amidkd.training.presence import Notices, Presence


def test_a_run_leaves_its_progress_and_its_process(run_tree) -> None:
    run_tree["training"] |= {"max_steps": 3, "logging_steps": 1}
    folder = distill(parse(run_tree))
    entry = json.loads(folder.progress_file.read_text())
    assert {"stage": "distill", "first": 0, "step": 3, "steps": 3}.items() <= entry.items()
    assert entry["since"] <= entry["updated"]
    process = folder.record()["process"]
    assert process["pid"] == os.getpid()
    assert process_runs(process) is True


def test_the_step_is_written_between_log_lines_but_not_at_each(tmp_path, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("amidkd.training.presence.time.monotonic", lambda: clock[0])
    presence, state = Presence(RunFolder(tmp_path), "distill"), TrainerState(max_steps=50, is_world_process_zero=True)
    arguments, control = TrainingArguments(output_dir=str(tmp_path)), TrainerControl()
    state.global_step = 10
    presence.on_train_begin(arguments, state, control)
    written = []
    for _ in range(20):
        state.global_step += 1
        clock[0] += 0.5
        presence.on_step_end(arguments, state, control)
        written.append(json.loads(RunFolder(tmp_path).progress_file.read_text())["step"])
    assert sorted(set(written)) == [10, 14, 18, 22, 26, 30]
    assert json.loads(RunFolder(tmp_path).progress_file.read_text())["first"] == 10
    # Another rank writes nothing.
    state.is_world_process_zero, state.global_step = False, 40
    presence.on_train_end(arguments, state, control)
    assert json.loads(RunFolder(tmp_path).progress_file.read_text())["step"] == 30


def test_warnings_are_in_the_record_also_those_from_before_it(run_tree, monkeypatch) -> None:
    # As the command line shows them.
    def show(message, *_, **__) -> None:
        logging.getLogger("amidkd").warning("warning: %s", message)

    monkeypatch.setattr(warnings, "showwarning", show)
    run_tree["training"]["max_steps"] = 2
    config = parse(run_tree)
    original = RunFolder.update_record

    def warn_late(self, **entries) -> dict:
        record = original(self, **entries)
        if "models" in entries:
            logging.getLogger("amidkd").warning("late")
        return record

    monkeypatch.setattr(RunFolder, "update_record", warn_late)
    monkeypatch.setattr(
        "amidkd.training.run.check_policy", lambda *_: warnings.warn("early", SettingWarning, stacklevel=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        folder = distill(config)
    assert [entry["text"] for entry in folder.record()["warnings"]][:1] == ["early"]
    assert "late" in [entry["text"] for entry in folder.record()["warnings"]]
    assert not any(isinstance(handler, Notices) for handler in logging.getLogger("amidkd").handlers)


def test_a_warning_that_comes_again_is_kept_once() -> None:
    kept: dict = {}
    with Notices() as notices:
        logging.getLogger("amidkd").warning("one")
        notices.keep(
            lambda **entries: kept.update(entries), [{"at": "then", "text": "one"}, {"at": "then", "text": "old"}]
        )
        logging.getLogger("amidkd").warning("one")
        logging.getLogger("amidkd").warning("warning: two")
        logging.getLogger("amidkd").info("no warning")
    logging.getLogger("amidkd").warning("too late")
    assert [entry["text"] for entry in kept["warnings"]] == ["old", "one", "two"]


@pytest.mark.parametrize(
    ("change", "lives"),
    [({}, True), ({"created": 5.0}, False), ({"pid": 2**22 + 1}, False), ({"host": "elsewhere"}, None)],
)
def test_a_process_is_known_by_host_number_and_start(change, lives) -> None:
    assert process_runs({**this_process(), **change}) is lives


def test_a_process_that_ended_and_was_not_waited_for_runs_no_more() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        found = psutil.Process(child)
        while found.status() != psutil.STATUS_ZOMBIE:
            pass
        assert process_runs({**this_process(), "pid": child, "created": found.create_time()}) is False
    finally:
        os.waitpid(child, 0)
