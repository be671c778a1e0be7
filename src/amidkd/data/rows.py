"""Rows: text alone, as it stands in a file. Loading them, and choosing which keep their labels."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from warnings import warn

from amidkd.data.files import Record, read_records
from amidkd.errors import SettingError, SettingWarning

__all__ = ["Row", "choose_labels", "load_rows"]

_COLUMNS = "`prompt` (with `completion`, and `references` for evaluation), `messages`, or `text`"
_NEAR = {
    "prompt": ("instruction", "question", "query", "input", "inputs", "source", "problem", "word"),
    "completion": ("output", "response", "answer", "target", "label", "labels", "outputs", "chosen", "solution"),
    "messages": ("conversations", "conversation", "chat", "dialog", "dialogue", "turns"),
    "text": ("content", "document", "body", "story", "passage"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a prompt with or without its completion, a conversation, or plain text.

    Args:
        index: Its place among the rows loaded, from 0.
        where: File and line, for messages: ``train.jsonl, line 12``.
        prompt: Prompt, before any template.
        completion: Completion, before any template; None where there is no label.
        messages: Conversation: mappings with ``role`` and ``content``. Labelled where it ends in an assistant turn.
        text: Plain text.
        references: Right answers for evaluation; empty where the completion is the only one known.
        finished: False where the completion was cut off, so that it teaches nothing about ending (no EOS).
        teacher_id: Which of several teachers is the row's, by name or number; None where no column says it.
        kept: Other columns that were asked for, by name, where the row has them.
    """

    index: int
    where: str
    prompt: str | None = None
    completion: str | None = None
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    references: tuple[str, ...] = ()
    finished: bool = True
    teacher_id: str | int | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether the row says what the answer is. Plain text is always labelled."""
        if self.messages is not None:
            return self.messages[-1]["role"] == "assistant"
        return self.text is not None or self.completion is not None

    @property
    def answer(self) -> str | None:
        """The label as text: the completion, or what the last assistant turn says."""
        if self.messages is not None:
            return str(self.messages[-1]["content"] or "") if self.labelled else None
        return self.completion

    def unlabelled(self) -> "Row":
        """The row as a prompt only: without its completion, or without its last assistant turn.

        Raises:
            SettingError: Plain text, which has no prompt.
        """
        if self.text is not None:
            raise SettingError(f"{self.where}: a `text` row has no prompt to keep; use `prompt` and `completion`")
        if self.messages is not None:
            return replace(self, messages=self.messages[:-1] if self.labelled else self.messages)
        return replace(self, completion=None, references=(), finished=True)


def load_rows(
    source: str | Path,
    *,
    split: str = "train",
    max_rows: int | None = None,
    keep: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
) -> list[Row]:
    """Load rows from a JSONL, JSON or Parquet file, a folder of such files, or a hub data set.

    Columns: ``messages``, else ``prompt`` with or without ``completion`` and ``references``, else ``text``; the first
    that a row has decides, and null counts as absent. ``teacher_id`` names the row's teacher among several; other
    columns are left out. A folder that ``amidkd generate`` wrote is such a source, with ``finished`` false where an
    answer was cut off.

    Args:
        source: File, folder, or hub name (``owner/name``, or ``owner/name:configuration``). A folder's files are read
            in order of name; where their names tell several splits apart, those of ``split``.
        split: Split of a hub data set or folder.
        max_rows: Read only the first rows.
        keep: Other columns to keep with each row, such as the tests of an answer that is code.
        rename: Columns of this source under other names → ours; one that has the name already keeps it.

    Raises:
        SettingError: Nothing there, no row, a broken line, columns of other names or types. The message names file
            and line.

    Example:
        >>> rows = load_rows("train.jsonl", max_rows=2)  # doctest: +SKIP
        >>> rows[0].where  # doctest: +SKIP
        'train.jsonl, line 1'
    """
    rows: list[Row] = []
    near: Counter[str] = Counter()
    for record in read_records(source, split=split, max_rows=max_rows):
        if rename:
            record = _renamed(record, rename)
        row, teacher = _row(record, index=len(rows)), _teacher(record)
        kept = {name: record.values[name] for name in keep if record.values.get(name) is not None}
        rows.append(replace(row, teacher_id=teacher, kept=kept) if kept or teacher is not None else row)
        if rows[-1].prompt is not None and rows[-1].completion is None:
            near.update(name for name in _NEAR["completion"] if isinstance(record.values.get(name), str))
    if not rows:
        raise SettingError(f"{source}: no rows there")
    if near and not any(row.completion is not None for row in rows):
        name = near.most_common(1)[0][0]
        warn(
            f"{source}: no row has a `completion`, so all are prompts only; if its column `{name}` is the completion, "
            "rename it",
            SettingWarning,
            stacklevel=2,
        )
    return rows


def _renamed(record: Record, names: Mapping[str, str]) -> Record:
    taken = {name: names[name] for name in record.values if name in names and names[name] not in record.values}
    return replace(record, values={taken.get(name, name): value for name, value in record.values.items()})


def choose_labels(rows: Sequence[Row], *, fraction: float, seed: int) -> list[Row]:
    """Keep the labels of a part of the rows; the rest become prompts only.

    The choice hangs on a row's content and the seed, not on the order of the rows, and a smaller fraction's choice is
    part of a larger one's.

    Args:
        rows: Rows, in the order in which they are returned.
        fraction: Part of the labelled rows that stay labelled, in [0, 1]: round(fraction · n) of n.
        seed: Seed of the choice.

    Raises:
        SettingError: A fraction outside [0, 1], or below 1 for plain text.
    """
    if not 0 <= fraction <= 1:
        raise SettingError(f"data.label_fraction must be between 0 and 1; got {fraction}")
    if fraction == 1:
        return list(rows)
    text = next((row for row in rows if row.text is not None), None)
    if text is not None:
        raise SettingError(
            f"data.label_fraction = {fraction} needs rows with a prompt, and {text.where} is plain `text`; set it to 1"
        )
    labelled = [place for place, row in enumerate(rows) if row.labelled]
    seen: Counter[str] = Counter()
    ranks: dict[int, str] = {}
    for place in labelled:
        content = json.dumps(
            [rows[place].prompt, rows[place].completion, rows[place].messages], sort_keys=True, default=str
        )
        ranks[place] = hashlib.sha256(f"{seed}|{seen[content]}|{content}".encode()).hexdigest()
        seen[content] += 1
    kept = set(sorted(labelled, key=ranks.__getitem__)[: round(fraction * len(labelled))])
    return [row if place in kept or not row.labelled else row.unlabelled() for place, row in enumerate(rows)]


def _row(record: Record, *, index: int) -> Row:
    values, where = record.values, record.where
    if values.get("messages") is not None:
        messages = _messages(values["messages"], record.full_where)
        return Row(index, where, messages=messages, references=_references(record))
    if values.get("prompt") is not None:
        prompt, completion = _text(record, "prompt"), None
        if values.get("completion") is not None:
            completion = _text(record, "completion")
        # `amidkd generate` notes which answers it had to cut.
        finished = completion is None or values.get("finished") is not False
        return Row(
            index, where, prompt=prompt, completion=completion, references=_references(record), finished=finished
        )
    if values.get("text") is not None:
        return Row(index, where, text=_text(record, "text"))
    raise SettingError(f"{record.full_where}: {_wrong_columns(values)}")


def _teacher(record: Record) -> str | int | None:
    value = record.values.get("teacher_id")
    if isinstance(value, float) and value.is_integer():
        # A column of numbers with gaps is one of floats to many writers.
        value = int(value)
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    raise SettingError(f"{record.full_where}: `teacher_id` must be a name or a number; got {_shown(value)}")


def _wrong_columns(values: Mapping[str, Any]) -> str:
    empty = [name for name in ("prompt", "messages", "text") if name in values]
    if empty:
        return f"`{empty[0]}` is null; give it a value or remove the row"
    found = ", ".join(f"`{name}`" for name in values) or "none"
    renames = []
    for accepted, near in _NEAR.items():
        match = next((name for name in near if name in values), None)
        if match is not None and accepted not in values:
            renames.append(f"`{match}` to `{accepted}`")
    hint = f"; rename {' and '.join(renames[:2])}" if renames else ""
    return f"columns found: {found}; accepted: {_COLUMNS}{hint}"


def _text(record: Record, name: str) -> str:
    value = record.values[name]
    if isinstance(value, str):
        return value
    hint = ""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        hint = "; put the whole conversation, prompt and answer, into `messages`"
    raise SettingError(f"{record.full_where}: `{name}` must be text; got {_shown(value)}{hint}")


def _references(record: Record) -> tuple[str, ...]:
    value = record.values.get("references")
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterable) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    raise SettingError(f"{record.full_where}: `references` must be a list of texts; got {_shown(value)}")


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise SettingError(
            f"{where}: `messages` must be a list of mappings with `role` and `content`; got {_shown(value)}"
        )
    messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            hint = " (rename `from` to `role`, `value` to `content`)" if _sharegpt(message) else ""
            raise SettingError(
                f"{where}: message {number} must be a mapping with `role` and `content`; got {_shown(message)}{hint}"
            )
        # Parquet fills absent keys with null.
        kept = {key: entry for key, entry in message.items() if entry is not None or key == "content"}
        if not isinstance(kept.get("content"), str):
            if kept.get("content") is not None or not kept.get("tool_calls"):
                raise SettingError(f"{where}: message {number}: `content` must be text; got {_shown(message)}")
            kept["content"] = ""
        messages.append(kept)
    return messages


def _sharegpt(message: Any) -> bool:
    return isinstance(message, Mapping) and "from" in message and "value" in message


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
