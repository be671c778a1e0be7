"""Meeting a teacher's server: who it is, whether it shares the student's tokens, and whether it answers."""

import atexit
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from amidkd.config import ServedTeacher as ServedTeacherConfig
from amidkd.errors import SettingError, TeacherError
from amidkd.models import load_tokenizer
from amidkd.teachers.base import Teacher
from amidkd.teachers.served.answers import check_model, read_head, read_info, read_whole
from amidkd.teachers.served.client import ServedTeacher
from amidkd.teachers.served.http import TeacherClient
from amidkd.teachers.vocabulary import prove_same_vocabulary

__all__ = ["connect", "fetch_tokenizer"]


def connect(config: ServedTeacherConfig, *, student_tokenizer: Any, device: Any = None) -> Teacher:
    """Meet a served teacher and prove that it shares the student's vocabulary.

    Args:
        config: The run file's ``teacher``.
        student_tokenizer: What the sequences are made with.
        device: The student's device.

    Raises:
        SettingError: What answers is no such server; the tokenizers differ; the server cannot do what is asked.
        TeacherError: Nothing answers.
    """
    if config.api == "vllm":
        from amidkd.teachers.served.vllm import connect_vllm

        return connect_vllm(config, student_tokenizer=student_tokenizer, device=device)
    closing = threading.Event()
    client = TeacherClient(config, pause=lambda seconds: _wait(closing, seconds))
    info = _ask_info(client)
    if config.model is None:
        with tempfile.TemporaryDirectory() as folder:
            _write_tokenizer(client, info, Path(folder))
            tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    else:
        tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    shared = prove_same_vocabulary(teacher=tokenizer, student=student_tokenizer)
    _check_settings(config, info, shared)
    head = None
    if config.format == "hidden":
        facts: dict[str, Any] = {"fingerprint": info["fingerprint"], "width": info["width"]}
        head = client.ask("GET", "/head", read=lambda *answer: read_head(*answer, **facts))
    teacher = ServedTeacher(client, info, vocab_size=shared, config=config, head=head, closing=closing)
    try:
        teacher.probe()
    except BaseException:
        teacher.close()
        raise
    return teacher


def fetch_tokenizer(config: ServedTeacherConfig) -> Path:
    """A server's tokenizer, as a folder that lasts as long as this process.

    Args:
        config: The run file's ``teacher``; with ``api: amidkd``.

    Raises:
        SettingError: What answers is no such server.
        TeacherError: Nothing answers.
    """
    client = TeacherClient(config)
    info = _ask_info(client)
    folder = Path(tempfile.mkdtemp(prefix="amidkd-tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _write_tokenizer(client, info, folder)
    return folder


def _ask_info(client: TeacherClient) -> dict[str, Any]:
    return client.ask("GET", "/info", read=lambda *answer: read_info(*answer, url=client.url))


def _write_tokenizer(client: TeacherClient, info: dict[str, Any], folder: Path) -> None:
    files, facts = client.ask("GET", "/tokenizer", read=lambda *answer: read_whole(*answer, question="tokenizer"))
    check_model(facts, info["fingerprint"])
    for name, content in files.items():
        # The server is trusted with the teacher, not with this machine's files.
        if Path(name).name != name or name.startswith(".") or content.dtype != torch.uint8:
            raise SettingError(f"teacher.url: {client.url} sends a tokenizer file of the name {name!r}")
        (folder / name).write_bytes(content.numpy().tobytes())


def _check_settings(config: ServedTeacherConfig, info: dict[str, Any], shared: int) -> None:
    """Refuse what the server would refuse at the first step."""
    if shared > info["width"]:
        raise SettingError(
            f"teacher: its head has {info['width']} rows, but its tokenizer shares {shared} ids with the student; use "
            "the tokenizer that the model was trained with"
        )
    if config.format not in info["formats"]:
        raise SettingError(f"teacher.format: {config.format}; the server at {config.url} gives top_k alone")
    top_k = min(config.top_k, shared)
    if config.format == "top_k" and top_k > info["max_top_k"]:
        raise SettingError(
            f"teacher.top_k: {top_k}; the server at {config.url} gives at most {info['max_top_k']} (serve.max_top_k)"
        )


def _wait(closing: threading.Event, seconds: float) -> None:
    """A pause that ends with the teacher, so that no thread goes on asking after it."""
    if closing.wait(seconds):
        raise TeacherError("the teacher was closed")
