"""Where a sweep keeps its trials: a journal file beside them, or a database that several machines share."""

import hashlib
import importlib.util
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig
from amidkd.errors import SettingError
from amidkd.locks import Lock, try_lock
from amidkd.record import check_made_with

__all__ = ["JOURNAL", "is_address", "open_study", "require_optuna", "study_name"]

JOURNAL = "sweep.journal"
"""The storage's file in a sweep's folder."""

_MADE_WITH = "made_with"
_HASHED_BYTES = 64 * 1024 * 1024
_PATIENCE = 30.0
"""Seconds that a storage may be locked. A write takes a few milliseconds."""
_FREE_SECTIONS = ("output.", "serve.", "sweep.", "kernels.")
_PATHS = (
    "data.train",
    "data.validation",
    "data.corpus.source",
    "student.model",
    "student.tokenizer",
    "teacher.model",
    "teacher.adapter",
    "evaluation.data",
    "evaluation.text",
    "policy.folder",
)


def require_optuna() -> None:
    """Refuse to start without Optuna.

    Raises:
        SettingError: Naming the extra.
    """
    if importlib.util.find_spec("optuna") is None:
        raise SettingError('sweep needs Optuna, which is not installed: pip install "amidkd[sweep]"')


def is_address(storage: str | None) -> bool:
    """Whether a storage is a database's address, not a file.

    Args:
        storage: ``sweep.storage``.
    """
    return storage is not None and "://" in storage


def study_name(config: RunConfig) -> str:
    """What the storage calls the sweep.

    Args:
        config: The sweep's run file.
    """
    assert config.sweep is not None
    return config.sweep.name or Path(config.output.folder).name


def open_study(config: RunConfig, directions: Sequence[str], *, pruner: Any = None) -> Any:
    """Open the sweep's study, or begin it.

    Args:
        config: The sweep's run file.
        directions: ``minimize`` or ``maximize``, one for each objective.
        pruner: Optuna's.

    Raises:
        SettingError: The storage cannot be reached or read, is locked, or holds another sweep of this name.
    """
    import optuna

    assert config.sweep is not None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name, storage = study_name(config), config.sweep.storage
    if is_address(storage):
        assert storage is not None
        study = _in_database(storage, name, directions, pruner)
        where = f"{name} in {_without_password(storage)}"
    else:
        path = Path(storage) if storage is not None else Path(config.output.folder) / JOURNAL
        study, where = _in_file(path, name, directions, pruner), str(path)
    _check_same_sweep(study, config, directions, where)
    return study


def _in_file(path: Path, name: str, directions: Sequence[str], pruner: Any) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if path.is_dir():
        raise SettingError(f"sweep.storage: {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(path), lock_obj=_JournalLock(path))
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name=name,
            directions=list(directions),
            load_if_exists=True,
            pruner=pruner,
        )
    except SettingError:
        raise
    except OSError as error:
        raise SettingError(f"sweep.storage: {path} cannot be used: {error.strerror or error}") from None
    # Whatever a file that is no journal makes of the reader.
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise SettingError(
            f"sweep.storage: {path} is not a sweep's journal, or it is damaged ({type(error).__name__}: {error}). Name "
            "another file, or move it away to begin anew; the trials' folders stay"
        ) from None


