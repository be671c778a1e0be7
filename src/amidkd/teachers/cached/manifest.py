"""``manifest.json``: what a cache was made with, field by field, and whether it is complete."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amidkd.errors import SettingError
from amidkd.record import check_made_with, write_json
from amidkd.teachers.cached.layout import Layout

__all__ = ["MANIFEST", "Manifest", "check_same", "is_complete", "read_manifest", "shard_name", "write_manifest"]

MANIFEST = "manifest.json"
"""In a cache: what made it, and whether it is complete."""

_TITLES = {
    "teacher": "the teacher: its weights, adapter, teacher.dtype or quantisation",
    "tokenizer": "the teacher's tokenizer",
    "prompt_template": "data.prompt_template",
    "completion_template": "data.completion_template",
    "chat_template": "the tokenizer's chat template",
    "data": "the rows of data.train and how they become tokens",
    "vocab_size": "the vocabulary shared with the student",
    "format": "teacher.format",
    "top_k": "teacher.top_k",
    "draws": "teacher.draws",
}


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds.

    Args:
        made_with: What decides the cache, field by field.
        information: Names and versions; they may differ.
        rows: Sequences in the whole cache.
        tokens: Supervised tokens in the whole cache.
        shards: Files in the whole cache.
        shard_rows: Sequences of each file but the last.
        width: Size of the hidden states; None with the others.
        complete: Whether all is there.
    """

    made_with: dict[str, Any]
    information: dict[str, Any]
    rows: int
    tokens: int
    shards: int
    shard_rows: int
    width: int | None
    complete: bool

    @property
    def layout(self) -> Layout:
        """How its signals are stored."""
        made = self.made_with
        return Layout(
            made["format"], made["vocab_size"], top_k=made["top_k"], width=self.width, draws=made.get("draws")
        )


def shard_name(number: int) -> str:
    """Name of a file of signals.

    Args:
        number: From 0.
    """
    return f"shard-{number:05d}.parquet"


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, *, fix: str) -> None:
    """Refuse a cache that other settings made.

    Args:
        found: ``made_with`` of the cache.
        expected: The fields that must agree.
        folder: The cache.
        fix: What to do.

    Raises:
        SettingError: With every field that differs, there and now.
    """
    check_made_with(found, expected, what=f"{folder}: this cache", title=_title, fix=fix)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Args:
        folder: The cache.

    Raises:
        SettingError: There is none, or it is none of ours.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise SettingError(
            f"teacher.folder: no cache in {folder} (no {MANIFEST}); make it with `amidkd cache RUN`, "
            "or name another folder"
        )
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        assert manifest.layout.columns
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise SettingError(f"{path}: not the manifest of a teacher cache ({error!r})") from None
    return manifest


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a cache, all of it.

    Args:
        folder: The folder; it need not be there.
    """
    return (folder / MANIFEST).is_file() and read_manifest(folder).complete


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically.

    Args:
        folder: The cache.
        manifest: What it is to hold.
    """
    write_json(folder / MANIFEST, asdict(manifest))


def _title(name: str) -> str:
    return f"{name} ({_TITLES.get(name, 'of the cache')})"
