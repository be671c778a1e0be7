"""Writing a cache: killed and begun again, shared by processes, and refused where it would be mixed with another."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from caching import SHARD_ROWS, contents, opened, planned, rows, settings, teacher, written

from amidkd.data import Example
from amidkd.errors import SettingError, TeacherError
from amidkd.signals import Logits, TopK
from amidkd.teachers.cached import entries_of, plan_cache, read_manifest, write_cache

SCRIPT = Path(__file__).with_name("caching.py")


def process(*words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, bytes]:
    """A cache written in one go."""
    folder = tmp_path_factory.mktemp("reference") / "cache"
    written(folder, teacher(), settings())
    return contents(folder)


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path, reference) -> None:
    folder = tmp_path / "cache"
    killed = process(0, 1, folder, 2)
    _, said = killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL, said
    names = sorted(path.name for path in folder.iterdir())
    assert [name for name in names if name.endswith(".parquet")] == ["shard-00000.parquet", "shard-00001.parquet"]
    assert ".shard-00002.parquet.tmp" in names, "the file under way has no name yet"
    assert not read_manifest(folder).complete
    with pytest.raises(SettingError, match=r"not complete.*amidkd cache RUN"):
        opened(folder)
    kept = (folder / "shard-00001.parquet").stat().st_mtime_ns
    reported = []
    written(folder, teacher(), settings(), progress=lambda *each: reported.append(each))
    assert contents(folder) == reference
    assert (folder / "shard-00001.parquet").stat().st_mtime_ns == kept, "a file that is there is not written again"
    assert sum(each[0] for each in reported) == 40
    assert [each for each in reported if each[1] == 0] == [(SHARD_ROWS, 0, 0)] * 2


def test_two_processes_write_the_bytes_of_one(tmp_path, reference) -> None:
    folder = tmp_path / "cache"
    other = process(1, 2, folder)
    asked = []
    live = teacher()
    own = live.signal
    live.signal = lambda sequences: asked.append(len(sequences.rows_B)) or own(sequences)
    manifest = written(folder, live, settings(), rank=0, world=2)
    _, said = other.communicate(timeout=100)
    assert other.returncode == 0, said
    assert manifest.complete
    assert contents(folder) == reference
    # The probe, then files 0, 2 and 4 of five.
    assert sum(asked) == 1 + 2 * SHARD_ROWS + (40 - 4 * SHARD_ROWS)


def test_what_is_on_disk(tmp_path) -> None:
    folder = tmp_path / "cache"
    plan = planned(live := teacher(), made := settings(top_k=3))
    manifest = write_cache(plan, teacher=live, settings=made, folder=folder)
    examples = rows()
    tokens = sum(example.token_count() for example in examples)
    assert (manifest.rows, manifest.tokens, manifest.shards) == (40, tokens, 5)
    table = pyarrow.parquet.read_table(folder / "shard-00000.parquet")
    assert table.column_names == ["key", "length", "supervised", "ids", "log_probs", "log_tail"]
    assert table.num_rows == SHARD_ROWS
    assert table["length"].to_pylist() == [len(example.tokens) for example in examples[:SHARD_ROWS]], "in order"
    counts = [example.token_count() for example in examples[:SHARD_ROWS]]
    for name, size in (("ids", 2 * 3), ("log_probs", 2 * 3), ("log_tail", 4)):
        assert [len(value) for value in table[name].to_pylist()] == [size * count for count in counts]
    assert plan.layout.token_bytes == 2 * 3 + 2 * 3 + 4
    fields = json.loads((folder / "manifest.json").read_text())
    assert set(fields["made_with"]) == {
        *("teacher", "tokenizer", "prompt_template", "data", "vocab_size", "temperature", "format", "top_k", "storage")
    }
    assert fields["made_with"]["storage"] == {"ids": "uint16", "log_probs": "float16", "log_tail": "float32"}
    assert "amidkd" in fields["information"]["versions"]


def test_the_size_that_is_told_before_is_about_right(tmp_path) -> None:
    for format in ("top_k", "hidden"):
        plan = planned(live := teacher(), made := replace(settings(format, 8), shard_rows=1000), rows(400))
        write_cache(plan, teacher=live, settings=made, folder=tmp_path / format)
        data = [path for path in (tmp_path / format).iterdir() if path.suffix in (".parquet", ".safetensors")]
        size = sum(path.stat().st_size for path in data)
        assert 0.5 * plan.size < size < 1.05 * plan.size


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        (lambda: (teacher(), settings(top_k=3)), r"top_k \(teacher.top_k\): 4 there, 3 now"),
        (lambda: (teacher(), settings("hidden")), r"format \(teacher.format\): 'top_k' there, 'hidden' now"),
        (lambda: (teacher(), settings(template="> {prompt}")), r"prompt_template \(data.prompt_template\)"),
        (lambda: (other_teacher(), settings()), r"teacher \(the teacher: its weights"),
    ],
    ids=["top_k", "format", "template", "teacher"],
)
def test_a_cache_of_other_settings_is_not_gone_on_with(tmp_path, changed, field) -> None:
    folder = tmp_path / "cache"
    written(folder, teacher(), settings(), rows(12))
    before = contents(folder)
    with pytest.raises(SettingError, match=field):
        written(folder, *changed(), rows(12))
    assert contents(folder) == before


def other_teacher():
    live = teacher()
    live.model.lm_head.weight.data[0, 0] += 1
    return live


def test_a_cache_of_other_rows_is_not_gone_on_with(tmp_path) -> None:
    written(tmp_path / "cache", teacher(), settings(), rows(12))
    with pytest.raises(SettingError, match=r"data \(the rows of data.train"):
        written(tmp_path / "cache", teacher(), settings(), rows(13))


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingError, match="holds something else"):
        written(tmp_path, teacher(), settings(), rows(3))
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_nothing_supervised_is_nothing_to_cache() -> None:
    entries = entries_of([Example((5, 6), (False, False), 0)])
    assert entries == []
    with pytest.raises(SettingError, match="nothing to cache"):
        plan_cache(entries, teacher=teacher(), settings=settings())


def saying(change):
    live = teacher()
    own = live.signal
    live.signal = lambda sequences: change(own(sequences))
    return live


def test_a_teacher_that_cannot_say_what_the_format_needs() -> None:
    logits = saying(lambda said: Logits(said.states @ said.weight.T))
    with pytest.raises(SettingError, match=r"format: hidden needs hidden states.*use top_k"):
        planned(logits, settings("hidden"))
    few = saying(lambda said: TopK(*(Logits(said.states @ said.weight.T).logits.topk(2)[::-1])))
    with pytest.raises(SettingError, match=r"teacher.top_k: 4, but the server gives 2"):
        planned(few, settings())


def test_signals_of_other_tokens_are_never_stored(tmp_path) -> None:
    live = teacher()
    plan, own = planned(live, settings()), live.signal
    live.signal = lambda sequences: replace(said := own(sequences), states=said.states[1:])
    with pytest.raises(TeacherError, match="supervised tokens"):
        write_cache(plan, teacher=live, settings=settings(), folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.parquet*"))
