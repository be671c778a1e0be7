"""HTTP to a vLLM server that writes text: JSON both ways."""

import json
import time
from collections.abc import Callable
from typing import Any, final

from amidkd.config.policy import VllmEngine
from amidkd.generation.base import GenerationError
from amidkd.transport import PassingError, Server, persist
from amidkd.transport import RefusedError as Refused

__all__ = ["RefusedError", "VllmClient"]


class RefusedError(GenerationError):
    """The server understood and said no (a status from 300 to 499 other than 429). Asking again would not help."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@final
class VllmClient:
    """A client of one server, for any number of threads.

    Args:
        engine: Address, token variable, timeout and retries.
        pause: Waits so many seconds.

    Raises:
        SettingError: The address is none; the token's variable is not set.
    """

    def __init__(self, engine: VllmEngine, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._server = Server(
            engine.url, section="engine", token_variable=engine.token_variable, timeout=engine.timeout
        )
        self.url = self._server.url
        self._tries, self._pause = engine.retries + 1, pause

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
        try:
            return persist(lambda: self._once(method, path, body), tries=tries, pause=self._pause, back=back)
        except PassingError as error:
            raise GenerationError(
                f"vLLM at {self.url}: {method} {path} failed {tries} time{'s' * (tries > 1)}; the last time: {error}. "
                "Is the server running and reachable? Start it again, then resume"
            ) from error

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        try:
            content, _ = self._server.send(method, path, data)
        except Refused as error:
            raise RefusedError(f"vLLM at {self.url}: {error}", error.status) from error
        try:
            return json.loads(content) if content.strip() else None
        except ValueError as error:
            raise PassingError(f"the answer is no JSON ({error})", gone=True) from error
