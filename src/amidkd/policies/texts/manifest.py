"""``manifest.json``: what a folder of text was made with, field by field, and whether it is complete."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amidkd.config import GenerationConfig
from amidkd.data import Encoder, Origin, Row
from amidkd.errors import SettingError
from amidkd.record import TEXT_MANIFEST, check_made_with, versions, write_json
from amidkd.teachers.vocabulary import vocabulary_fingerprint

__all__ = [
    "Manifest",
    "TextSettings",
    "check_same",
    "identity",
    "information",
    "is_complete",
    "made_with",
    "read_manifest",
    "sampled_with",
    "write_manifest",
]

_SETTINGS = {
    "origin": "policy.writer",
    "writer": "the model that writes",
    "tokenizer": "the student's tokenizer",
    "prompt_template": "data.prompt_template",
    "completion_template": "data.completion_template",
    "chat_template": "the tokenizer's chat template",
    "prompts": "the rows of data.train and how they become prompts",
}


@dataclass(frozen=True)
class TextSettings:
    """Who writes, and how.

    Args:
        writer: What identifies the model (``LiveTeacher.fingerprint()``).
        origin: Whether it is the teacher or the student.
        name: The model's folder or hub name, for information.
        tokenizer: The student's tokenizer.
        encoder: How prompts become tokens.
        config: How the model is sampled; batch size and engine do not decide what comes out.
        eos_ids: Ids that end an answer.
        vocab_size: Ids from here on never come; None: all may.
        context: Positions that the model has; None: no limit.
    """

    writer: str
    origin: Origin
    name: str
    tokenizer: Any
    encoder: Encoder
    config: GenerationConfig
    eos_ids: Sequence[int]
    vocab_size: int | None
    context: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds.

    Args:
        made_with: What decides the text, field by field.
        information: Versions and names; they may differ.
        answers: Answers in the whole folder.
        shards: Shards in the whole folder.
        shard_size: Answers of each shard but the last.
        complete: Whether all shards are there.
    """

    made_with: dict[str, Any]
    information: dict[str, Any]
    answers: int
    shards: int
    shard_size: int
    complete: bool


def identity(
    prompts: Iterable[tuple[Row, Sequence[int]]],
    *,
    origin: Origin,
    writer: str | None,
    tokenizer: Any,
    encoder: Encoder,
) -> dict[str, Any]:
    """Whose text it is, and to which prompts.

    Args:
        prompts: The rows that are answered, with the ids of their prompts.
        origin: Who writes.
        writer: What identifies the model; None: left out.
        tokenizer: The student's tokenizer.
        encoder: How prompts became tokens.
    """
    digest = hashlib.sha256()
    bare = talks = False
    for row, ids in prompts:
        digest.update(f"{row.index}|{','.join(map(str, ids))}\n".encode())
        bare, talks = bare or row.prompt is not None, talks or row.messages is not None
    return {
        "origin": origin,
        **({} if writer is None else {"writer": writer}),
        "tokenizer": vocabulary_fingerprint(tokenizer),
        "prompt_template": encoder.config.prompt_template if bare else None,
        "chat_template": _hash(str(tokenizer.chat_template)) if talks else None,
        "prompts": digest.hexdigest(),
    }


def made_with(prompts: Iterable[tuple[Row, Sequence[int]]], settings: TextSettings) -> dict[str, Any]:
    """What decides the text, field by field: :func:`identity`, and how it is sampled.

    Args:
        prompts: The rows that are answered, with the ids of their prompts.
        settings: Who writes, and how.
    """
    config, encoder = settings.config, settings.encoder
    return {
        **identity(
            prompts, origin=settings.origin, writer=settings.writer, tokenizer=settings.tokenizer, encoder=encoder
        ),
        "completion_template": encoder.config.completion_template,
        **sampled_with(config),
        "eos_ids": sorted(set(map(int, settings.eos_ids))),
        "vocab_size": settings.vocab_size,
    }


def sampled_with(config: GenerationConfig) -> dict[str, Any]:
    """How text is sampled, field by field.

    Args:
        config: The run file's ``data.generation``.
    """
    return {
        "samples_per_prompt": config.samples_per_prompt,
        "max_new_tokens": config.max_new_tokens,
        "temperature": float(config.temperature),
        "top_p": float(config.top_p),
        "top_k": config.top_k,
        "seed": config.seed,
    }


def information(settings: TextSettings) -> dict[str, Any]:
    """What is worth knowing of a folder and decides nothing.

    Args:
        settings: Who writes, and how.
    """
    return {"model": settings.name, "engine": settings.config.engine.kind, "versions": versions()}


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, *, fix: str) -> None:
    """Refuse text that other settings made.

    Args:
        found: ``made_with`` of the folder.
        expected: The fields that must agree.
        folder: The folder.
        fix: What to do.

    Raises:
        SettingError: With every field that differs, there and now.
    """
    check_made_with(found, expected, what=f"{folder}: its text", title=_named, fix=fix)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of text.

    Args:
        folder: The folder.

    Raises:
        SettingError: There is none, or it is none of ours.
    """
    path = folder / TEXT_MANIFEST
    if not path.is_file():
        raise SettingError(f"{folder}: no folder of written text ({TEXT_MANIFEST}); make it with `amidkd generate`")
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SettingError(f"{path}: not the manifest of written text ({error})") from None


def is_complete(folder: Path) -> bool:
    """Whether a folder holds written text, all of it.

    Args:
        folder: The folder; it need not be there.
    """
    return (folder / TEXT_MANIFEST).is_file() and read_manifest(folder).complete


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically.

    Args:
        folder: The folder.
        manifest: What it is to hold.
    """
    write_json(folder / TEXT_MANIFEST, asdict(manifest))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _named(name: str) -> str:
    return f"{name} ({_SETTINGS[name]})" if name in _SETTINGS else f"data.generation.{name}"
