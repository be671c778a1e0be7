"""What the trials of a sweep have in common, made once: text, the teacher's cache, the student that they start from."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from amidkd.config import CachedTeacher, RunConfig
from amidkd.errors import SettingError
from amidkd.locks import hold
from amidkd.record import RunFolder, write_json
from amidkd.sweep.trial import Shared

__all__ = ["read_shared", "share"]

_FILE = "shared.json"
_START = "shared"
_log = logging.getLogger("amidkd")

_DECIDE_ROWS = ("data", "teacher", "policy", "student.model", "student.tokenizer", "student.kind")
"""Keys under which a trial would have other rows, or other text, than the rest."""
_LEAVE_START = ("objective", "evaluation", "kernels")
"""Keys that a warm start does not depend on."""


def share(config: RunConfig) -> Shared:
    """Make, or find, what all trials have in common; other processes of the sweep wait meanwhile.

    Args:
        config: The sweep's run file.

    Raises:
        SettingError: It cannot be made, or the space varies what a cached teacher was asked about.
        TeacherError: A served teacher is gone; the same call goes on.
    """
    assert config.sweep is not None
    folder, keys = Path(config.output.folder), list(config.sweep.space)
    own = next((key for key in keys if key == "student" or _under([key], _DECIDE_ROWS)), None)

    def waiting() -> None:
        _log.info("Another process of this sweep is making what the trials have in common; waiting for it")

    with hold(folder / f"{_FILE}.lock", waiting=waiting):
        cache = _cache(config, own)
        found = Shared(
            text=None if own is not None else _text(config, cache),
            cache=cache,
            start=folder / _START if _one_start(config, keys) else None,
        )
        write_json(
            folder / _FILE,
            {name: None if path is None else str(path) for name, path in vars(found).items()},
        )
    return found


def read_shared(folder: Path) -> Shared:
    """What :func:`share` found, for a worker.

    Args:
        folder: The sweep's folder.
    """
    # A machine that joins a database's sweep after its last trial made nothing here.
    if not (folder / _FILE).is_file():
        return Shared()
    entry = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return Shared(**{name: None if path is None else Path(path) for name, path in entry.items()})


def _under(keys: Iterable[str], sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for key in keys for section in sections)


def _text(config: RunConfig, cache: Path | None) -> Path | None:
    from amidkd.policies.texts import is_complete
    from amidkd.training import write_shared_text

    text = RunFolder(Path(config.output.folder)).generated
    if cache is not None and is_complete(text):
        # The cache was made of it.
        return text
    return None if config.stages is not None else write_shared_text(_bare(config))


def _cache(config: RunConfig, own: str | None) -> Path | None:
    teacher = config.teacher
    if not isinstance(teacher, CachedTeacher) or config.stages is not None:
        return None
    if own is not None:
        raise SettingError(
            f"sweep.space: {own} with teacher.kind: cached: a cache holds what the teacher said of one set of "
            "rows, and with this key trials have different ones; use teacher.kind: live or served, or take the key out"
        )
    from amidkd.teachers.cached import is_complete
    from amidkd.training import run_cache

    named = None if teacher.folder is None else Path(teacher.folder)
    if named is not None and is_complete(named):
        return named
    return run_cache(_bare(config))


def _bare(config: RunConfig) -> RunConfig:
    """The run file without its sweep: the sweep's folder is where it writes."""
    return config.model_copy(update={"sweep": None})


def _one_start(config: RunConfig, keys: list[str]) -> bool:
    """Whether all trials of a seed have the same warm start."""
    from amidkd.training import warm_start_of

    if config.teacher is None or config.stages is not None or warm_start_of(config) is None:
        return False
    return all(_under([key], _LEAVE_START) for key in keys)
