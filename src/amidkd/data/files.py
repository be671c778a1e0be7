"""Files of rows: JSONL, JSON, Parquet, folders of them and hub data sets, read so that an error names its line."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from amidkd.errors import SettingError
from amidkd.record import TEXT_MANIFEST, text_shard

__all__ = ["Record", "read_records"]

_LINES, _JSON, _PARQUET = (".jsonl", ".ndjson"), (".json",), (".parquet", ".pq")
_SUFFIXES = (*_LINES, *_JSON, *_PARQUET)
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file: its values, its place in short, and with the whole path."""

    values: Mapping[str, Any]
    where: str
    full_where: str


def read_records(source: str | Path, *, split: str, max_rows: int | None = None) -> Iterator[Record]:
    """Records of a file, a folder or a hub data set, in order.

    Args:
        source: File, folder or hub name.
        split: Split of a hub data set, or of a folder whose file names tell splits apart.
        max_rows: Stop after this many.

    Raises:
        SettingError: Nothing there, an unknown kind of file, a broken line.
    """
    path = Path(source).expanduser()
    if path.is_file():
        records = _read_file(path, path.name)
    elif path.is_dir():
        records = _read_folder(path, split)
    else:
        records = _read_hub(str(source), split, max_rows)
    yield from islice(records, max_rows)


def _read_folder(folder: Path, split: str) -> Iterator[Record]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        yield from _read_saved_dataset(folder, split)
        return
    if (folder / TEXT_MANIFEST).is_file() and (shards := _text_shards(folder)):
        for path in shards:
            yield from _read_file(path, path.name)
        return
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise SettingError(f"{folder}: no file of rows there; rows are in {', '.join(_SUFFIXES)}")
    for path in _of_split(folder, files, split):
        yield from _read_file(path, path.relative_to(folder).as_posix())


def _text_shards(folder: Path) -> list[Path]:
    """The shards of a folder that ``amidkd generate`` wrote; none for another folder with a file of that name."""
    try:
        manifest = json.loads((folder / TEXT_MANIFEST).read_text(encoding="utf-8"))
        shards, complete = int(manifest["shards"]), bool(manifest["complete"])
    except (ValueError, TypeError, KeyError):
        return []
    if not complete:
        raise SettingError(f"{folder}: its text is not complete; run `amidkd generate` again, which goes on")
    return [folder / text_shard(number) for number in range(shards)]


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """All files, or those of the split where the names tell several splits apart."""

    def named(path: Path, names: tuple[str, ...]) -> bool:
        words = "|".join(map(re.escape, names))
        return re.search(rf"(^|[-_./])({words})([-_./]|$)", path.relative_to(folder).as_posix(), re.I) is not None

    groups = {name for name, words in _SPLITS.items() if any(named(path, words) for path in files)}
    if len(groups) < 2:
        return files
    words = next((words for words in _SPLITS.values() if split in words), (split,))
    chosen = [path for path in files if named(path, words)]
    if not chosen:
        raise SettingError(
            f"{folder}: it holds files of the splits {', '.join(sorted(groups))}, none of split {split!r}; "
            "name one of these, or the file itself"
        )
    return chosen


def _read_file(path: Path, name: str) -> Iterator[Record]:
    suffix = path.suffix.lower()
    if suffix in _LINES:
        yield from _read_lines(path, name)
    elif suffix in _JSON:
        yield from _read_json(path, name)
    elif suffix in _PARQUET:
        yield from _read_parquet(path, name)
    else:
        raise SettingError(f"{path}: rows are read from {', '.join(_SUFFIXES)}; this is {suffix or 'no suffix'}")


def _read_lines(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SettingError(f"{place}: not UTF-8 ({error.reason} at byte {error.start})") from None
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise SettingError(
                    f"{place}: not JSON ({error.msg} at column {error.colno}); mend or remove the line"
                ) from None
            yield Record(_mapping(value, place), f"{name}, line {number}", place)


def _read_json(path: Path, name: str) -> Iterator[Record]:
    """A list of rows, or a mapping that holds one; or JSON lines under the suffix .json."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _read_lines(path, name)
            return
        raise SettingError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    if isinstance(value, Mapping):
        lists = [entry for entry in value.values() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
        value = lists[0] if len(lists) == 1 and "messages" not in value else [value]
    if not isinstance(value, list):
        raise SettingError(f"{path}: must hold a list of rows; got {type(value).__name__}")
    for number, entry in enumerate(value, start=1):
        place = f"{path}, row {number}"
        yield Record(_mapping(entry, place), f"{name}, row {number}", place)


def _read_parquet(path: Path, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(values, f"{name}, row {number}", f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise SettingError(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())})") from None


def _read_saved_dataset(folder: Path, split: str) -> Iterator[Record]:
    """A folder that ``datasets`` saved."""
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(str(folder))
    if isinstance(found, DatasetDict):
        if split not in found:
            raise SettingError(f"{folder}: no split {split!r}; it has {', '.join(map(str, found))}")
        found = found[split]
    for number, values in enumerate(found, start=1):
        yield Record(values, f"{folder.name}, row {number}", f"{folder}, row {number}")


def _read_hub(source: str, split: str, max_rows: int | None) -> Iterator[Record]:
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).suffix.lower() in _SUFFIXES:
        raise SettingError(f"{source}: there is no such file or folder")
    name, _, configuration = source.partition(":")
    from datasets import load_dataset

    wanted = split if max_rows is None else f"{split}[:{max_rows}]"
    try:
        rows = load_dataset(name, configuration or None, split=wanted)
    # A data set's own builder may raise anything; whatever it is, its rows cannot be had.
    except Exception as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise SettingError(
            f"data set {source!r}, split {split!r}: no such file or folder here, and as a hub name it could not be "
            f"fetched (is it spelt rightly, public, and the machine online? a configuration is named as "
            f"{name}:configuration): {cause}"
        ) from error
    for number, values in enumerate(rows, start=1):
        place = f"{source} ({split}), row {number}"
        yield Record(values, place, place)


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    shown = json.dumps(value, ensure_ascii=False)[:60]
    raise SettingError(f"{place}: a row must be a mapping of columns; got {shown}")
