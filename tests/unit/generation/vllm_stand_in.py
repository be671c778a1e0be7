"""A small HTTP server that speaks vLLM's protocol, runs a real model, and misbehaves when told to.

It knows only what is asked of it: an unknown page is 404, an unknown or missing field 400. As in vLLM, the prefix cache
outlives new weights: until it is reset, answers are those of the old ones.

By itself: ``python vllm_stand_in.py MODEL [--port 0] [--die-after N]`` prints its address and serves; with
``--die-after`` it dies, without a word, in the midst of the answer after N good ones.
"""

import argparse
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from amidkd.models import generate, load_model, load_tokenizer

NAME = "served-model"
Number = (int, float)
# What a completion request must hold, no more and no less; "seed" with sampling, "logit_bias" with a padded head.
FIELDS: dict[str, Any] = {
    "model": str, "prompt": list, "n": int, "max_tokens": int, "temperature": Number, "top_p": Number, "top_k": int,
    "min_p": Number, "repetition_penalty": Number, "presence_penalty": Number, "frequency_penalty": Number,
    "stop_token_ids": list, "ignore_eos": bool, "skip_special_tokens": bool, "add_special_tokens": bool,
    "return_token_ids": bool, "stream": bool,
}  # fmt: skip
FIXED = {
    "model": NAME, "n": 1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "ignore_eos": True, "skip_special_tokens": False, "add_special_tokens": False, "return_token_ids": True,
    "stream": False,
}  # fmt: skip


