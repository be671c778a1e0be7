"""HTTP to a vLLM server: one request at a time, tried again with growing pauses where that can help."""

import http.client
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, final
from urllib.parse import urlsplit

from amidkd.config.policy import VllmEngine
from amidkd.errors import SettingError
from amidkd.generation.base import GenerationError

__all__ = ["RefusedError", "VllmClient"]

_LONGEST_PAUSE = 60.0
_TOO_MANY = 429


class RefusedError(GenerationError):
    """The server understood and said no (a status from 300 to 499 other than 429). Asking again would not help."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _PassingError(Exception):
    """One try failed in a way that may pass."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


@final
class VllmClient:
    """A client of one server, for any number of threads: each request has a connection of its own.

    Proxies of the environment play no part: the address is the server's.

    Args:
        engine: Address, token variable, timeout and retries.
        pause: Waits so many seconds.

    Raises:
        SettingError: The address is none; the token's variable is not set.
    """

    def __init__(self, engine: VllmEngine, *, pause: Callable[[float], None] = time.sleep) -> None:
        parts = urlsplit(engine.url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        path = parts.path.rstrip("/")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query:
            raise SettingError(f"engine.url: {engine.url!r} is no address; write http://host:port")
        if path.endswith("/v1"):
            raise SettingError(f"engine.url: {engine.url!r} names the API; leave out the /v1 at its end")
        self.url = engine.url.rstrip("/")
        self._secure, self._host, self._port, self._path = parts.scheme == "https", parts.hostname, port, path
        self._timeout, self._tries, self._pause = engine.timeout, engine.retries + 1, pause
        self._headers = {"Content-Type": "application/json", **_authorization(engine.token_variable)}

    def get(self, path: str) -> Any:
        """Ask for a page; the JSON that came, or None where nothing did.

        Args:
            path: From the root of the server, such as ``/v1/models``.

        Raises:
            RefusedError: The server said no.
            GenerationError: No answer after the last try.
        """
        return self._ask("GET", path, None, self._tries, None)

    def post(
        self, path: str, body: dict[str, Any] | None, *, once: bool = False, back: Callable[[float], None] | None = None
    ) -> Any:
        """Send JSON; the JSON that came, or None where nothing did.

        Args:
            path: From the root of the server.
            body: What to send.
            once: Do not try again: the request is no whole without others.
            back: Called before a new try where the server may have been away, hence may have been started anew, with
                the time (``time.monotonic``) at which that was seen. What it raises as no answer counts as a try.

        Raises:
            RefusedError: The server said no.
            GenerationError: No answer after the last try.
        """
        return self._ask("POST", path, body, 1 if once else self._tries, back)

    def post_inside(self, path: str, body: dict[str, Any] | None) -> Any:
        """Like ``post``, within ``back``: one try, whose failure counts for the request that it is made for."""
        return self._once("POST", path, body)

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, tries: int, back: Callable[[float], None] | None
    ) -> Any:
        failure: _PassingError | None = None
        away: float | None = None
        for number in range(tries):
            if failure is not None:
                self._pause(min(2.0 ** (number - 1), _LONGEST_PAUSE))
            try:
                if away is not None and back is not None:
                    back(away)
                    away = None
                return self._once(method, path, body)
            except _PassingError as error:
                failure, away = error, time.monotonic() if error.gone else away
        raise GenerationError(
            f"vLLM at {self.url}: {method} {path} failed {tries} time{'s' * (tries > 1)}; the last time: {failure}. "
            "Is the server running and reachable? Start it again, then resume"
        ) from failure

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        try:
            with closing(kind(self._host, self._port, timeout=self._timeout)) as connection:
                connection.request(method, self._path + path, body=data, headers=self._headers)
                response = connection.getresponse()
                status, content = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(f"{type(error).__name__}: {error}", gone=True) from error
        if status == _TOO_MANY or status >= 500:
            # Behind a proxy, a server that is gone is a 502 or a 503.
            raise _PassingError(f"status {status}: {_message(content)}", gone=status != _TOO_MANY)
        if status >= 300:
            raise RefusedError(f"vLLM at {self.url}: {method} {path}: status {status}: {_message(content)}", status)
        try:
            return json.loads(content) if content.strip() else None
        except ValueError as error:
            raise _PassingError(f"the answer is no JSON ({error})", gone=True) from error


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    token = os.environ.get(variable, "").strip()
    if not token:
        raise SettingError(f"engine.token_variable: the environment has no variable {variable}; set it to the token")
    if not (token.isascii() and token.isprintable()):
        raise SettingError(f"engine.token_variable: {variable} holds what no header can carry; set it to the token")
    return {"Authorization": f"Bearer {token}"}


def _message(content: bytes) -> str:
    """What the server says of an error: vLLM's and OpenAI's ``error.message``, FastAPI's ``detail``, or the text."""
    text = content.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        error = value.get("error", value)
        found = error.get("message", error.get("detail")) if isinstance(error, dict) else error
        text = text if found is None else str(found)
    return " ".join(text.split())[:500] or "no message"
