"""``amidkd cache`` and a run that learns from what it wrote."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from amidkd.config import RunConfig, parse
from amidkd.errors import SettingError
from amidkd.record import RunFolder, read_json_lines
from amidkd.teachers.cached import read_manifest
from amidkd.training import distill, run_cache

VOCABULARY = 258


@pytest.fixture
def tree(run_tree, world) -> dict[str, Any]:
    run_tree["teacher"] = {"model": str(world / "teacher")}
    run_tree["training"] |= {"max_steps": 4, "logging_steps": 1, "save_strategy": "no"}
    return run_tree


def changed(tree: dict[str, Any], **sections: Any) -> RunConfig:
    """The run with other settings in some sections."""
    merged = {name: {**tree[name], **value} if isinstance(value, dict) else value for name, value in sections.items()}
    return parse({**tree, **merged})


def losses(run: RunFolder) -> list[float]:
    return [line["loss"] for line in read_json_lines(run.metrics_file)]


@pytest.mark.parametrize("kept", [{"top_k": VOCABULARY}, {"format": "hidden"}], ids=["top_k", "hidden"])
def test_a_run_on_the_cache_is_the_run_on_the_live_teacher(tree, tmp_path, kept) -> None:
    cached = changed(tree, teacher={"kind": "cached", **kept})
    folder = run_cache(cached)
    assert folder == tmp_path / "run" / "teacher-cache"
    manifest = read_manifest(folder)
    assert (manifest.rows, manifest.complete) == (22, True)
    found = losses(distill(cached))
    wanted = losses(distill(changed(tree, output=str(tmp_path / "live"))))
    assert len(found) == 4
    assert found == pytest.approx(wanted, rel=1e-2)
    assert found[0] == pytest.approx(wanted[0], rel=2e-3)


def test_the_teacher_need_not_be_there_to_learn_from_its_cache(tree, tmp_path, world) -> None:
    gone = tmp_path / "teacher"
    shutil.copytree(world / "teacher", gone)
    cached = changed(tree, teacher={"kind": "cached", "model": str(gone), "folder": str(tmp_path / "kept")})
    assert run_cache(cached) == tmp_path / "kept"
    shutil.rmtree(gone)
    alone = {"kind": "cached", "folder": str(tmp_path / "kept")}
    run = distill(parse({**tree, "teacher": alone}))
    assert losses(run)[0] > 0
    assert (run.student / "tokenizer.json").is_file()


def test_a_live_teacher_is_cached_with_the_defaults_and_twice_is_once(tree) -> None:
    folder = run_cache(parse(tree))
    manifest = read_manifest(folder)
    assert (manifest.layout.format, manifest.layout.top_k) == ("top_k", 64)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run_cache(parse(tree)) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert losses(distill(changed(tree, teacher={"kind": "cached"})))


def test_rows_without_a_completion_are_answered_before(tree, tmp_path, world) -> None:
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    for row in rows[:10]:
        del row["completion"]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree["data"]["train"] = str(tmp_path / "some.jsonl")
    folder = run_cache(parse(tree))
    assert (tmp_path / "run" / "generated" / "manifest.json").is_file()
    assert read_manifest(folder).rows == 22
    run = distill(changed(tree, teacher={"kind": "cached"}))
    assert run.record()["data"]["answered by the teacher"] == 10


def test_other_rows_than_the_caches_stop_a_run_before_it_starts(tree, tmp_path, world) -> None:
    run_cache(changed(tree, teacher={"kind": "cached"}))
    more = {"prompt": "what?", "completion": "that"}
    (tmp_path / "more.jsonl").write_text((world / "train.jsonl").read_text() + json.dumps(more) + "\n")
    other = changed(tree, teacher={"kind": "cached"}, data={"train": str(tmp_path / "more.jsonl")})
    with pytest.raises(SettingError, match=r"more.jsonl, line 23: .*not in the cache"):
        distill(other)
    with pytest.raises(SettingError, match=r"data \(the rows of data.train.*\n.*another teacher.folder"):
        run_cache(other)
    with pytest.raises(SettingError, match=r"prompt_template \(data.prompt_template\)"):
        distill(changed(tree, teacher={"kind": "cached"}, data={"prompt_template": "Q: {prompt} A: "}))
    fewer = changed(tree, teacher={"kind": "cached"}, data={"validation_rows": 5})
    assert losses(distill(fewer)), "a part of the rows is there"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": None, "student": "somewhere"}, "needs a `teacher` section"),
        ({"teacher": {"kind": "cached", "folder": "x"}}, "a `model`, or of a server in `source`"),
        ({"teacher": {"model": "x", "alignment": "text"}}, "teacher.alignment: text"),
        ({"teacher": {"kind": "ensemble", "teachers": [{"model": "x"}, {"model": "y"}]}}, "ensemble cannot be one"),
        ({"policy": {"kind": "on_policy"}}, r"policy.kind: on_policy: .*no cache can know that text"),
        ({"policy": {"kind": "mixed"}}, "policy.kind: mixed"),
        ({"policy": {"kind": "adaptive"}}, "policy.kind: adaptive"),
    ],
)
def test_what_cannot_be_cached(tree, tmp_path, sections, message) -> None:
    with pytest.raises(SettingError, match=message):
        run_cache(parse({**tree, **sections}))
    assert not (tmp_path / "run").exists()


def test_stages_are_not_cached_as_one(tree) -> None:
    stages = [{"name": "first", "training": {"max_steps": 1}}, {"name": "second"}]
    with pytest.raises(SettingError, match="without `stages`"):
        run_cache(parse({**tree, "stages": stages}))


def test_a_full_disk_is_seen_before(tree, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("amidkd.training.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=5000))
    with pytest.raises(SettingError, match=r"takes up to .* kB, and 5.0 kB are free.*smaller teacher.top_k"):
        run_cache(parse(tree))
    assert not (tmp_path / "run" / "teacher-cache").exists()
