"""The live page on loopback: one page, and server-sent events."""

import errno
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, final
from urllib.parse import parse_qs, urlsplit

from amidkd.errors import SettingError
from amidkd.watch.page import LivePage
from amidkd.watch.view import Follower

__all__ = ["PageServer", "serve_page"]

_HOST = "127.0.0.1"
_SECONDS_BETWEEN_SIGNS = 10.0


@final
class PageServer(ThreadingHTTPServer):
    """Serves one page to browsers on this machine.

    Args:
        page: The page.
        port: Where; 0 for any free one.

    Raises:
        SettingError: The port is taken, or not allowed.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        if not 0 <= port < 65536:
            raise SettingError(f"--port: must be within 0 to 65535; got {port}")
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use" if error.errno == errno.EADDRINUSE else "is not allowed"
            raise SettingError(f"--port: {port} {why} on this machine; leave --port out for a free one") from None

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{_HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that is gone is no error."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """``/`` and ``/events``."""

    protocol_version = "HTTP/1.1"
    server_version = "amidkd"
    sys_version = ""
    server: PageServer
    _HEADERS: ClassVar = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
    }

    def do_GET(self) -> None:
        """The page, or its events."""
        # A page of another site whose name was made to lead here must not read along.
        allowed = {f"{name}:{self.server.server_port}" for name in (_HOST, "localhost")}
        if self.headers.get("Host") not in allowed:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"Open {self.server.url} instead.")
            return
        address = urlsplit(self.path)
        if address.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page.html())
        elif address.path == "/events":
            self._stream(parse_qs(address.query).get("since", [""])[0])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"There is only {self.server.url}")

    def _stream(self, since: str) -> None:
        self.close_connection = True
        self._head(HTTPStatus.OK, "text/event-stream; charset=utf-8", {"Connection": "close"})
        with self.server.page.events(self.headers.get("Last-Event-ID") or since) as events:
            while (event := events.next(_SECONDS_BETWEEN_SIGNS)) is not None:
                self.wfile.write(event.encode())
                self.wfile.flush()

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", text + "\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self._head(status, kind, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind} | self._HEADERS | more).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are nobody's news."""


def serve_page(follower: Follower, *, port: int, ready: Callable[[str], None]) -> None:
    """Serve the live page until interrupted.

    Args:
        follower: Looks at the run.
        port: Where; 0 for any free one.
        ready: Told the address, once it answers.

    Raises:
        SettingError: The port cannot be had.
    """
    page = LivePage(follower)
    server = PageServer(page, port)
    answering = threading.Thread(target=server.serve_forever, name="amidkd watch: answers", daemon=True)
    try:
        page.look()
        answering.start()
        ready(server.url)
        page.run()
    except KeyboardInterrupt:
        pass
    finally:
        page.close()
        if answering.is_alive():
            server.shutdown()
        server.server_close()
