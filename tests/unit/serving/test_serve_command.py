"""`amidkd serve` as a command: what it reads, how it starts, how it stops."""

import builtins
import http.client
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from amidkd.cli import main
from amidkd.config import load, load_serving
from amidkd.errors import SettingError
from amidkd.teachers.served.protocol import BINARY, ScoredRow, Wish, pack_request
from serving_world import free_port, started, wait_until


def test_run_file_or_model_folder(teacher_folder: Path, tmp_path: Path) -> None:
    for text in (
        f"teacher: {teacher_folder}\nserve: {{port: 9}}\n",
        f"teacher: {{kind: cached, model: {teacher_folder}}}\nserve: {{port: 9}}\nstudent: nonsense\n",
    ):
        (tmp_path / "run.yaml").write_text(text)
        for source in (tmp_path, tmp_path / "run.yaml"):
            model, settings = load_serving(source)
            assert (model.model, settings.port) == (str(teacher_folder), 9)
    model, settings = load_serving(teacher_folder, ["serve.port=10", "teacher.dtype=bfloat16"])
    assert (model.model, model.dtype, settings.port) == (str(teacher_folder), "bfloat16", 10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["serve.prot=1"], "serve.prot: unknown key; did you mean 'port'"),
        (["serve.host=0.0.0.0"], r"other machines.*serve.token_variable, or serve.open=true"),
        (["serve.port=70000"], "serve.port"),
        (["teacher.kind=served", "teacher.model=null"], "names no model to load"),
    ],
)
def test_settings_that_cannot_be(teacher_folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_serving(teacher_folder, overrides)


def test_listening_beyond_this_machine_is_asked_for(teacher_folder: Path) -> None:
    for setting in ("serve.open=true", "serve.token_variable=TOKEN"):
        assert load_serving(teacher_folder, ["serve.host=0.0.0.0", setting])[1].host == "0.0.0.0"


def test_a_run_file_may_hold_the_section(repository: Path) -> None:
    assert load(repository / "recipes" / "g2p.yaml", ["serve.port=9"]).serve.port == 9


def test_what_keeps_it_from_starting(
    teacher_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(teacher_folder), f"serve.port={port}"]) == 2
    assert f"serve.port: {port} is taken" in capsys.readouterr().err
    assert main(["serve", str(teacher_folder), "serve.token_variable=NO_SUCH_TOKEN"]) == 2
    assert "NO_SUCH_TOKEN" in capsys.readouterr().err
    inner = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "fastapi":
            raise ModuleNotFoundError("no fastapi", name="fastapi")
        return inner(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["serve", str(teacher_folder), "serve.port=0"]) == 2
    assert "pip install 'amidkd[serve]'" in capsys.readouterr().err


def test_it_stops_when_told_to_and_answers_what_is_under_way(teacher_folder: Path) -> None:
    body = pack_request([ScoredRow(torch.tensor([1, 5, 6, 7]), torch.tensor([0, 2]))], Wish("top_k", 4, 17))
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {BINARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    numbers = (signal.SIGTERM, signal.SIGINT)
    running = {number: (started(teacher_folder, port := free_port()), port) for number in numbers}
    for number, (process, port) in running.items():
        assert process.stdout is not None
        assert process.stdout.readline() == f"Serving {teacher_folder} at http://127.0.0.1:{port}\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            line.sendall(head.encode() + body[:-1])
            assert _health(port) == 200
            process.send_signal(number)
            wait_until(lambda port=port: _health(port) == 0)
            line.sendall(body[-1:])
            assert line.recv(1000).startswith(b"HTTP/1.1 200 ")
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, "Traceback" in errors) == (0, False), errors


def _health(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
