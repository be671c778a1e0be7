import pytest

from amidkd.errors import SettingError
from amidkd.record import RunFolder, read_json_lines, write_json_lines
from amidkd.training.checkpoint import (
    chosen_checkpoint,
    clear_leftovers,
    cut_metrics,
    keep_newest,
    new_checkpoint,
    read_state,
    write_state,
)


def make(folder, step, content="new") -> None:
    with new_checkpoint(folder, step, first=True, wait=lambda: None) as temporary:
        (temporary / f"checkpoint-{step}").mkdir()
        (temporary / f"checkpoint-{step}" / "weights").write_text(content)
        write_state(temporary / f"checkpoint-{step}", {"step": step})
        assert not [path for path in RunFolder(folder).checkpoints() if path.name.endswith(f"-{step}")]


def test_a_checkpoint_is_whole_or_not_there(tmp_path) -> None:
    def fail(folder) -> None:
        with new_checkpoint(folder, 6, first=True, wait=lambda: None) as temporary:
            (temporary / "checkpoint-6").mkdir()
            raise OSError("full")

    make(tmp_path, 3)
    with pytest.raises(OSError, match="full"):
        fail(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert read_state(tmp_path / "checkpoint-3") == {"step": 3}


def test_what_a_kill_leaves_is_cleared_and_never_chosen(tmp_path) -> None:
    for name in (".checkpoint-9.tmp", ".checkpoint-6.old"):
        (tmp_path / name / "checkpoint-9").mkdir(parents=True)
    assert chosen_checkpoint(tmp_path, True) is None
    make(tmp_path, 9)
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_steps_are_ordered_as_numbers(tmp_path) -> None:
    for step in (8, 9, 10, 100):
        make(tmp_path, step)
    assert chosen_checkpoint(tmp_path, True).name == "checkpoint-100"
    keep_newest(tmp_path, None)
    keep_newest(tmp_path, 2)
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["checkpoint-10", "checkpoint-100"]
    keep_newest(tmp_path, 0)
    assert not RunFolder(tmp_path).checkpoints()


def test_going_back_forgets_what_came_later(tmp_path) -> None:
    for step in (3, 6):
        make(tmp_path, step)
    write_json_lines(tmp_path / "metrics.jsonl", [{"step": step} for step in (2, 3, 4, 6)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    cut_metrics(tmp_path, 3)
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"step": 2}, {"step": 3}]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["checkpoint-3"]


def test_a_named_checkpoint_must_be_one_of_the_run(tmp_path) -> None:
    make(tmp_path / "run", 3)
    make(tmp_path / "other", 3)
    assert chosen_checkpoint(tmp_path / "run", False) is None
    named = tmp_path / "run" / "checkpoint-3"
    assert chosen_checkpoint(tmp_path / "run", str(named)) == named
    with pytest.raises(SettingError, match="it has: checkpoint-3"):
        chosen_checkpoint(tmp_path / "run", str(tmp_path / "other" / "checkpoint-3"))
    foreign = tmp_path / "checkpoint-5"
    foreign.mkdir()
    with pytest.raises(SettingError, match="is not a checkpoint of a run"):
        read_state(foreign)
