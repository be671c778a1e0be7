"""The run file's ``teacher``: its kinds, shorthands, paths and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from amidkd.config import (
    CachedTeacher,
    EnsembleTeacher,
    LiveTeacher,
    ServedTeacher,
    dump_yaml,
    live_teacher,
    load,
    parse,
    stage_configs,
    student_origin,
    tokenizer_source,
)
from amidkd.errors import SettingError

BASE: dict[str, Any] = {
    "student": {"kind": "pretrained", "model": "s"},
    "data": {"train": "rows.jsonl"},
    "output": "/tmp/out",
}


def teacher_of(section: Any) -> Any:
    return parse({**BASE, "teacher": section}).teacher


def test_a_teacher_without_a_kind_is_live() -> None:
    assert teacher_of({"model": "t"}) == LiveTeacher(model="t")
    assert teacher_of("t") == LiveTeacher(model="t")


def test_one_override_turns_a_live_teacher_into_a_cached_one(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, "teacher": {"model": "t", "dtype": "float32"}}))
    cached = load(path, ["teacher.kind=cached", "teacher.top_k=8"]).teacher
    assert cached == CachedTeacher(model="t", dtype="float32", top_k=8)
    assert live_teacher(cached) == LiveTeacher(model="t", dtype="float32")


def test_paths_in_a_list_of_teachers_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    teachers = [{"model": "models/a"}, {"kind": "cached", "folder": "./cache"}]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, "teacher": {"kind": "ensemble", "teachers": teachers}}))
    found = load(path).teacher
    assert isinstance(found, EnsembleTeacher)
    first, second = found.teachers
    assert isinstance(first, LiveTeacher)
    assert isinstance(second, CachedTeacher)
    assert first.model == str(tmp_path / "models" / "a")
    assert second.folder == str(tmp_path / "cache")


def test_every_kind_is_written_and_read_back(tmp_path: Path) -> None:
    members = [{"model": "t"}, {"kind": "served", "url": "http://h:1"}, {"kind": "cached", "folder": "/c"}]
    for section in (*members, {"kind": "ensemble", "teachers": members, "weights": [1, 2, 3]}):
        config = parse({**BASE, "teacher": section})
        assert parse(yaml.safe_load(dump_yaml(config))) == config


def test_which_model_can_be_loaded_here_and_whose_tokenizer_it_is() -> None:
    served = {"kind": "served", "model": "tokenizer"}
    assert live_teacher(teacher_of(served)) is None
    assert tokenizer_source(teacher_of(served)) == "tokenizer"
    both = teacher_of({"kind": "ensemble", "teachers": [served, {"model": "t"}]})
    assert live_teacher(both) == LiveTeacher(model="t")
    assert isinstance(teacher_of(served), ServedTeacher)


CHAIN: dict[str, Any] = {
    **BASE,
    "teacher": {"model": "t"},
    "stages": [
        {"name": "large", "student": {"kind": "from_scratch", "config": {"model_type": "llama"}}},
        {
            "name": "small",
            "student": {"kind": "pretrained", "model": "b"},
            "teacher": {"kind": "ensemble", "teachers": [{"model": "t"}, {"kind": "stage", "stage": "large"}]},
        },
        {"name": "again", "objective": {"alpha": 0}},
    ],
}


def test_a_stage_learns_from_an_earlier_stages_student() -> None:
    config = parse(CHAIN)
    first, second, third = stage_configs(config)
    assert first.student.kind == "from_scratch"
    assert second.student.model == "b"  # type: ignore[union-attr]
    assert isinstance(second.teacher, EnsembleTeacher)
    assert second.teacher.teachers[1] == LiveTeacher(model="/tmp/out/stages/large/student", name="large")
    # A stage that says nothing of its student goes on with the last one's.
    assert third.student.model == "/tmp/out/stages/small/student"  # type: ignore[union-attr]
    assert student_origin(config, Path("/tmp/out")) == second.student
    assert parse(yaml.safe_load(dump_yaml(config))) == config


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "cache", "model": "t"}, r"teacher: needs `kind:`, one of live, cached, served, stage, ensemble"),
        ({"modle": "t"}, r"teacher\.modle: unknown key; did you mean 'model'\?"),
        ({"kind": "served", "api": "vllm"}, r"name the folder or hub name of the tokenizer"),
        ({"kind": "served", "api": "vllm", "model": "m", "format": "hidden"}, r"log-probabilities alone"),
        ({"kind": "served", "served_name": "x"}, r"served_name has no effect"),
        ({"kind": "cached", "model": "t", "source": {}}, r"two ways to fill one cache"),
        ({"kind": "ensemble", "teachers": [{"model": "t"}]}, r"teacher\.teachers: .*at least 2"),
        ({"kind": "ensemble", "teachers": [{"model": "t"}] * 2, "weights": [1]}, r"1 numbers for 2 teachers"),
        ({"kind": "ensemble", "teachers": [{"model": "t"}] * 2, "weights": [0, 0]}, r"not all 0"),
        ({"kind": "ensemble", "teachers": [{"model": "t", "name": "a"}] * 2}, r"two teachers have one name"),
        (
            {"kind": "ensemble", "teachers": [{"model": "t"}] * 2, "weights": "by_row", "drop": 0.5},
            r"drop has no meaning",
        ),
    ],
)
def test_what_cannot_be_a_teacher(section: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        teacher_of(section)


def test_a_later_stage_is_no_teacher() -> None:
    wrong = {**CHAIN, "stages": [{"teacher": {"kind": "stage", "stage": "small"}}, *CHAIN["stages"]]}
    with pytest.raises(SettingError, match=r"stages\[1\]\.teacher\.stage: 'small' is no stage before this one"):
        parse(wrong)
