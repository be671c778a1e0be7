"""Trying again: which failures, how long the pauses, and what a new try is told."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from amidkd.errors import SettingError
from amidkd.transport import PassingError, RefusedError, Server, persist

ANSWERS = {
    "/good": (200, b"yes", {}),
    "/busy": (503, b'{"detail": "come back"}', {"Retry-After": "7"}),
    "/odd": (503, b"", {"Retry-After": "soon"}),
    "/limited": (429, b'{"error": {"message": "slowly"}}', {}),
    "/wrong": (422, b'{"detail": "a token"}', {}),
    "/moved": (307, b"", {"Location": "/good"}),
    "/cut": (200, b"ye", {"Content-Length": "3"}),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, content, headers = ANSWERS[self.path]
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Server(f"http://127.0.0.1:{running.server_address[1]}", section="x", token_variable=None, timeout=10)
        running.shutdown()
        thread.join()


def test_a_whole_answer(server: Server) -> None:
    content, headers = server.send("GET", "/good")
    assert (content, headers["content-length"]) == (b"yes", "3")


@pytest.mark.parametrize(
    ("path", "message", "gone", "wait"),
    [
        ("/busy", "status 503: come back", True, 7.0),
        ("/odd", "status 503: no message", True, 0.0),
        ("/limited", "status 429: slowly", False, 0.0),
        ("/cut", "IncompleteRead", True, 0.0),
    ],
)
def test_what_may_pass(server: Server, path: str, message: str, gone: bool, wait: float) -> None:
    with pytest.raises(PassingError, match=message) as caught:
        server.send("GET", path)
    assert (caught.value.gone, caught.value.wait) == (gone, wait)


@pytest.mark.parametrize(("path", "status"), [("/wrong", 422), ("/moved", 307)])
def test_what_will_not_pass(server: Server, path: str, status: int) -> None:
    with pytest.raises(RefusedError, match=str(status)) as caught:
        server.send("GET", path)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "url", ["host:80", "ftp://host", "http://", "http://host:port", "http://host/v1", "http://h?q"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(SettingError, match=r"teacher\.url"):
        Server(url, section="teacher", token_variable=None, timeout=1)


def test_pauses_double_and_heed_the_server() -> None:
    failures = iter([PassingError("1"), PassingError("2"), PassingError("3", wait=30.0), PassingError("4")])
    pauses: list[float] = []

    def once() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert persist(once, tries=5, pause=pauses.append) == "done"
    assert pauses == [1.0, 2.0, 30.0, 8.0]


def test_the_last_failure_is_told() -> None:
    failures = iter(range(3))

    def once() -> None:
        raise PassingError(f"failure {next(failures)}")

    with pytest.raises(PassingError, match="failure 2"):
        persist(once, tries=3, pause=lambda seconds: None)


def test_a_server_that_was_away_is_met_anew_before_the_next_try() -> None:
    events: list[str] = []

    def once() -> str:
        events.append("once")
        if events.count("once") == 1:
            raise PassingError("away", gone=True)
        return "done"

    def back(since: float) -> None:
        events.append("back")
        if events.count("back") == 1:
            raise PassingError("not yet")

    assert persist(once, tries=3, pause=lambda seconds: None, back=back) == "done"
    assert events == ["once", "back", "back", "once"]
