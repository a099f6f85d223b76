"""The process that serves: socket, signals, uvicorn. Knows no model."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from ada_guard.errors import ConfigError
from ada_guard.sidecar.client import is_loopback

__all__ = ["bind", "serve"]

GRACE_S = 10
"""How long running requests may take at the end, in seconds."""
BACKLOG = 2048


def bind(host: str, port: int, *, api_key: str | None) -> socket.socket:
    """A socket that is bound and does not listen yet, so that an address in use shows before a model is loaded.

    Args:
        host: Name or address.
        port: 0 picks a free one.
        api_key: The key that clients will be asked for.

    Raises:
        ConfigError: Others could reach it, and there is no key; or there is no such address.
    """
    require_key(api_key)
    if api_key is None and not is_loopback(host):
        raise ConfigError(
            "without an API key a sidecar is served on a loopback address only: set the environment variable that "
            "--api-key-env names (ADA_GUARD_API_KEY)"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError("--host is no address of this machine") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot serve at this host and port: {error.strerror or type(error).__name__}") from None
    return bound


def require_key(api_key: str | None) -> None:
    """Refuses a key that could not be sent, or that everybody knows.

    Raises:
        ConfigError: It is empty, or holds spaces or unprintable characters.
    """
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise ConfigError("the API key must be printable ASCII without spaces, and not empty; None asks for no key")


def serve(app: FastAPI, bound: socket.socket, *, on_ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; running requests may finish.

    Args:
        app: As `ada_guard.serve.create_app` makes it.
        bound: From `bind`; closed at the end.
        on_ready: Told the URL once requests are taken.

    Raises:
        KeyboardInterrupt: At SIGINT, once everything is closed.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # its lines have paths, which name sessions; the app writes its own
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=30,
        backlog=BACKLOG,
        server_header=False,
        date_header=False,
        ws="none",
    )
    host, port = bound.getsockname()[:2]
    url = f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"
    # uvicorn hands a signal on once it has shut down: without this, the end that was asked for would look like a crash.
    before = signal.signal(signal.SIGTERM, _nothing)
    try:
        _Server(config, lambda: on_ready(url)).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()


def _nothing(*_: Any) -> None:
    """A signal that uvicorn has acted on already."""
