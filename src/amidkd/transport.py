"""HTTP to one server: a request, what went wrong with it, and trying again with growing pauses.

Loads no torch.
"""

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TypeVar, final
from urllib.parse import urlsplit

from amidkd.errors import SettingError

__all__ = ["PassingError", "RefusedError", "Server", "persist"]

_LONGEST_PAUSE = 60.0
_TOO_MANY = 429

T = TypeVar("T")


class PassingError(Exception):
    """One try failed in a way that may pass.

    Args:
        message: What went wrong.
        gone: Whether the server may have been away, hence may have been started anew.
        wait: Seconds that the server asks to wait before the next try.
    """

    def __init__(self, message: str, *, gone: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.gone, self.wait = gone, wait


class RefusedError(Exception):
    """The server understood and said no (a status from 300 to 499 other than 429). Asking again would not help."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@final
class Server:
    """One server, for any number of threads: each request has a connection of its own.

    Proxies of the environment play no part: the address is the server's.

    Args:
        url: ``http://host:port``, with a path where the server lies below one.
        section: The run file's section, for messages; its settings are ``url`` and ``token_variable``.
        token_variable: Environment variable that holds the bearer token, or None.
        timeout: Seconds to wait for an answer.
        setting: What the section calls ``token_variable``.

    Raises:
        SettingError: The address is none; the token's variable is not set.
    """

    def __init__(
        self, url: str, *, section: str, token_variable: str | None, timeout: float, setting: str = "token_variable"
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        path = parts.path.rstrip("/")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query:
            raise SettingError(f"{section}.url: {url!r} is no address; write http://host:port")
        if path.endswith("/v1"):
            raise SettingError(f"{section}.url: {url!r} names the API; leave out the /v1 at its end")
        self.url = url.rstrip("/")
        self._secure, self._host, self._port, self._path = parts.scheme == "https", parts.hostname, port, path
        self._timeout = timeout
        self._authorization = _authorization(token_variable, f"{section}.{setting}")

    def send(
        self, method: str, path: str, body: bytes | None = None, *, kind: str = "application/json"
    ) -> tuple[bytes, Mapping[str, str]]:
        """One request, tried once.

        Args:
            method: Such as ``GET``.
            path: From the root of the server, such as ``/health``.
            body: What to send.
            kind: Content type of the body.

        Returns:
            The whole answer, and its headers by lower-case name.

        Raises:
            RefusedError: The server said no.
            PassingError: No answer, a part of one, or a status that may pass.
        """
        connect = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        headers = {"Content-Type": kind, **self._authorization}
        try:
            with closing(connect(self._host, self._port, timeout=self._timeout)) as connection:
                connection.request(method, self._path + path, body=body, headers=headers)
                response = connection.getresponse()
                status, content = response.status, response.read()
                answered = {name.lower(): value for name, value in response.getheaders()}
        except (OSError, http.client.HTTPException) as error:
            raise PassingError(f"{type(error).__name__}: {error}", gone=True) from error
        if status == _TOO_MANY or status >= 500:
            # Behind a proxy, a server that is gone is a 502 or a 503.
            wait = _seconds(answered.get("retry-after", ""))
            raise PassingError(f"status {status}: {_message(content)}", gone=status != _TOO_MANY, wait=wait)
        if status >= 300:
            raise RefusedError(f"{method} {path}: status {status}: {_message(content)}", status)
        return content, answered


def persist(
    once: Callable[[], T],
    *,
    tries: int,
    pause: Callable[[float], None] = time.sleep,
    back: Callable[[float], None] | None = None,
) -> T:
    """Try until it works, with pauses that double.

    Args:
        once: One try; a ``PassingError`` of it is worth another.
        tries: The most tries, at least 1.
        pause: Waits so many seconds.
        back: Called before a new try where the server may have been away, with the time (``time.monotonic``) at which
            that was seen. Its own ``PassingError`` counts as a try.

    Raises:
        PassingError: That of the last try.
    """
    failure: PassingError | None = None
    away: float | None = None
    for number in range(tries):
        if failure is not None:
            pause(min(max(2.0 ** (number - 1), failure.wait), _LONGEST_PAUSE))
        try:
            if away is not None and back is not None:
                back(away)
                away = None
            return once()
        except PassingError as error:
            failure, away = error, time.monotonic() if error.gone else away
    assert failure is not None
    raise failure


def _authorization(variable: str | None, setting: str) -> dict[str, str]:
    if variable is None:
        return {}
    token = os.environ.get(variable, "").strip()
    if not token:
        raise SettingError(f"{setting}: the environment has no variable {variable}; set it to the token")
    if not (token.isascii() and token.isprintable()):
        raise SettingError(f"{setting}: {variable} holds what no header can carry; set it to the token")
    return {"Authorization": f"Bearer {token}"}


def _seconds(text: str) -> float:
    return min(float(text), _LONGEST_PAUSE) if text.isascii() and text.isdigit() else 0.0


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