class _JournalLock:
    """The lock of a journal, with the two methods of Optuna's own.

    Those leave a file behind when a process is killed, which others wait for; here the system lets go.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: Lock | None = None

    def acquire(self) -> bool:
        file = self._path.with_name(f"{self._path.name}.lock")
        began = time.monotonic()
        while (lock := try_lock(file)) is None:
            if time.monotonic() - began > _PATIENCE:
                raise SettingError(
                    f"sweep.storage: {self._path} has been locked by another process for {_PATIENCE:.0f} s. End that "
                    f"process (lsof {file} names it), or name another storage"
                )
            time.sleep(0.005)
        self._held = lock
        _cut_torn_line(self._path)
        return True

    def release(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None


def _cut_torn_line(path: Path) -> None:
    """Remove a last line that a kill or a full disk cut off: what comes after it would be unreadable."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _in_database(address: str, name: str, directions: Sequence[str], pruner: Any) -> Any:
    import optuna
    import sqlalchemy

    shown = _without_password(address)
    try:
        options = {"connect_args": {"timeout": _PATIENCE}} if address.startswith("sqlite") else {"pool_pre_ping": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = optuna.storages.RDBStorage(address, engine_kwargs=options)
            return optuna.create_study(
                storage=storage, study_name=name, directions=list(directions), load_if_exists=True, pruner=pruner
            )
    except sqlalchemy.exc.NoSuchModuleError:
        kinds = "postgresql://, mysql:// or sqlite:///"
        raise SettingError(f"sweep.storage: {shown}: no such kind of database; use {kinds}") from None
    except ImportError as error:
        # Optuna wraps the driver's own error.
        needed = getattr(error, "name", None) or getattr(error.__cause__, "name", None) or "its driver"
        package = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}.get(needed, needed)
        raise SettingError(
            f"sweep.storage: {shown} needs the database's driver {needed}: pip install {package}"
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _unreachable(shown, error) from None
    except optuna.exceptions.StorageInternalError as error:
        raise _unreachable(shown, error.__cause__ or error) from None
    except RuntimeError as error:
        # A table of another version of Optuna.
        raise SettingError(f"sweep.storage: {shown} cannot be used: {error}") from None


def _unreachable(shown: str, error: BaseException) -> SettingError:
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return SettingError(
        f"sweep.storage: {shown} cannot be used: {reason}. Check the address, that the database is up, and that no "
        "other process keeps it locked"
    )


def _without_password(address: str) -> str:
    import sqlalchemy

    try:
        return sqlalchemy.engine.make_url(address).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        raise SettingError(
            "sweep.storage: not a database's address; it looks like postgresql://user@host/database"
        ) from None


def _check_same_sweep(study: Any, config: RunConfig, directions: Sequence[str], where: str) -> None:
    """Numbers of other settings in one study would be compared as if they were the same."""
    now = _made_with(config, directions)
    found = study.user_attrs.get(_MADE_WITH)
    if found is None:
        study.set_user_attr(_MADE_WITH, now)
        return
    check_made_with(
        found,
        {key: now.get(key) for key in sorted({*found, *now})},
        what=f"sweep.storage: {where}",
        title=lambda key: key,
        fix="Set them back; or begin another sweep: another output (or, in one database, another sweep.name).",
    )


def _made_with(config: RunConfig, directions: Sequence[str]) -> dict[str, Any]:
    """What decides the numbers of a sweep's trials: by dotted name, files by their contents."""
    from amidkd.training import run_settings

    assert config.sweep is not None
    sweep, tree = config.sweep.model_dump(mode="json"), config.model_dump(mode="json")
    # What the user sees as one thing is compared as one.
    found = {f"sweep.space.{key}": entry for key, entry in sweep["space"].items()}
    found |= {"sweep.objective": list(sweep["objective"]), "directions": list(directions)}
    found |= {"sweep.seeds": sweep["seeds"], "sweep.pruner": sweep["pruner"]}
    flat = {**run_settings(config), **_flat(tree["evaluation"], "evaluation.")}
    flat = {key: value for key, value in flat.items() if not key.startswith(_FREE_SECTIONS)}
    for name in ("training.seed", "evaluation.batch_size", "evaluation.after_training", *_PATHS):
        flat.pop(name, None)
    files = {name: _contents(_at(tree, name)) for name in _PATHS if _at(tree, name) is not None}
    return {**found, **flat, **files}


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _at(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _contents(source: Any) -> str:
    """Of a file its hash, of a folder that of its files' names and sizes; a hub name is itself."""
    path = Path(str(source))
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
        digest.update(str(path.stat().st_size).encode())
    elif path.is_dir():
        for each in sorted(path.rglob("*")):
            if each.is_file() and not any(part.startswith(".") for part in each.relative_to(path).parts):
                digest.update(f"{each.relative_to(path).as_posix()} {each.stat().st_size}\n".encode())
    else:
        return str(source)
    return f"{path.name} {digest.hexdigest()[:16]}"
