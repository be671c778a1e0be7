"""A small real teacher behind `amidkd serve`, and a proxy that damages what passes through it."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import uvicorn

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.config import ServeConfig
from amidkd.data import Example, Sequences, collate
from amidkd.serving.app import make_app
from amidkd.serving.model import ServedModel, load_served
from amidkd.serving.worker import Worker
from tiny_world import make_model, make_tokenizer

VOCABULARY = 17


def save_teacher(folder: Path, *, seed: int = 0, model: Any = None) -> Path:
    """A model folder with a tokenizer of 17 tokens and a head that is wider."""
    made = make_model(width=16, layers=1, seed=seed, padded_vocab=24) if model is None else model
    made.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def random_batch(seed: int, rows: int = 5, *, longest: int = 30) -> Sequences:
    """Rows of random tokens and lengths, the last of them without a supervised token."""
    numbers = torch.Generator().manual_seed(seed)
    examples = []
    for row in range(rows):
        length = int(torch.randint(4, longest, (1,), generator=numbers))
        tokens = torch.randint(0, VOCABULARY, (length,), generator=numbers).tolist()
        supervised = (False, *(torch.rand(length - 1, generator=numbers) < 0.6).tolist())
        examples.append(Example(tuple(tokens), supervised if row < rows - 1 else (False,) * length, row=row))
    return collate(examples, pad_id=0)


@dataclass
class Serving:
    """A server in a thread."""

    url: str
    port: int
    model: ServedModel
    worker: Worker


@contextmanager
def serving(folder: Path, *, token: str | None = None, **settings: Any) -> Iterator[Serving]:
    """Serve a model folder on a free port until the block ends."""
    config = ServeConfig(**settings)
    model = load_served(LiveTeacherConfig(model=str(folder)), config)
    worker = Worker(model.teacher, batch_tokens=config.batch_tokens)
    app = make_app(model, worker, token=token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield Serving(f"http://127.0.0.1:{port}", port, model, worker)
        finally:
            server.should_exit = True
            thread.join()
            worker.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def started(folder: Path, port: int, *overrides: str) -> subprocess.Popen[str]:
    """``amidkd serve`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "amidkd", "serve", str(folder), f"serve.port={port}", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


Damage = Callable[[str, bytes], "bytes | int | None"]
"""From the path and the body of an answer to what is sent: a body; its beginning alone (so many bytes); nothing."""


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, damage: Damage) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.damage = port, damage


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy

    def do_GET(self) -> None:
        self._pass_on("GET")

    def do_POST(self) -> None:
        self._pass_on("POST")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _pass_on(self, method: str) -> None:
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=20)
            connection.request(method, self.path, body or None, {"Content-Type": self.headers["Content-Type"]})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
            connection.close()
        except (OSError, http.client.HTTPException):
            return
        sent = self.server.damage(self.path, content) if status == 200 else content
        if sent is None:
            return
        whole = content if isinstance(sent, int) else sent
        self.send_response(status)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[:sent] if isinstance(sent, int) else whole)


@contextmanager
def damaging(port: int, damage: Damage) -> Iterator[str]:
    """A proxy in front of a server."""
    with _Proxy(port, damage) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join()
