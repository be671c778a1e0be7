"""From settings to a server that listens, until it is told to stop."""

import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from amidkd.config import LiveTeacher, ServeConfig
from amidkd.errors import SettingError

__all__ = ["serve"]

_log = logging.getLogger("amidkd")


def serve(teacher: LiveTeacher, settings: ServeConfig, *, ready: Callable[[str], None]) -> None:
    """Serve a teacher until the process gets SIGINT or SIGTERM; requests under way are answered first.

    Args:
        teacher: The run file's ``teacher``: a model to load.
        settings: The run file's ``serve``.
        ready: Called with the server's address once it answers.

    Raises:
        SettingError: The extra, the token or the model is missing; the port is taken.
    """
    uvicorn = _uvicorn()
    token = _token(settings.token_variable)
    # Before the model is loaded, which can take minutes.
    listener = _listen(settings.host, settings.port)
    with listener:
        from amidkd.serving.app import make_app
        from amidkd.serving.model import load_served
        from amidkd.serving.worker import Worker

        model = load_served(teacher, settings)
        if not settings.is_loopback and token is None:
            _log.warning("warning: whoever reaches %s may use this teacher (serve.open)", settings.host)
        worker = Worker(model.teacher, batch_tokens=settings.batch_tokens)
        config = uvicorn.Config(
            make_app(model, worker, token=token),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.timeout) + 1,
        )
        # uvicorn stops on these signals, then gives them to whoever listened before: a stop that was asked for is no
        # failure, so nobody did.
        before = {number: signal.signal(number, _asked_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ready(_address(listener))
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            worker.close()
            for number, handler in before.items():
                signal.signal(number, handler)


def _asked_to_stop(number: int, frame: Any) -> None:
    pass


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise SettingError(f"amidkd serve needs {error.name}: pip install 'amidkd[serve]'") from None
    return uvicorn


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not (token and token.isascii() and token.isprintable()):
        raise SettingError(f"serve.token_variable: the environment has no usable token in {variable}; set it")
    return token


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"serve.port: {port} is taken on {host}; set another, or 0 for a free one") from None
        raise SettingError(f"serve.host, serve.port: cannot listen on {host}, port {port}: {error}") from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
