"""``amidkd cache``: what the teacher says of every row that a run trains on, into files."""

import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from amidkd.config import (
    CachedTeacher,
    DatasetPolicy,
    LiveTeacher,
    RunConfig,
    SequenceLevelPolicy,
    ServedTeacher,
    live_teacher,
)
from amidkd.data import Encoder
from amidkd.errors import SettingError
from amidkd.models import pad_id_of
from amidkd.teachers import Teacher
from amidkd.teachers.cached import CacheSettings, Plan, cache_folder, entries_of, is_complete, plan_cache, write_cache
from amidkd.training.answering import text_examples
from amidkd.training.context import Run, answering_of, begin, load_teacher
from amidkd.training.hooks import Counter
from amidkd.training.lessons import Lessons, check_tokens, gather_lessons, read_rows, rows_to_answer
from amidkd.training.teaching import templates_of

__all__ = ["run_cache"]

_log = logging.getLogger("amidkd")


def run_cache(config: RunConfig) -> Path:
    """Ask a run's teacher about all of its rows and write the answers to a folder, or go on with it.

    The rows are those that ``amidkd distill`` of the same run file trains on; text that the teacher, or the student
    before training, has to write first is written first.

    Args:
        config: The run. Its teacher may be live, served, or a cache with a ``model`` or ``source`` to fill it from.

    Returns:
        The cache.

    Raises:
        SettingError: A run whose text is not known before, a teacher that cannot be cached, a cache that was made
            with other settings, or too little room on the disk.
        TeacherError: A served teacher is gone; what was finished stays, and the same call goes on.
    """
    cached, source = _cached(config), _source(config)
    _check_policy(config)
    run = begin(config.model_copy(update={"teacher": source}), "cache")
    folder = cache_folder(cached, run.folder.path)
    encoder = Encoder(run.tokenizer, run.config.data)
    material = read_rows(run.config, encoder)
    asked = rows_to_answer(run.config, material, "distill")
    load_teacher(run)
    assert run.teacher is not None
    try:
        text = text_examples(asked, material.prompts, answering_of(run, encoder))
        run.let_go_of_writer()
        lessons = gather_lessons(run.config, material, text, verb="distill")
        check_tokens(lessons, run.teacher.vocab_size)
        _write(run, run.teacher, cached, lessons, folder, templates_of(encoder, material.rows))
    finally:
        run.teacher.close()
    run.wait()
    return folder


def _cached(config: RunConfig) -> CachedTeacher:
    """The section that reads the cache which this run writes."""
    teacher = config.teacher
    if isinstance(teacher, CachedTeacher):
        return teacher
    if isinstance(teacher, LiveTeacher):
        if teacher.alignment == "text":
            raise SettingError(
                "teacher.alignment: text: what is matched by text hangs on both models' tokens and is not cached; use "
                "this teacher live"
            )
        shared = {name: getattr(teacher, name) for name in LiveTeacher.model_fields if name in _SHARED}
        return CachedTeacher(**shared)
    if isinstance(teacher, ServedTeacher):
        return CachedTeacher(source=teacher, format=teacher.format, top_k=teacher.top_k)
    if teacher is None:
        raise SettingError("cache needs a `teacher` section: whose distributions?")
    raise SettingError(
        f"teacher.kind: {teacher.kind} cannot be one cache: make one of each teacher (amidkd cache RUN "
        "'teacher={kind: cached, model: ..., folder: ...}'), and list the caches in teacher.teachers"
    )


_SHARED = set(CachedTeacher.model_fields) - {"kind"}


def _source(config: RunConfig) -> LiveTeacher | ServedTeacher:
    """Whom to ask."""
    cached = _cached(config)
    if cached.source is not None:
        changes: dict[str, Any] = {"format": cached.format}
        if cached.format == "top_k":
            changes["top_k"] = cached.top_k
        # Checked anew: a vLLM server has no hidden states to give.
        return ServedTeacher.model_validate({**cached.source.model_dump(), **changes})
    live = live_teacher(cached)
    if live is None:
        raise SettingError("teacher: a cache is made of a `model`, or of a server in `source`; name one of them")
    return live


def _check_policy(config: RunConfig) -> None:
    if config.stages is not None:
        raise SettingError("cache: stages may have different rows; use a run file without `stages`")
    if not isinstance(config.policy, DatasetPolicy | SequenceLevelPolicy):
        raise SettingError(
            f"policy.kind: {config.policy.kind}: the student writes while it learns, and no cache can know that text; "
            "use policy.kind: dataset or sequence_level, or a teacher that is live or served"
        )


def _write(
    run: Run,
    teacher: Teacher,
    cached: CachedTeacher,
    lessons: Lessons,
    folder: Path,
    templates: dict[str, str | None],
) -> None:
    settings = CacheSettings(
        format=cached.format,
        top_k=cached.top_k,
        draws=cached.draws,
        batch_size=cached.batch_size,
        shard_rows=cached.shard_rows,
        tokenizer=getattr(teacher, "tokenizer", run.tokenizer),
        templates=templates,
        name=cached.title,
        pad_id=pad_id_of(run.tokenizer),
        device=run.device,
    )
    plan = plan_cache(entries_of(lessons.examples), teacher=teacher, settings=settings)
    if not is_complete(folder):
        _announce(plan, folder)
    share = -(-len(plan.entries) // run.processes)
    with Counter(share, name="teacher's signals") if run.first else nullcontext() as progress:
        manifest = write_cache(
            plan,
            teacher=teacher,
            settings=settings,
            folder=folder,
            rank=run.rank,
            world=run.processes,
            progress=progress,
        )
    if run.first:
        size = _size(folder)
        _log.info(
            "The cache is complete: %s rows, %s supervised tokens, %s (%.1f bytes a token)",
            *(f"{manifest.rows:,}", f"{manifest.tokens:,}", _human(size), size / manifest.tokens),
        )


def _announce(plan: Plan, folder: Path) -> None:
    """Say how large the cache will be, and refuse what does not fit on the disk."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free, have = shutil.disk_usage(there).free, _size(folder)
    _log.info(
        "The teacher's signals of %s rows (%s supervised tokens, %s bytes each before compression) go to %s: "
        "at most about %s; free on the disk: %s",
        *(f"{len(plan.entries):,}", f"{plan.tokens:,}", plan.layout.token_bytes, folder),
        *(_human(plan.size), _human(free)),
    )
    if plan.size - have > free:
        smaller = "a smaller teacher.top_k" if plan.layout.format == "top_k" else "teacher.format: top_k"
        raise SettingError(
            f"teacher.folder: {folder}: the cache takes up to {_human(plan.size)}, and {_human(free)} are free; "
            f"make room, name a folder on another disk, or choose {smaller}"
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _human(size: int) -> str:
    """Bytes in the unit that suits."""
    value, units = float(size), ("bytes", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
