"""Opening and reading a cache: every mismatch is named, and what breaks later stops the run."""

import json
import threading

import pytest
from caching import opened, rows, settings, teacher, written
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from amidkd.config import CachedTeacher as CachedTeacherConfig
from amidkd.data import Example, collate
from amidkd.errors import SettingError, TeacherError
from amidkd.teachers import Teacher, make_teacher
from amidkd.teachers.cached import shards
from amidkd.teachers.cached.read import CacheReader
from tiny_world import make_model, make_tokenizer


@pytest.fixture
def folder(tmp_path):
    written(tmp_path / "teacher-cache", teacher(), settings())
    return tmp_path / "teacher-cache"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("teacher-cache")]


def test_it_is_made_like_any_teacher_and_its_thread_ends(folder) -> None:
    made = make_teacher(CachedTeacherConfig(top_k=4), student_tokenizer=make_tokenizer(), folder=folder.parent)
    assert isinstance(made, Teacher)
    assert not made.in_process
    made.expect([collate(rows()[:3], pad_id=0)])
    assert threads()
    made.close()
    assert not threads()


def test_no_cache(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"no cache in .*make it with `amidkd cache RUN`"):
        opened(tmp_path / "teacher-cache")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 3}, r"top_k \(teacher.top_k\): 4 there, 3 now"),
        ({"format": "hidden"}, r"format \(teacher.format\): 'top_k' there, 'hidden' now"),
    ],
)
def test_settings_of_the_run_file_must_be_the_caches(folder, fields, message) -> None:
    with pytest.raises(SettingError, match=message):
        opened(folder, **fields)


def test_a_teacher_that_is_here_must_be_the_caches(folder, tmp_path) -> None:
    make_model(width=16, layers=2, seed=4, padded_vocab=24).save_pretrained(tmp_path / "other")
    with pytest.raises(SettingError, match=r"teacher \(the teacher: its weights"):
        opened(folder, model=str(tmp_path / "other"))
    opened(folder, model="someone/on-the-hub").close()


def test_another_vocabulary(folder) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["purple"])
    # A student that knows more tokens shares the same ones.
    config = CachedTeacherConfig(top_k=4)
    make_teacher(config, student_tokenizer=tokenizer, folder=folder.parent).close()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["made_with"]["vocab_size"] -= 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SettingError, match=r"vocab_size \(the vocabulary shared with the student\): 16 there, 17 now"):
        opened(folder)


def test_another_tokenizer(folder) -> None:
    vocabulary = make_tokenizer().backend_tokenizer.to_str()
    swapped = vocabulary.replace('"red":5,"green":6', '"red":6,"green":5')
    assert swapped != vocabulary
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(swapped))
    with pytest.raises(SettingError, match="different tokenizers"):
        make_teacher(CachedTeacherConfig(top_k=4), student_tokenizer=other, folder=folder.parent)


