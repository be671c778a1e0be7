"""The server's routes: what is looked at before the model is asked, and how long a client is waited for."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from amidkd.serving.model import ServedModel
from amidkd.serving.worker import Worker
from amidkd.teachers.served.protocol import BINARY, RequestError, ScoredRow, Wish, digests_of, read_request, sealed

__all__ = ["make_app"]

_MEBI = 2**20
_GLANCE = 0.5
"""Seconds between two looks whether a client is still there."""


def make_app(model: ServedModel, worker: Worker, *, token: str | None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model: What is served.
        worker: What runs it.
        token: Bearer token that clients must send, or None.
    """
    app = FastAPI(title="amidkd serve", docs_url=None, redoc_url=None, openapi_url=None)
    desk = _Desk(model, worker)
    closed = APIRouter(dependencies=[Depends(_guard(token))])

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status)
        return JSONResponse({"detail": str(error)}, error.status, headers=headers)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @closed.get("/info")
    async def info() -> JSONResponse:
        return JSONResponse(model.info)

    @closed.get("/tokenizer")
    async def tokenizer() -> Response:
        return await _binary(lambda: model.tokenizer)

    @closed.get("/head")
    async def head() -> Response:
        if "hidden" not in model.info["formats"]:
            raise RequestError(f"no head: {model.teacher.backbone.reason}", 404)
        return await _binary(lambda: model.head)

    @closed.post("/score")
    async def score(request: Request) -> Response:
        return await desk.score(request)

    app.include_router(closed)
    return app


@final
class _Desk:
    """Takes requests in, so many at once, and gives the answers out."""

    def __init__(self, model: ServedModel, worker: Worker) -> None:
        self._model, self._worker, self._settings = model, worker, model.settings
        self._held = 0

    async def score(self, request: Request) -> Response:
        deadline = time.monotonic() + self._settings.timeout
        if request.headers.get("content-type", "").split(";")[0].strip() != BINARY:
            raise RequestError(f"content type must be {BINARY}", 415)
        # Before the body is read, so that what is held in memory has a bound.
        async with self._place():
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._settings.timeout):
                    body = await self._body(request)
            except TimeoutError:
                raise RequestError(
                    f"no whole request within {self._settings.timeout:g} s (serve.timeout)", 408
                ) from None
            rows, wish = await asyncio.to_thread(self._read, body)
            return await self._answer(request, rows, wish, deadline)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._held >= self._settings.queue:
            raise RequestError(f"{self._held} requests are waiting (serve.queue); come back later", 503)
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    async def _body(self, request: Request) -> bytes:
        """The body, of which no more is read than a request may have."""
        most = int(self._settings.max_request_mb * _MEBI)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise RequestError(f"a request has at most {most} bytes (serve.max_request_mb)", 413)
        return bytes(body)

    def _read(self, body: bytes) -> tuple[list[ScoredRow], Wish]:
        rows, wish = read_request(body, max_rows=self._settings.max_rows)
        self._model.check(rows, wish)
        return rows, wish

    async def _answer(self, request: Request, rows: list[ScoredRow], wish: Wish, deadline: float) -> Response:
        future = self._worker.submit(rows, wish)
        waiting = asyncio.wrap_future(future)
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_GLANCE)
                if waiting.done():
                    break
                if time.monotonic() > deadline:
                    raise RequestError(f"no answer within {self._settings.timeout:g} s (serve.timeout)", 503)
                if await request.is_disconnected():
                    raise RequestError("the client has gone", 499)
            scored = waiting.result()
        except (CancelledError, RequestError):
            raise
        except Exception as error:
            raise RequestError(
                f"the model failed: {type(error).__name__}: {' '.join(str(error).split())}", 500
            ) from error
        finally:
            # Does nothing where the answer is there or under way.
            future.cancel()
        facts = {**self._model.facts, "format": wish.form}
        return await _binary(lambda: sealed("score", {**scored, "digests": digests_of(rows)}, facts))


def _guard(token: str | None) -> Callable[[Request], Awaitable[None]]:
    wanted = None if token is None else f"Bearer {token}".encode()

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        # In a time that does not tell how much of it is right.
        if wanted is not None and not hmac.compare_digest(given, wanted):
            raise RequestError("this server asks for its bearer token (serve.token_variable)", 401)

    return check


async def _binary(make: Callable[[], bytes]) -> Response:
    return Response(await asyncio.to_thread(make), media_type=BINARY)
