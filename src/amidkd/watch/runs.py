"""A run as it stands, from what it wrote so far."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from amidkd.config import RunConfig, load, stage_configs
from amidkd.errors import SettingError
from amidkd.record import RunFolder, process_runs
from amidkd.report.costs import facts_of
from amidkd.report.run import sentence_of
from amidkd.report.words import describe_objective, describe_policy, duration
from amidkd.watch.log import StageLog
from amidkd.watch.tail import JsonFile, Tail, age_of
from amidkd.watch.view import Bar, State, View

__all__ = ["RunFollower", "read_config"]

_QUIET = 60.0
"""Seconds without a word after which one says so; a step that takes longer has ten times its own."""


def read_config(path: Path) -> tuple[RunConfig | None, str]:
    """A folder's run file, and what is wrong with it where it cannot be read.

    Args:
        path: The folder.
    """
    if not RunFolder(path).run_file.is_file():
        return None, ""
    try:
        return load(path), ""
    except SettingError as error:
        return None, str(error)


@final
class _Folder:
    """One run folder, which may be that of a stage of the run.

    Args:
        path: The folder.
        config: Its settings, or None where they are unknown.
        prefix: Put before the names of its parts.
    """

    def __init__(self, path: Path, config: RunConfig | None, prefix: str = "") -> None:
        self.folder, self.config, self.prefix = RunFolder(path), config, prefix
        self.record = JsonFile(self.folder.record_file)
        self.warm = StageLog(path / "warm_start", f"{prefix}warm start")
        self.main = StageLog(path, prefix + "training")

    @property
    def verb(self) -> str:
        return str(self.record.value.get("verb", "distill"))

    @property
    def current(self) -> StageLog:
        return self.main if self.main.begun or not self.warm.begun else self.warm

    def read(self) -> None:
        self.record.read()
        self.warm.read()
        self.main.read()
        self.main.name = self.prefix + self.verb

    def files(self) -> Iterator[Path]:
        yield from (self.folder.record_file, self.folder.samples_file, *self.warm.files, *self.main.files)

    def bars(self, moving: bool) -> Iterator[Bar]:
        """Parts that are complete, that are under way, and the main one in any case."""
        complete: Mapping[str, Any] = self.record.value.get("stages", {})
        for name, entry in complete.items():
            if name not in ("warm_start", self.verb):
                numbers = (f"{value:,} {key.replace('_', ' ')}" for key, value in entry.items() if type(value) is int)
                yield Bar(self.prefix + name.replace("_", " "), 1, 1, ", ".join(numbers) or "done")
        if self.warm.begun or "warm_start" in complete:
            yield self.warm.bar(complete.get("warm_start"), total=None, moving=moving and not self.main.begun)
        limit = self.config.training.max_steps if self.config is not None else 0
        yield self.main.bar(complete.get(self.verb), total=limit if limit > 0 else None, moving=moving)

    def lines(self) -> list[dict[str, Any]]:
        return self.warm.lines(f"{self.prefix}warm_start") + self.main.lines(self.prefix + self.verb)


@final
class RunFollower:
    """Follows one run, in any state of it.

    Args:
        path: Its folder, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._config: RunConfig | None = None
        self._trouble = ""
        self._run_file_seen = 0
        self._folders = [_Folder(path, None)]
        self._samples = Tail(RunFolder(path).samples_file)

    def look(self) -> View:
        """The run as it stands."""
        self._read()
        state, sentence = self._state()
        current = self._active()
        record = current.record.value
        warnings = [entry["text"] for folder in self._folders for entry in folder.record.value.get("warnings", [])]
        return View(
            title=self._path.name,
            state=state,
            sentence=sentence,
            about=self._about(state, record),
            bars=tuple(bar for folder in self._folders for bar in folder.bars(state == "running")),
            readings=current.current.readings(),
            facts=tuple(self._facts(record)),
            warnings=tuple(dict.fromkeys([*filter(None, [self._trouble]), *warnings, *self._unreadable()])),
            command=self._command(state, record),
            lines=[line for folder in self._folders for line in folder.lines()],
            samples=self._samples.rows,
        )

    def _read(self) -> None:
        run_file = RunFolder(self._path).run_file
        seen = run_file.stat().st_mtime_ns if run_file.is_file() else 0
        if seen != self._run_file_seen:
            self._run_file_seen = seen
            self._config, self._trouble = read_config(self._path)
            self._folders = self._found()
        for folder in self._folders:
            folder.read()
        self._samples.read()

    def _found(self) -> list[_Folder]:
        config = self._config
        if config is None or config.stages is None:
            return [_Folder(self._path, config)]
        named = zip(config.stages, stage_configs(config), strict=True)
        # The run folder may have been moved since.
        home = Path(config.output.folder)
        return [
            _Folder(self._path / Path(own.output.folder).relative_to(home), own, f"{stage.name}: ")
            for stage, own in named
        ]

    def _active(self) -> _Folder:
        """The folder that is worked in: the last one with a record."""
        return next((folder for folder in reversed(self._folders) if folder.record.value), self._folders[0])

    def _age(self) -> float | None:
        return age_of(path for folder in self._folders for path in folder.files())

    def _state(self) -> tuple[State, str]:
        active, age = self._active(), self._age()
        record = active.record.value
        if not record:
            return "waiting", self._waiting()
        lives = process_runs(record["process"]) if "process" in record else None
        if self._folders[-1].record.value.get("finished"):
            return self._finished(lives, record)
        quiet = age is not None and age > max(_QUIET, 10 * (active.current.seconds_a_step() or 0.0))
        since = "" if age is None else f"Nothing was written for {duration(age)}"
        stopped = lives is False
        where = _where(active.current, moving=not stopped)
        if stopped:
            return "stopped", f"Stopped {where}: its process has ended and the run is not finished. {since}."
        if lives is None and quiet:
            host = record.get("process", {}).get("host")
            seen = f"its process is on {host}, which cannot be seen from here" if host else "its process is not known"
            return "silent", f"No sign of life {where}. {since}; {seen}."
        return "running", f"Under way {where}." + (f" {since}, but its process runs." if quiet else "")

    def _finished(self, lives: bool | None, record: Mapping[str, Any]) -> tuple[State, str]:
        evaluated = "evaluation" in record.get("results", {})
        config = self._folders[-1].config
        if lives and not evaluated and config is not None and config.evaluation.after_training:
            return "running", "Trained; the student is being measured."
        stages = [part for folder in self._folders for part in folder.record.value.get("stages", {}).values()]
        seconds = sum(part.get("seconds") or 0.0 for part in stages)
        return "done", f"Done, in {duration(seconds)}" + ("." if evaluated else "; not evaluated yet.")

    def _waiting(self) -> str:
        if not self._path.exists():
            return f"{self._path} is not there yet; waiting for the run to begin."
        texts = RunFolder(self._path).generated
        if texts.is_dir():
            shards = len(list(texts.glob("shard-*.parquet")))
            return f"Text is being written before the training: {shards} shards are complete."
        return "Nothing is recorded here yet; waiting for the run to begin."

    def _about(self, state: State, record: Mapping[str, Any]) -> str:
        config = self._folders[-1].config
        if state == "done":
            return sentence_of(self._folders[-1].record.value, self._config)
        if config is None:
            return ""
        if config.teacher is None or record.get("verb") == "sft":
            return "Fine-tuning by cross-entropy."
        return f"{describe_objective(config.objective)}; text: {describe_policy(config.policy)}."

    def _facts(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield "folder", os.path.relpath(self._path)
        yield from ((name, text) for name, text in facts_of(record) if name != "estimate")
        if record.get("device"):
            yield "device", str(record["device"])
        if record.get("process"):
            yield "process", f"{record['process']['pid']} on {record['process']['host']}"
        if record.get("started"):
            yield "started", str(record["started"])
        checkpoints = self._active().folder.checkpoints()
        if checkpoints:
            age = age_of([checkpoints[-1]])
            yield "last checkpoint", f"{checkpoints[-1].name}" + ("" if age is None else f", {_rounded(age)} ago")

    def _unreadable(self) -> Iterator[str]:
        for folder in self._folders:
            for log in (folder.warm, folder.main):
                if log.metrics.unreadable:
                    yield f"{log.metrics.path}: {log.metrics.unreadable} lines are not JSON and are left out"

    def _command(self, state: State, record: Mapping[str, Any]) -> str:
        path = shlex.quote(os.path.relpath(self._path))
        if state == "stopped":
            # A run of stages is always one of `distill`.
            verb = "distill" if self._config is not None and self._config.stages else record.get("verb", "distill")
            return f"amidkd {verb} {path} training.resume_from_checkpoint=true"
        if state == "done":
            return f"amidkd {'report' if 'evaluation' in record.get('results', {}) else 'eval'} {path}"
        return ""


def _where(log: StageLog, *, moving: bool) -> str:
    return f"({log.name}: {log.bar(None, total=None, moving=moving).text})" if log.begun else "before the first step"


def _rounded(seconds: float) -> str:
    """An age that does not change with every look."""
    if seconds < 60:
        return "less than a minute"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.0f} h"
