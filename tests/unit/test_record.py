"""What a run leaves behind survives a kill and a full disk."""

import json
from pathlib import Path

import pytest

from amidkd.errors import SettingError
from amidkd.record import (
    RunFolder,
    append_json_line,
    atomic_folder,
    read_json_lines,
    versions,
    write_atomic,
    write_json,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "x" * 100)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_numbers_that_are_not_json_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert not (tmp_path / "record.json").exists()


def test_folder_appears_whole_or_not_at_all(tmp_path) -> None:
    target = tmp_path / "student"

    def fill(text: str, fail: bool) -> None:
        with atomic_folder(target) as folder:
            (folder / "weights").write_text(text)
            if fail:
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill("half", fail=True)
    assert not target.exists()
    fill("first", fail=False)
    with pytest.raises(OSError, match="No space"):
        fill("half", fail=True)
    assert (target / "weights").read_text() == "first"
    fill("second", fail=False)
    assert (target / "weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_last_line_cut_by_a_kill_is_left_out_and_another_is_an_error(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})
    append_json_line(path, {"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{broken}\n{"step": 3}\n')
    with pytest.raises(SettingError, match=r"metrics\.jsonl, line 2"):
        read_json_lines(path)


def test_half_written_checkpoints_are_not_checkpoints(tmp_path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", ".checkpoint-11.tmp", "checkpoint-best"):
        (tmp_path / name).mkdir()
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["checkpoint-9", "checkpoint-10"]


def test_record_merges_one_level(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    folder.update_record(results={"a": 1}, seeds=[1])
    folder.update_record(results={"b": 2}, seeds=[2])
    assert folder.record() == {"results": {"a": 1, "b": 2}, "seeds": [2]}


def test_versions_name_what_decides_the_numbers() -> None:
    assert {"python", "torch", "transformers", "amidkd"} <= set(versions())


def test_relative_paths_are_kept(tmp_path) -> None:
    assert RunFolder(Path("a")).student == Path("a/student")
