"""Answers that a teacher writes to prompts, once, to a Parquet file that says what they were made with.

A long generation survives a kill: finished groups of prompts stand as part files in a hidden folder beside the target,
and the same call goes on after them. Each group has a seed of its own, so what comes out does not depend on where the
kill fell.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from warnings import warn

from amidkd.config import GenerationConfig
from amidkd.data import Encoder, Example, Origin, Row
from amidkd.errors import SettingError, SettingWarning
from amidkd.models import generate
from amidkd.record import write_atomic

__all__ = ["Answer", "answer_examples", "answers_fingerprint", "read_answers", "write_answers"]

_METADATA = b"amidkd"
# Batches in a part file: what a kill can cost at most, and the room in which prompts are sorted by length.
_BATCHES_IN_PART = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one prompt.

    Args:
        row: ``Row.index`` of the prompt.
        where: File and line of the prompt.
        sample: Which of the answers to this prompt, from 0.
        prompt: The prompt as text, bare; of a conversation, as the chat template shows it.
        completion: The answer as text, without special tokens and the completion's template.
        prompt_tokens: Ids that the answer was made from.
        completion_tokens: Ids of the answer, with EOS where it came.
        finished: Whether EOS came before ``max_new_tokens``.
        origin: Who wrote the answer.
    """

    row: int
    where: str
    sample: int
    prompt: str
    completion: str
    prompt_tokens: tuple[int, ...]
    completion_tokens: tuple[int, ...]
    finished: bool
    origin: Origin = "teacher"


@dataclass(frozen=True, slots=True)
class _Task:
    row: Row
    tokens: list[int]
    sample: int


