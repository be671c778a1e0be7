"""A judge of answers behind a real server with the shape of OpenAI's, whose character a test chooses."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from amidkd.config import JudgeConfig

Judgement = Callable[[str, str, list[dict]], str]


@contextmanager
def judging(judgement: Judgement, **settings: Any) -> Iterator[tuple[JudgeConfig, list[dict]]]:
    """A server that judges by a function of answer A, answer B and the whole conversation."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**body, "path": self.path, "authorization": self.headers.get("Authorization")})
            text = body["messages"][1]["content"] if len(body["messages"]) > 1 else ""
            a, b = (
                (text.split(f"[Answer {name}]\n", 1)[1].split(f"\n[End of answer {name}]")[0] for name in "AB")
                if text
                else ("", "")
            )
            try:
                status, reply = 200, judgement(a, b, body["messages"])
                content = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
            except ValueError as error:
                status, content = int(str(error).split()[0]), {"error": {"message": str(error)}}
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield JudgeConfig(url=f"http://127.0.0.1:{server.server_port}/v1", model="judge-1", **settings), seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def longer(a: str, b: str, _: list[dict]) -> str:
    return f"By length.\n[[{'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'C'}]]"
