"""What every run leaves behind: the files of a run folder, written so that a kill loses nothing.

Run folder::

    run.yaml         the resolved run file
    record.json      settings, versions, commit, seeds, device, stages, results
    metrics.jsonl    one line each logging step
    progress.json    the step that training is at, of how many
    drafts/          the student's text before a warm-up; corrected/: as the teacher corrected it
    samples.jsonl    prompts with the teacher's and the student's answers
    scores.npz       what every metric gave for every prompt, so that two runs can be compared prompt by prompt
    tokens.jsonl     where the student is farthest from its teacher, token by token
    code.jsonl       answers that were run as code, and how each ended
    judge.jsonl      verdicts of a judge, with its whole replies
    generated/       text written beforehand: Parquet shards and manifest.json, which says what made them
    teacher-cache/   what the teacher said of every row (``amidkd cache``)
    checkpoint-N/    everything that exact resume needs
    student/         the distilled model: a Hugging Face folder with tokenizer and model card
    report.html      the page made from the above

Loads no torch.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from amidkd.errors import SettingError

__all__ = [
    "TEXT_MANIFEST",
    "RunFolder",
    "append_json_line",
    "atomic_folder",
    "check_made_with",
    "commit_of",
    "process_runs",
    "read_json_lines",
    "text_shard",
    "this_process",
    "versions",
    "write_atomic",
    "write_json",
    "write_json_lines",
]

_PACKAGES = (
    "amidkd",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "peft",
    "numpy",
    "pyarrow",
)

TEXT_MANIFEST = "manifest.json"
"""In a folder of written text: what made it, and whether it is complete."""


def text_shard(number: int) -> str:
    """Name of a shard of written text.

    Args:
        number: From 0.
    """
    return f"shard-{number:05d}.parquet"


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run. Making one touches nothing on disk."""

    path: Path

    @property
    def run_file(self) -> Path:
        """``run.yaml``."""
        return self.path / "run.yaml"

    @property
    def record_file(self) -> Path:
        """``record.json``."""
        return self.path / "record.json"

    @property
    def metrics_file(self) -> Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def progress_file(self) -> Path:
        """``progress.json``."""
        return self.path / "progress.json"

    @property
    def samples_file(self) -> Path:
        """``samples.jsonl``."""
        return self.path / "samples.jsonl"

    @property
    def scores_file(self) -> Path:
        """``scores.npz``."""
        return self.path / "scores.npz"

    @property
    def tokens_file(self) -> Path:
        """``tokens.jsonl``."""
        return self.path / "tokens.jsonl"

    @property
    def student(self) -> Path:
        """``student/``."""
        return self.path / "student"

    @property
    def report_file(self) -> Path:
        """``report.html``."""
        return self.path / "report.html"

    @property
    def generated(self) -> Path:
        """``generated/``: text written to prompts beforehand."""
        return self.path / "generated"

    @property
    def drafts(self) -> Path:
        """``drafts/``: what the student wrote before its warm-up."""
        return self.path / "drafts"

    @property
    def corrected(self) -> Path:
        """``corrected/``: the same, as the teacher corrected it."""
        return self.path / "corrected"

    def record(self) -> dict[str, Any]:
        """The record as it stands, empty before the first write."""
        return json.loads(self.record_file.read_text(encoding="utf-8")) if self.record_file.is_file() else {}

    def update_record(self, **entries: Any) -> dict[str, Any]:
        """Merge entries into ``record.json`` (mappings key by key, one level deep) and write it atomically."""
        record = self.record()
        for key, value in entries.items():
            both = isinstance(value, Mapping) and isinstance(record.get(key), dict)
            record[key] = {**record[key], **value} if both else value
        write_json(self.record_file, record)
        return record

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first. A folder half written has another name, so it is never here."""
        found = [p for p in self.path.glob("checkpoint-*") if p.is_dir() and p.name.split("-")[-1].isdigit()]
        return sorted(found, key=lambda p: int(p.name.split("-")[-1]))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, flush it to disk, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; it takes that name only when the block ends well.

    Whatever stood at ``path`` is replaced. After a failure the temporary folder is removed; after a kill it
    remains under its temporary name, and the next call clears it.
    """
    import shutil

    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; NaN and infinities are refused, since they are not JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as a line and flush it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines. A last line cut off by a kill is left out.

    Raises:
        SettingError: Another line is not JSON; the message names file and line.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise SettingError(f"{path}, line {number}: not JSON ({error.msg})") from None
    return rows


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide a run's numbers."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit_of(folder: Path) -> str | None:
    """The git commit of a checkout, with ``+changes`` where files differ from it; None outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if status.strip() else "")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_process() -> dict[str, Any]:
    """What tells this process from any other, as a record holds it: host, number, and when it started."""
    import psutil

    return {"host": platform.node(), "pid": os.getpid(), "created": psutil.Process().create_time()}


def process_runs(process: Mapping[str, Any]) -> bool | None:
    """Whether a process is still there; None where it cannot be seen from here.

    Args:
        process: What :func:`this_process` gave in it.
    """
    import psutil

    if process.get("host") != platform.node():
        return None
    try:
        found = psutil.Process(process["pid"])
        # Numbers are given again to other processes; a start time is not. Clocks are read to a hundredth of a second.
        same = abs(found.create_time() - process["created"]) < 1.0
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return None


def check_made_with(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, what: str, title: Callable[[str], str], fix: str
) -> None:
    """Refuse to use what other settings made.

    Args:
        found: What it was made with, field by field.
        expected: The fields that must agree.
        what: What it is and where.
        title: Names a field as the user knows it.
        fix: What to do.

    Raises:
        SettingError: With every field that differs, there and now.
    """
    differing = [name for name in expected if found.get(name) != expected[name]]
    if not differing:
        return
    shown = "".join(
        f"\n  {title(name)}: {_short(found.get(name))} there, {_short(expected[name])} now" for name in differing
    )
    raise SettingError(f"{what} was made with other settings:{shown}\n{fix}")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) and len(value) < 64 else str(value)
    return text if len(text) <= 40 else text[:12] + "…"