class WrongError(Exception):
    """The request is answered with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StandIn:
    """The server's state. Faults are taken one a completion, from the front.

    A fault is a status (an error with it), ``close`` (half a body, then the connection is closed), ``truncate`` (half
    the JSON in a whole body), ``die`` (the whole process), or a function that changes an answer.
    """

    def __init__(self, folder: Path, *, context: int | None = None, port: int = 0, wire: Any = None) -> None:
        self.folder, self.wire = folder, wire
        self.token: str | None = None
        self.frames = True
        self.faults: list[int | str | Callable[[dict[str, Any]], Any]] = []
        self.calls: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.loaded: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.die_after: int | None = None
        self.delay = 0.0
        self._lock, self._context, self._port = threading.Lock(), context, port
        self._tokenizer = load_tokenizer(folder)
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, with the first weights; again at the same port after ``stop``. Nothing to do while it listens."""
        if self._server is not None:
            return
        self._model = self._next = load_model(self.folder)
        room = self._model.config.max_position_embeddings
        self._room = room if self._context is None else self._context
        handler = type("Bound", (_Handler,), {"stand_in": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Close the port: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """The value of one page; None is an empty body."""
        with self._lock:
            self.calls[path] += 1
        if (method, path) == ("GET", "/health"):
            return None
        if (method, path) == ("GET", "/v1/models"):
            adapter = {"id": "an-adapter", "object": "model", "parent": NAME, "max_model_len": None}
            card = {"id": NAME, "object": "model", "parent": None, "max_model_len": self._room}
            return {"object": "list", "data": [adapter, card]}
        if (method, path) == ("POST", "/reset_prefix_cache"):
            need(query == {"reset_running_requests": ["true"]}, f"query {query}")
            self._model = self._next
            return {"success": True}
        if (method, path) == ("POST", "/collective_rpc"):
            return self._reload(body)
        if (method, path) == ("POST", "/tokenize"):
            need(set(body) == {"model", "prompt", "add_special_tokens"} and body["model"] == NAME, f"fields {body}")
            tokens = self._tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
            return {"count": len(tokens), "max_model_len": self._room, "tokens": tokens}
        if (method, path) == ("POST", "/v1/completions"):
            return self._complete(body)
        if self.wire is not None:
            return self._transfer(method, path, body)
        raise WrongError(404, "Not Found")

    def _reload(self, body: Any) -> Any:
        need(set(body) == {"method", "kwargs"} and body["method"] == "reload_weights", f"fields {body}")
        need(set(body["kwargs"]) == {"weights_path"}, f"kwargs {body['kwargs']}")
        path = Path(body["kwargs"]["weights_path"])
        if not (path / "config.json").is_file():
            raise WrongError(500, f"no weights at {path}")
        self.loaded.append(path.name)
        self._next = load_model(path)
        return {"results": [None]}

    def _transfer(self, method: str, path: str, body: Any) -> Any:
        """vLLM's own weight transfer; ``wire`` is between this and the trainer's communicator."""
        if (method, path) == ("GET", "/get_world_size"):
            return {"world_size": 2}
        if (method, path) == ("POST", "/init_weight_transfer_engine"):
            other = self.wire.joined.get(timeout=20)
            need(other.pop("rank") == 0, "the trainer is rank 0")
            need(body == {"init_info": {**other, "rank_offset": 1}} and other["world_size"] == 3, f"init {body}")
            return {"message": "Weight transfer initialized"}
        if (method, path) == ("POST", "/update_weights"):
            info = body["update_info"]
            need(set(info) == {"names", "dtype_names", "shapes"}, f"fields {set(info)}")
            state = {}
            for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
                tensor = self.wire.tensors.get(timeout=20)
                need(f"torch.{dtype}" == str(tensor.dtype) and shape == list(tensor.shape), f"{name} is another")
                state[name] = tensor
            self._next = load_model(self.folder)
            self._next.load_state_dict(state, strict=True)
            return {"message": "Weights updated"}
        if self.frames and (method, path) in (("POST", "/start_weight_update"), ("POST", "/finish_weight_update")):
            return {"message": "done"}
        raise WrongError(404, "Not Found")

    def _complete(self, body: Any) -> dict[str, Any]:
        vocab = self._check(body)
        with self._lock:
            self.bodies.append(body)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        time.sleep(self.delay)
        with self._lock:
            self.in_flight -= 1
            (ids,) = generate(
                self._model,
                [body["prompt"]],
                eos_ids=body["stop_token_ids"],
                pad_id=0,
                max_new_tokens=body["max_tokens"],
                temperature=body["temperature"],
                top_p=body["top_p"],
                top_k=body["top_k"],
                batch_size=1,
                seed=body.get("seed", 0),
                vocab_size=vocab,
            )
        ended = ids[-1] in body["stop_token_ids"]
        choice = {
            "index": 0,
            "text": self._tokenizer.decode(ids),
            "logprobs": None,
            "finish_reason": "stop" if ended else "length",
            "stop_reason": ids[-1] if ended else None,
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
        }
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return {"id": "cmpl-1", "object": "text_completion", "model": NAME, "choices": [choice], "usage": usage}

    def _check(self, body: Any) -> int:
        """Every field of a completion request; gives the vocabulary that the bias leaves."""
        need(isinstance(body, dict), "the body is no object")
        kinds = {**FIELDS, **({"seed": int} if body.get("temperature") else {})}
        head = self._model.config.vocab_size
        kinds |= {"logit_bias": dict} if "logit_bias" in body else {}
        need(set(body) == set(kinds), f"fields {sorted(set(body) ^ set(kinds))} are unknown or missing")
        for name, kind in kinds.items():
            right = isinstance(body[name], kind) and (kind is bool or not isinstance(body[name], bool))
            need(right, f"{name} is {body[name]!r}")
        for name, value in FIXED.items():
            need(body[name] == value, f"{name} is {body[name]!r}, not {value!r}")
        need(body["temperature"] >= 0 and 0 < body["top_p"] <= 1 and body["top_k"] >= 0, "sampling out of range")
        need(body["max_tokens"] >= 1 and 0 <= body.get("seed", 0) < 2**63, "max_tokens or seed out of range")
        for name in ("prompt", "stop_token_ids"):
            need(all(type(token) is int for token in body[name]), f"{name} is no list of ids")
        need(bool(body["prompt"]), "the prompt is empty")
        need(max(body["prompt"]) < head, f"Token id {max(body['prompt'])} is out of vocabulary")
        need(len(body["prompt"]) + body["max_tokens"] <= self._room, f"maximum context length is {self._room} tokens")
        bias = body.get("logit_bias", {})
        first = head - len(bias)
        need(bias == {str(token): -100.0 for token in range(first, head)}, f"logit_bias {bias}")
        return first


def need(right: bool, message: str) -> None:
    if not right:
        raise WrongError(400, message)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve("GET", None)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._serve("POST", self.rfile.read(length))

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def _serve(self, method: str, data: bytes | None) -> None:
        parts = urlsplit(self.path)
        stand_in, completion = self.stand_in, parts.path == "/v1/completions"
        try:
            if stand_in.token is not None and self.headers.get("Authorization") != f"Bearer {stand_in.token}":
                raise WrongError(401, "Unauthorized")
            value = stand_in.answer(method, parts.path, parse_qs(parts.query), json.loads(data) if data else None)
            if completion and stand_in.die_after is not None and stand_in.calls[parts.path] > stand_in.die_after:
                stand_in.faults[:0] = ["die"]
            fault = stand_in.faults.pop(0) if completion and stand_in.faults else None
            if isinstance(fault, int):
                raise WrongError(fault, f"asked to fail with {fault}")
            if callable(fault):
                value = fault(value)
            content = b"" if value is None else json.dumps(value).encode()
            if fault == "truncate":
                content = content[: len(content) // 2]
            self._send(200, content, half=fault in ("close", "die"), die=fault == "die")
        except WrongError as error:
            body = {"error": {"message": str(error), "type": "BadRequestError", "code": error.status}}
            self._send(error.status, json.dumps(body).encode())

    def _send(self, status: int, content: bytes, *, half: bool = False, die: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        self.wfile.flush()
        if die:
            os._exit(1)
        self.close_connection = self.close_connection or half


def main() -> None:
    parser = argparse.ArgumentParser(description="Stand-in for `vllm serve`.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--die-after", type=int, default=None)
    given = parser.parse_args()
    stand_in = StandIn(given.model, port=given.port)
    stand_in.die_after = given.die_after
    print(stand_in.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