def test_damage_is_seen_when_it_is_opened(folder) -> None:
    shard = folder / "shard-00003.parquet"
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(SettingError, match=r"shard-00003.parquet is missing, 1 of 5"):
        opened(folder)
    shard.write_bytes(whole[:100])
    with pytest.raises(SettingError, match="not a Parquet file"):
        opened(folder)
    shard.write_bytes((folder / "shard-00004.parquet").read_bytes())
    with pytest.raises(SettingError, match=r"holds 35 rows, and should hold 40"):
        opened(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(SettingError, match="not the manifest of a teacher cache"):
        opened(folder)


def test_a_missing_head(tmp_path) -> None:
    written(tmp_path / "cache", teacher(), settings("hidden"))
    (tmp_path / "cache" / "head.safetensors").unlink()
    with pytest.raises(SettingError, match="the head of the cache cannot be read"):
        opened(tmp_path / "cache", "hidden")


def test_rows_and_positions_that_are_not_there(folder) -> None:
    cached = opened(folder)
    known = rows()[1]
    strange = Example((*known.tokens, 9), (*known.targets, True), 33)
    for announced in (False, True):
        batch = collate([known, strange], pad_id=0)
        if announced:
            cached.expect([batch])
        with pytest.raises(SettingError, match=r"data row 33 is not in the cache.*\n.*amidkd cache RUN"):
            cached.signal(batch)
    gaps = rows()[3]
    more = Example(gaps.tokens, (False, *[True] * (len(gaps.tokens) - 1)), 3)
    with pytest.raises(SettingError, match=r"has data row 3, but not its token \d+"):
        cached.signal(collate([more], pad_id=0))
    assert cached.signal(collate([known], pad_id=0)).ids.shape == (known.token_count(), 4), "it still answers"
    cached.close()


def test_rows_are_checked_before_work_starts(folder) -> None:
    cached, places = opened(folder), [f"train.jsonl, line {row + 1}" for row in range(41)]
    same = {"prompt_template": "{prompt}"}
    cached.check(rows(), templates=same, places=places)
    more = [*rows(), Example((5, 6, 7), (False, True, True), 40)]
    with pytest.raises(
        SettingError, match=r"train.jsonl, line 41: the row, or a supervised token of it, is not in the cache"
    ):
        cached.check(more, templates=same, places=places)
    with pytest.raises(SettingError, match=r"prompt_template \(data.prompt_template\): '\{prompt\}' there, 'Q' now"):
        cached.check(more, templates={"prompt_template": "Q"}, places=places)
    cached.close()


def test_positions_are_checked_before_work_starts(folder) -> None:
    cached, gaps = opened(folder), rows()[3]
    more = Example(gaps.tokens, (False, *[True] * (len(gaps.tokens) - 1)), 3)
    with pytest.raises(SettingError, match=r"line 4: .*not in the cache"):
        cached.check([more], templates={}, places=[f"line {row + 1}" for row in range(4)])
    cached.close()


def test_a_file_that_cannot_be_read_any_more_stops_the_run(folder, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    cached, batch = opened(folder), collate(rows()[:4], pad_id=0)
    monkeypatch.setattr("amidkd.teachers.cached.read.read_rows", broken)
    with pytest.raises(TeacherError, match=r"shard-00000.parquet: cannot be read .*Input/output error"):
        cached.signal(batch)
    cached.expect([batch])
    with pytest.raises(TeacherError, match="cannot be read"):
        cached.signal(batch)
    cached.close()


def test_what_is_announced_is_read_once_and_before_it_is_asked_for(folder, monkeypatch) -> None:
    cached, examples, own, read = opened(folder), rows(), CacheReader.signal, []

    def noted(self, wanted):
        read.append((threading.current_thread().name, [each.row for each in wanted]))
        return own(self, wanted)

    monkeypatch.setattr(CacheReader, "signal", noted)
    batches = [collate(examples[start : start + 2], pad_id=0) for start in range(0, 40, 2)]
    cached.expect(batches[:3])
    cached.expect(batches[1:4])
    for batch in batches[1:4]:
        cached.signal(batch)
    asked = [row for name, rows_ in read for row in rows_ if row >= 2]
    assert sorted(asked) == list(range(2, 8)), "each once"
    assert all(name.startswith("teacher-cache") for name, _ in read)
    cached.signal(batches[9])
    assert read[-1] == (threading.current_thread().name, [18, 19]), "a wrong hint does no harm"
    cached.close()


def test_no_more_is_read_ahead_than_fits(folder) -> None:
    cached = opened(folder)
    cached.expect([collate([example], pad_id=0) for example in rows()])
    assert len(cached._under_way) == 16
    for example in rows():
        cached.signal(collate([example], pad_id=0))
        assert len(cached._under_way) <= 16
    assert not cached._under_way
    cached.close()


def test_few_files_are_open_at_once(folder, monkeypatch) -> None:
    monkeypatch.setattr("amidkd.teachers.cached.read._OPEN", 2)
    cached = opened(folder)
    wanted = opened(folder)
    for batch in (collate(rows()[start::11], pad_id=0) for start in range(11)):
        assert cached.signal(batch).ids.equal(wanted.signal(batch).ids)
        assert len(cached._reader._shards) <= 2
    cached.close()
    wanted.close()


def test_the_fingerprint_is_of_what_decides_the_cache(folder, tmp_path) -> None:
    written(tmp_path / "same", teacher(), settings(batch_size=3))
    written(tmp_path / "other", teacher(), settings(top_k=5))
    found = [opened(folder), opened(tmp_path / "same"), opened(tmp_path / "other", top_k=5)]
    first, same, other = (each.fingerprint() for each in found)
    assert first == same != other
    for each in found:
        each.close()


def test_a_file_of_other_columns(folder) -> None:
    layout = opened(folder).manifest.layout
    hidden = type(layout)("hidden", layout.vocab_size, width=8)
    with pytest.raises(SettingError, match="not a file of this cache"):
        shards.open_shard(folder / "shard-00000.parquet", hidden)
