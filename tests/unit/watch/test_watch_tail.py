"""Reading what another process is writing."""

import json
import os

from amidkd.record import append_json_line, write_atomic, write_json
from amidkd.watch.tail import JsonFile, Tail, age_of


def test_a_line_is_taken_when_its_end_is_there(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert not tail.read()
    append_json_line(path, {"step": 1, "note": "α"})
    assert tail.read()
    assert tail.rows == [{"step": 1, "note": "α"}]
    assert not tail.read()
    half = json.dumps({"step": 2, "note": "β"}, ensure_ascii=False).encode()
    for cut in range(1, len(half)):
        # Also in the middle of a letter of two bytes.
        with path.open("ab") as file:
            file.write(half[cut - 1 : cut])
        assert not tail.read()
    with path.open("ab") as file:
        file.write(half[-1:] + b"\n")
    assert tail.read()
    assert [row["step"] for row in tail.rows] == [1, 2]


def test_only_what_is_new_is_read(tmp_path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    for step in range(50):
        append_json_line(path, {"step": step})
    tail.read()
    loads = []
    monkeypatch.setattr(json, "loads", lambda text: loads.append(text) or {})
    append_json_line(path, {"step": 50})
    tail.read()
    assert loads == [b'{"step": 50}']


def test_a_file_that_was_cut_or_replaced_is_read_anew(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append_json_line(path, {"step": step})
    tail = Tail(path)
    tail.read()
    with path.open("r+b") as file:
        file.truncate(len('{"step": 1}\n') * 2)
    assert tail.read()
    assert [row["step"] for row in tail.rows] == [1, 2]
    # As a run that goes on rewrites it: another file of the same name, longer than what was read.
    write_atomic(path, "".join(f'{{"step": {step}, "again": true}}\n' for step in range(1, 10)))
    assert tail.read()
    assert [row["step"] for row in tail.rows] == list(range(1, 10))
    assert all(row["again"] for row in tail.rows)
    path.unlink()
    assert tail.read()
    assert tail.rows == []


def test_a_whole_line_that_is_not_json_is_counted(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n[1]\n{"step": 3}\n')
    tail = Tail(path)
    tail.read()
    assert [row["step"] for row in tail.rows] == [1, 3]
    assert tail.unreadable == 2


def test_a_json_file_is_taken_once_a_version(tmp_path) -> None:
    file = JsonFile(tmp_path / "record.json")
    assert not file.read()
    assert file.value == {}
    write_json(file.path, {"a": 1})
    assert file.read()
    assert file.value == {"a": 1}
    assert not file.read()
    write_json(file.path, {"a": 2})
    assert file.read()
    assert file.value == {"a": 2}
    file.path.write_text('{"a": ')
    assert not file.read()
    assert file.value == {"a": 2}
    file.path.unlink()
    assert file.read()
    assert file.value == {}


def test_age_is_that_of_the_newest(tmp_path) -> None:
    assert age_of([tmp_path / "none"]) is None
    for name, back in (("old", 500), ("new", 100)):
        path = tmp_path / name
        path.touch()
        os.utime(path, (path.stat().st_atime - back, path.stat().st_mtime - back))
    found = age_of([tmp_path / "old", tmp_path / "new", tmp_path / "none"])
    assert found is not None
    assert 99 < found < 130
