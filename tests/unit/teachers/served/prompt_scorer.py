"""A small HTTP server that scores prompts as vLLM does, with a real model, and misbehaves when told to.

It knows only what is asked of it: an unknown page is 404, an unknown or missing field 400.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

FIXED = {
    "model": "served", "n": 1, "max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "add_special_tokens": False,
    "return_token_ids": True, "stream": False,
}  # fmt: skip


class Scorer:
    """The server's state.

    ``faults`` are taken one a completion, from the front: a status, ``truncate`` (half the JSON in a whole body),
    ``close`` (half a body, then the connection is closed), or a function that changes the answer's choices.
    """

    def __init__(self, model: Any, *, max_logprobs: int = 20, context: int = 64) -> None:
        self.model, self.max_logprobs, self.context = model, max_logprobs, context
        self.bos: int | None = None
        self.logits = False
        self.echo = True
        self.names = ["served"]
        self.faults: list[int | str | Callable[[list[dict[str, Any]]], Any]] = []
        self.always: Callable[[list[dict[str, Any]]], Any] | None = None
        self.bodies: list[dict[str, Any]] = []
        self.trouble: list[BaseException | None] = []
        self.delay = 0.0
        self._lock, self._port = threading.Lock(), 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen; again at the same port after ``stop``."""
        self._server = _Server(("127.0.0.1", self._port), type("Bound", (_Handler,), {"scorer": self}))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Close the port: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, method: str, path: str, body: Any) -> Any:
        if (method, path) == ("GET", "/v1/models"):
            adapter = {"id": "an-adapter", "parent": "served"}
            return {"object": "list", "data": [adapter, *({"id": name, "parent": None} for name in self.names)]}
        need((method, path) == ("POST", "/v1/completions"), "Not Found", 404)
        self.bodies.append(body)
        need(set(body) == {*FIXED, "prompt", "prompt_logprobs"}, f"fields {sorted(body)}")
        for name, value in FIXED.items():
            need(type(body[name]) is type(value) and body[name] == value, f"{name} is {body[name]!r}, not {value!r}")
        k = body["prompt_logprobs"]
        need(k <= self.max_logprobs, f"Requested prompt logprobs of {k}, which is greater than max {self.max_logprobs}")
        for prompt in body["prompt"]:
            need(all(type(token) is int for token in prompt) and len(prompt) > 0, "a prompt is no list of ids")
            need(len(prompt) < self.context, f"This model's maximum context length is {self.context} tokens")
        time.sleep(self.delay)
        with self._lock:
            choices = [self._choice(index, prompt, k) for index, prompt in enumerate(body["prompt"])]
            fault = self.faults.pop(0) if self.faults else self.always
        if callable(fault):
            fault(choices)
        need(not isinstance(fault, int), f"asked to fail with {fault}", fault if isinstance(fault, int) else 0)
        # As batches end, so do their choices: in any order.
        return {"object": "text_completion", "model": "served", "choices": choices[::-1]}, fault

    def _choice(self, index: int, prompt: list[int], k: int) -> dict[str, Any]:
        ids = prompt if self.bos is None else [self.bos, *prompt]
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0]
        numbers = logits if self.logits else logits.log_softmax(-1)
        entries: list[dict[str, Any] | None] = [None]
        for place, token in enumerate(ids[1:]):
            said = numbers[place]
            rank = 1 + int((said > said[token]).sum())
            entry = {str(token): {"logprob": clamped(said[token]), "rank": rank, "decoded_token": "x"}}
            for number, one in enumerate(said.topk(k).indices.tolist(), start=1):
                entry[str(one)] = {"logprob": clamped(said[one]), "rank": number, "decoded_token": "x"}
            entries.append(entry)
        found = {"index": index, "text": "y", "prompt_logprobs": entries, "finish_reason": "length"}
        return {**found, "prompt_token_ids": ids, "token_ids": [1]} if self.echo else found


def clamped(value: torch.Tensor) -> float:
    """As vLLM sends it: −∞ is no JSON."""
    return max(float(value), -9999.0)


class WrongError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def need(right: bool, message: str, status: int = 400) -> None:
    if not right:
        raise WrongError(status, message)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A fault of this server's own fails the test that asked it."""
        self.RequestHandlerClass.scorer.trouble.append(sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    scorer: Scorer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve("GET", None)

    def do_POST(self) -> None:
        self._serve("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def _serve(self, method: str, body: Any) -> None:
        fault = None
        try:
            value, status = self.scorer.answer(method, self.path, body), 200
            if isinstance(value, tuple):
                value, fault = value
        except WrongError as error:
            value, status = {"error": {"message": str(error)}}, error.status
        content = json.dumps(value).encode()
        if fault == "truncate":
            content = content[: len(content) // 2]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "close" else content)
        self.close_connection = self.close_connection or fault == "close"