def write_answers(
    prompts: Sequence[Row],
    *,
    model: Any,
    tokenizer: Any,
    encoder: Encoder,
    config: GenerationConfig,
    eos_ids: Sequence[int],
    pad_id: int,
    vocab_size: int | None,
    fingerprint: str,
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Answer prompts and write the answers to a Parquet file, going on after what a killed call finished.

    A complete file made with the same settings is left as it is. The file appears by one rename at the end.

    Args:
        prompts: Rows to answer; a label that a row has is not looked at. Rows whose prompt ``data.long_prompts``
            drops get no answer.
        model: The teacher, a causal model.
        tokenizer: Its tokenizer.
        encoder: How prompts become tokens.
        config: How it answers.
        eos_ids: Ids that end an answer.
        pad_id: Id that fills batches.
        vocab_size: Ids from here on never come; None: all may.
        fingerprint: What identifies the teacher (``Teacher.fingerprint()``).
        path: The Parquet file to make.
        progress: Called after each batch with the answers and the tokens made in it; answers found finished
            come with 0 tokens.

    Returns:
        The number of answers in the file.

    Raises:
        SettingError: No prompt to answer; a prompt that cannot be used (its file and line are named); a file at
            ``path`` that was made with other settings.
    """
    path = Path(path)
    tasks = _tasks(prompts, encoder, config, model)
    made_with = _made_with(tasks, config=config, teacher=fingerprint, eos_ids=eos_ids, vocab_size=vocab_size)
    if path.is_file():
        count, found = _metadata(path)
        _same(found, made_with, path)
        if progress is not None:
            progress(count, 0)
        return count
    parts = []
    size = config.batch_size * _BATCHES_IN_PART
    folder = _parts_folder(path, made_with, config)
    for number, start in enumerate(range(0, len(tasks), size)):
        part, group = folder / f"part-{number:05d}.parquet", tasks[start : start + size]
        parts.append(part)
        if part.is_file():
            if progress is not None:
                progress(len(group), 0)
            continue
        made = generate(
            model,
            [task.tokens for task in group],
            eos_ids=eos_ids,
            pad_id=pad_id,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            batch_size=config.batch_size,
            seed=_seed(config.seed, number),
            vocab_size=vocab_size,
            progress=progress,
        )
        answers = [_answer(task, ids, encoder, tokenizer, eos_ids) for task, ids in zip(group, made, strict=True)]
        _write_part(part, answers)
    _merge(parts, path, made_with)
    for stale in path.parent.glob(f".{path.name}.parts-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return len(tasks)


def answers_fingerprint(
    prompts: Sequence[Row],
    *,
    encoder: Encoder,
    config: GenerationConfig,
    teacher: str,
    eos_ids: Sequence[int],
    vocab_size: int | None,
) -> dict[str, Any]:
    """What decides the answers, field by field, as :func:`write_answers` notes it in the file.

    Args:
        prompts: Rows to answer.
        encoder: How prompts become tokens.
        config: How the teacher answers; the batch size is no part of it.
        teacher: What identifies the teacher.
        eos_ids: Ids that end an answer.
        vocab_size: Ids from here on never come; None: all may.

    Raises:
        SettingError: A prompt that cannot be used.
    """
    tasks = _tasks(prompts, encoder, config, None)
    return _made_with(tasks, config=config, teacher=teacher, eos_ids=eos_ids, vocab_size=vocab_size)


def read_answers(path: Path, *, expected_fingerprint: Mapping[str, Any] | None = None) -> list[Answer]:
    """Read the answers of a file that :func:`write_answers` made.

    Args:
        path: The file.
        expected_fingerprint: What they must have been made with (:func:`answers_fingerprint`).

    Raises:
        SettingError: No such file; not a file of answers; made with other settings, which are named.
    """
    import pyarrow.parquet

    path = Path(path)
    _, found = _metadata(path)
    if expected_fingerprint is not None:
        _same(found, expected_fingerprint, path)
    table = pyarrow.parquet.read_table(path)
    names = [field.name for field in fields(Answer)]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise SettingError(f"{path}: not a file of answers: it lacks the columns {', '.join(missing)}")
    return [
        Answer(
            **{
                **values,
                "prompt_tokens": tuple(values["prompt_tokens"]),
                "completion_tokens": tuple(values["completion_tokens"]),
            }
        )
        for values in table.select(names).to_pylist()
    ]


def answer_examples(answers: Sequence[Answer], encoder: Encoder) -> list[Example]:
    """Answers as examples, by their ids and not by their text: what was said is what is learnt.

    An answer that ``max_new_tokens`` cut off has no EOS, so its end teaches nothing about ending. One with no room
    left beside its prompt (``data.max_length``) is left out.

    Args:
        answers: Answers.
        encoder: Whose limits hold.
    """
    made = (
        encoder.example_from_tokens(answer.row, answer.prompt_tokens, answer.completion_tokens, answer.origin)
        for answer in answers
    )
    return [example for example in made if example is not None]


def _tasks(prompts: Sequence[Row], encoder: Encoder, config: GenerationConfig, model: Any) -> list[_Task]:
    samples = config.samples_per_prompt
    if samples > 1 and config.temperature == 0:
        warn(
            f"data.generation.samples_per_prompt = {samples} has no effect at temperature 0, where all answers to a "
            "prompt are one; making one each",
            SettingWarning,
            stacklevel=3,
        )
        samples = 1
    if not prompts:
        raise SettingError("there is no prompt to answer")
    settings = getattr(model, "config", None)
    context = getattr(settings, "max_position_embeddings", None)
    tasks = []
    for row, tokens in zip(prompts, encoder.prompts_tokens(prompts), strict=True):
        if tokens is None:
            continue
        if context is not None and len(tokens) >= context:
            raise SettingError(
                f"{row.where}: the prompt has {len(tokens)} tokens, which leaves no room for an answer in the "
                f"teacher's context of {context}; lower data.max_prompt_length"
            )
        tasks += [_Task(row, tokens, sample) for sample in range(samples)]
    if not tasks:
        raise SettingError("every prompt is over data.max_prompt_length, so there is none to answer; raise it")
    return tasks


def _made_with(
    tasks: Sequence[_Task], *, config: GenerationConfig, teacher: str, eos_ids: Sequence[int], vocab_size: int | None
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(f"{task.row.index}|{task.sample}|{','.join(map(str, task.tokens))}\n".encode())
    return {
        "teacher": teacher,
        "prompts": digest.hexdigest(),
        "max_new_tokens": config.max_new_tokens,
        "temperature": float(config.temperature),
        "top_p": float(config.top_p),
        "top_k": config.top_k,
        "samples_per_prompt": config.samples_per_prompt,
        "seed": config.seed,
        "eos_ids": sorted(set(map(int, eos_ids))),
        "vocab_size": vocab_size,
    }


def _same(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    differing = [name for name in expected if found.get(name) != expected[name]]
    if not differing:
        return
    shown = "; ".join(
        f"{name} is {_short(found.get(name))} in the file and {_short(expected[name])} now" for name in differing
    )
    raise SettingError(
        f"{path}: the answers were made with other settings ({shown}); set these back, or remove the file to have the "
        "answers made anew, or choose another output folder"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "…"


def _parts_folder(path: Path, made_with: Mapping[str, Any], config: GenerationConfig) -> Path:
    # The batch size decides which prompts share a part, so parts of another size are not those of this call.
    key = json.dumps({**made_with, "batch_size": config.batch_size}, sort_keys=True)
    return path.with_name(f".{path.name}.parts-{hashlib.sha256(key.encode()).hexdigest()[:12]}")


def _seed(seed: int, part: int) -> int:
    """A seed for each part, unrelated to its neighbours' and to those of other seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{part}".encode()).digest()[:4], "big")


def _answer(task: _Task, ids: list[int], encoder: Encoder, tokenizer: Any, eos_ids: Sequence[int]) -> Answer:
    finished = bool(ids) and ids[-1] in eos_ids
    bare = task.row.prompt
    return Answer(
        row=task.row.index,
        where=task.row.where,
        sample=task.sample,
        prompt=tokenizer.decode(task.tokens, clean_up_tokenization_spaces=False) if bare is None else bare,
        completion=encoder.completion_text(ids[:-1] if finished else ids),
        prompt_tokens=tuple(task.tokens),
        completion_tokens=tuple(ids),
        finished=finished,
    )


def _schema() -> Any:
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    return pyarrow.schema(
        [
            ("row", pyarrow.int64()),
            ("where", pyarrow.string()),
            ("sample", pyarrow.int32()),
            ("prompt", pyarrow.string()),
            ("completion", pyarrow.string()),
            ("prompt_tokens", ids),
            ("completion_tokens", ids),
            ("finished", pyarrow.bool_()),
            ("origin", pyarrow.string()),
        ]
    )


def _write_part(path: Path, answers: Sequence[Answer]) -> None:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([asdict(answer) for answer in answers], schema=_schema())
    pyarrow.parquet.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())


def _merge(parts: Sequence[Path], path: Path, made_with: Mapping[str, Any]) -> None:
    """Join part files under a temporary name; the target's name comes last."""
    import pyarrow.parquet

    schema = _schema().with_metadata({_METADATA: json.dumps(made_with, sort_keys=True).encode()})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for part in parts:
                writer.write_table(pyarrow.parquet.read_table(part).cast(schema))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _metadata(path: Path) -> tuple[int, dict[str, Any]]:
    """Number of answers in a file, and what they were made with."""
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise SettingError(f"{path}: there is no such file of answers; make it with `amidkd generate`")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            count, notes = file.metadata.num_rows, file.schema_arrow.metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise SettingError(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())})") from None
    if _METADATA not in notes:
        raise SettingError(f"{path}: not a file of answers: it does not say what they were made with")
    return count, json.loads(notes[_METADATA])
