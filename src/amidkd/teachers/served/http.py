"""HTTP to a teacher's server: answers are checked as they come, and asked for again where that can help."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, final

from amidkd.config import ServedTeacher
from amidkd.errors import SettingError, TeacherError
from amidkd.transport import PassingError, RefusedError, Server, persist

__all__ = ["PassingError", "TeacherClient", "read_json"]

T = TypeVar("T")


@final
class TeacherClient:
    """A client of one server, for any number of threads.

    Args:
        config: Address, token variable, timeout and retries.
        pause: Waits so many seconds.

    Raises:
        SettingError: The address is none; the token's variable is not set.
    """

    def __init__(self, config: ServedTeacher, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._server = Server(
            config.url, section="teacher", token_variable=config.token_variable, timeout=config.timeout
        )
        self.url = self._server.url
        self._tries, self._pause = config.retries + 1, pause

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        read: Callable[[bytes, Mapping[str, str]], T],
        kind: str = "application/octet-stream",
        tries: int | None = None,
    ) -> T:
        """Send a request and read its answer.

        Args:
            method: Such as ``GET``.
            path: From the root of the server, such as ``/info``.
            body: What to send.
            read: Makes of content and headers (lower-case names) what is wanted; raises ``PassingError`` for an
                answer that is cut off or damaged, which is then asked for again.
            kind: Content type of the body.
            tries: The most tries, in place of the configuration's.

        Raises:
            SettingError: The server said no (a status from 300 to 499 other than 429).
            TeacherError: No good answer after the last try.
        """
        tries = self._tries if tries is None else tries
        try:
            return persist(
                lambda: read(*self._server.send(method, path, body, kind=kind)), tries=tries, pause=self._pause
            )
        except RefusedError as error:
            raise SettingError(f"teacher at {self.url}: {error}") from error
        except PassingError as error:
            raise TeacherError(
                f"teacher at {self.url}: {method} {path} failed {tries} time{'s' * (tries > 1)}; the last time: "
                f"{error}. Is the server running and reachable? Start it again, then resume"
            ) from error

    def get_json(self, path: str) -> Any:
        """Ask for a page of JSON."""
        return self.ask("GET", path, read=read_json)

    def post_json(self, path: str, body: dict[str, Any], *, read: Callable[[Any], T]) -> T:
        """Send JSON and read the JSON that comes.

        Args:
            path: From the root of the server.
            body: What to send.
            read: Makes of the answer what is wanted; may raise ``PassingError``.
        """
        data = json.dumps(body, allow_nan=False).encode()
        return self.ask("POST", path, data, kind="application/json", read=lambda *answer: read(read_json(*answer)))


def read_json(content: bytes, headers: Mapping[str, str]) -> Any:
    """An answer as JSON.

    Raises:
        PassingError: It is none.
    """
    try:
        return json.loads(content)
    except ValueError as error:
        raise PassingError(f"the answer is no JSON ({error})", gone=True) from error
