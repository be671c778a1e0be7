"""Files become rows, or one message that names file and line."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from amidkd.data import Row, choose_labels, load_rows
from amidkd.errors import SettingError, SettingWarning

ROWS = [
    {"prompt": "a", "completion": "b"},
    {"prompt": "c", "completion": None, "task": "x"},
    {"prompt": "d", "completion": "e", "references": ["e", "f"]},
]


def write_lines(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(rows):
    return [(row.prompt, row.completion, row.references) for row in rows]


EXPECTED = [("a", "b", ()), ("c", None, ()), ("d", "e", ("e", "f"))]


def test_jsonl(tmp_path) -> None:
    rows = load_rows(write_lines(tmp_path / "rows.jsonl"))
    assert contents(rows) == EXPECTED
    assert [row.where for row in rows] == ["rows.jsonl, line 1", "rows.jsonl, line 2", "rows.jsonl, line 3"]
    assert [row.index for row in rows] == [0, 1, 2]
    assert [row.labelled for row in rows] == [True, False, True]


def test_parquet_reads_as_jsonl_does(tmp_path) -> None:
    path = tmp_path / "rows.parquet"
    columns = {name: [row.get(name) for row in ROWS] for name in ("prompt", "completion", "references", "task")}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert contents(load_rows(path)) == EXPECTED


def test_json_list_wrapped_list_and_lines_in_disguise(tmp_path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    write_lines(tmp_path / "lines.json")
    for name in ("list.json", "wrapped.json", "lines.json"):
        assert contents(load_rows(tmp_path / name)) == EXPECTED, name


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a"}\n\n  \n{"prompt": "b"}')
    assert [(row.prompt, row.where) for row in load_rows(path)] == [
        ("a", "rows.jsonl, line 1"),
        ("b", "rows.jsonl, line 4"),
    ]


def test_folder_reads_its_files_in_order(tmp_path) -> None:
    write_lines(tmp_path / "part-1.jsonl", [{"prompt": "second"}])
    write_lines(tmp_path / "part-0.jsonl", [{"prompt": "first"}])
    write_lines(tmp_path / ".hidden.jsonl", [{"prompt": "hidden"}])
    (tmp_path / "notes.md").write_text("no rows")
    rows = load_rows(tmp_path)
    assert [row.prompt for row in rows] == ["first", "second"]
    assert [row.index for row in rows] == [0, 1]
    assert rows[1].where == "part-1.jsonl, line 1"


def test_folder_of_several_splits_never_mixes_them(tmp_path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    assert [row.prompt[:5] for row in load_rows(tmp_path, split="train")] == ["train", "train"]
    assert [row.prompt[:4] for row in load_rows(tmp_path, split="test")] == ["test"]
    with pytest.raises(SettingError, match=r"splits test, train, none of split 'validation'"):
        load_rows(tmp_path, split="validation")


def test_folder_with_dev_serves_validation(tmp_path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"prompt": "t"}])
    write_lines(tmp_path / "dev.jsonl", [{"prompt": "d"}])
    assert [row.prompt for row in load_rows(tmp_path, split="validation")] == ["d"]


def test_folder_that_datasets_saved(tmp_path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS[:1]), test=Dataset.from_list(ROWS[2:])).save_to_disk(tmp_path / "saved")
    assert [row.prompt for row in load_rows(tmp_path / "saved", split="test")] == ["d"]
    with pytest.raises(SettingError, match="no split 'dev'; it has train, test"):
        load_rows(tmp_path / "saved", split="dev")


def test_max_rows_stops_before_a_later_broken_line(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{broken\n')
    assert len(load_rows(path, max_rows=2)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', r"rows\.jsonl, line 2: not JSON"),
        ("[1, 2]", r"line 2: a row must be a mapping"),
        ('{"prompt": 3}', r"line 2: `prompt` must be text; got 3"),
        ('{"prompt": "a", "completion": ["b"]}', r"line 2: `completion` must be text"),
        ('{"prompt": [{"role": "user", "content": "a"}]}', r"line 2: .* into `messages`"),
        ('{"prompt": "a", "references": [1]}', r"line 2: `references` must be a list of texts"),
        ('{"prompt": null}', r"line 2: `prompt` is null"),
        ('{"messages": "hello"}', r"line 2: `messages` must be a list"),
        ('{"messages": []}', r"line 2: `messages` must be a list"),
        ('{"messages": [{"role": "user"}]}', r"line 2: message 1: `content` must be text"),
        ('{"messages": [{"from": "human", "value": "a"}]}', r"line 2: message 1 .*rename `from` to `role`"),
        (
            '{"instruction": "a", "output": "b"}',
            r"columns found: `instruction`, `output`; accepted: .*`prompt`.*rename `instruction` to `prompt` and "
            r"`output` to `completion`",
        ),
        (
            '{"question": "a", "answer": "b"}',
            r"rename `question` to `prompt` and `answer` to `completion`",
        ),
        ('{"conversations": []}', r"rename `conversations` to `messages`"),
    ],
)
def test_a_row_that_cannot_be_used_names_file_and_line(tmp_path, line, message) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(SettingError, match=message) as caught:
        load_rows(path)
    assert f"{path}, line 2" in str(caught.value)


def test_bytes_that_are_no_text_name_the_line(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(SettingError, match="line 2: not UTF-8"):
        load_rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_nothing_there(tmp_path, name) -> None:
    path = tmp_path / name
    with pytest.raises(SettingError, match="no such file or folder"):
        load_rows(path)
    with pytest.raises(SettingError, match="no file of rows there"):
        load_rows(tmp_path)
    path.write_text("[]" if name.endswith(".json") else "")
    with pytest.raises(SettingError, match=r"no rows there|not a Parquet file"):
        load_rows(path)


def test_a_file_of_another_kind_says_what_is_read(tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n")
    with pytest.raises(SettingError, match=r"\.jsonl.*this is \.csv"):
        load_rows(path)


def test_a_hub_name_without_a_network_is_explained(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SettingError, match=r"'nobody/nothing-here', split 'train'.*online\?"):
        load_rows("nobody/nothing-here")


def test_conversation_and_text_rows(tmp_path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    # ultrachat has both columns; the conversation says more.
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "messages": talk}, {"text": "story"}])
    first, second = load_rows(path)
    assert first.messages == talk
    assert first.prompt is None
    assert first.labelled
    assert first.answer == "b"
    assert not first.unlabelled().labelled
    assert first.unlabelled().messages == talk[:1]
    assert second.text == "story"


def test_parquet_conversations_lose_the_nulls_that_the_format_fills_in(tmp_path) -> None:
    call = [{"function": {"name": "f"}}]
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "1"},
    ]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": talk}]), path)
    messages = load_rows(path)[0].messages
    assert messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "1"},
    ]


def test_a_completion_under_another_name_is_noticed(tmp_path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}])
    with pytest.warns(SettingWarning, match="its column `response` is the completion"):
        assert not load_rows(path)[0].labelled


def labelled_rows(count: int) -> list[Row]:
    return [Row(index=i, where=f"line {i}", prompt=f"p{i % 37}", completion=f"c{i % 37}") for i in range(count)]


def test_label_fraction_is_exact_seeded_and_stable_under_order() -> None:
    rows = labelled_rows(200)
    kept = choose_labels(rows, fraction=0.05, seed=0)
    assert sum(row.labelled for row in kept) == 10
    assert [row.prompt for row in kept] == [row.prompt for row in rows]
    assert kept == choose_labels(rows, fraction=0.05, seed=0)
    assert kept != choose_labels(rows, fraction=0.05, seed=1)
    back = choose_labels(rows[::-1], fraction=0.05, seed=0)
    assert sorted(r.prompt for r in back if r.labelled) == sorted(r.prompt for r in kept if r.labelled)


def test_a_smaller_fraction_is_part_of_a_larger_one() -> None:
    rows = labelled_rows(100)
    small = {row.index for row in choose_labels(rows, fraction=0.1, seed=3) if row.labelled}
    large = {row.index for row in choose_labels(rows, fraction=0.4, seed=3) if row.labelled}
    assert len(small) == 10
    assert len(large) == 40
    assert small < large


def test_label_fraction_counts_labelled_rows_only_and_leaves_no_label_behind() -> None:
    rows = [*labelled_rows(10), Row(index=10, where="x", prompt="only a prompt")]
    rows[0] = Row(index=0, where="y", prompt="q", completion="r", references=("r", "s"))
    none = choose_labels(rows, fraction=0.0, seed=0)
    assert not any(row.labelled for row in none)
    assert not any(row.references for row in none)
    assert sum(row.labelled for row in choose_labels(rows, fraction=0.5, seed=0)) == 5


def test_label_fraction_of_plain_text_is_refused() -> None:
    rows = [Row(index=0, where="line 1", text="story")]
    assert choose_labels(rows, fraction=1.0, seed=0) == rows
    with pytest.raises(SettingError, match=r"label_fraction = 0\.5 needs rows with a prompt, and line 1"):
        choose_labels(rows, fraction=0.5, seed=0)
    with pytest.raises(SettingError, match="between 0 and 1"):
        choose_labels(rows, fraction=1.5, seed=0)


def test_real_files_load(shared) -> None:
    words = load_rows(shared / "data" / "g2p_cmudict_valid.jsonl")
    assert len(words) == 2568
    assert any(len(row.references) > 1 for row in words)
    assert load_rows(shared / "data" / "tinystories_dev.jsonl")[0].text is not None


def test_a_row_may_name_its_teacher(tmp_path) -> None:
    values = ["large", 1, 2.0, None]
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b", "teacher_id": v} for v in values])
    rows = load_rows(path)
    assert [row.teacher_id for row in rows] == ["large", 1, 2, None]
    assert rows[0].unlabelled().teacher_id == "large"
    write_lines(path, [{"prompt": "a", "teacher_id": ["large"]}])
    with pytest.raises(SettingError, match=r"rows.jsonl, line 1: `teacher_id` must be a name or a number"):
        load_rows(path)
