"""Reading a folder of text, of the right making or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amidkd.errors import SettingError
from amidkd.policies.texts.answers import Answer, read_shard
from amidkd.policies.texts.manifest import check_same, read_manifest
from amidkd.record import text_shard

__all__ = ["read_answers"]

_FIX = (
    "Set these back, or have the text of this run written: leave policy.folder out, or run `amidkd generate` with this "
    "run file and name its folder."
)


def read_answers(folder: Path, *, expected: Mapping[str, Any] | None = None) -> list[Answer]:
    """The answers of a folder that :func:`~amidkd.policies.texts.write_answers` made, in order of row and sample.

    Args:
        folder: The folder.
        expected: Fields of :func:`~amidkd.policies.texts.made_with` that must agree.

    Raises:
        SettingError: No such folder; not complete; made with other settings, which are named; a shard is missing.
    """
    manifest = read_manifest(folder)
    if expected is not None:
        check_same(manifest.made_with, expected, folder, fix=_FIX)
    if not manifest.complete:
        raise SettingError(f"{folder}: its text is not complete; run `amidkd generate` again, which goes on")
    paths = [folder / text_shard(number) for number in range(manifest.shards)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise SettingError(f"{folder}: {missing[0]} is missing, {len(missing)} of {len(paths)} shards in all")
    answers = [answer for path in paths for answer in read_shard(path)]
    if len(answers) != manifest.answers:
        raise SettingError(f"{folder}: it holds {len(answers)} answers, and should hold {manifest.answers}")
    return answers
