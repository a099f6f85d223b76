"""What stands before every route: key, length of the body, figures, a log line without text. Knows no route's work."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ada_guard.serve.faults import fault_response
from ada_guard.serve.metrics import Metrics

__all__ = ["Entrance"]

LOG = logging.getLogger("ada_guard.serve")
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""What whoever watches a server must reach without a key. None of them holds anything of a stream."""


class _LeftError(Exception):
    """The client has left in the middle of its request."""


class Entrance:
    """Lets requests in.

    Args:
        app: What is behind.
        api_key: Asked for as bearer token; None: nobody is asked.
        max_body_bytes: Longest body, in whatever pieces it comes.
        body_timeout_s: How long it may take, in seconds.
        metrics: Where answers are counted.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, max_body_bytes: int, body_timeout_s: float, metrics: Metrics
    ) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; what is none is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._handle(scope, receive, sending)
        except _LeftError:
            status = 499
        except Exception as error:  # noqa: BLE001  # the last place: its message may hold text, its class does not
            LOG.error("unexpected %s", type(error).__name__)  # noqa: TRY400  # a traceback may hold text too
            if not status:
                await fault_response(500, "failed", f"unexpected {type(error).__name__}")(scope, receive, sending)
        finally:
            # The pattern, not the path: that names a session, and a client may write anything into it.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.responded(route, status)
            LOG.info("%s %s %d %.1f ms", scope["method"], route, status, (time.perf_counter() - started) * 1000.0)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value for name, value in scope["headers"] if name in {b"authorization", b"content-length"}}
        if not self._lets_in(scope, headers):
            await fault_response(401, "unauthorized", "an API key is needed")(scope, receive, send)
            return
        length = headers.get(b"content-length", b"")
        body = None if length.isdigit() and int(length) > self._max_body_bytes else b""
        if body is not None:
            try:
                async with asyncio.timeout(self._body_timeout_s):
                    body = await self._read(receive)
            except TimeoutError:
                await fault_response(408, "too_slow", "the request did not come in time")(scope, receive, send)
                return
        if body is None:
            line = f"a request may have {self._max_body_bytes} bytes"
            await fault_response(413, "too_large", line)(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    def _lets_in(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(token.strip(), self._key) and scheme.lower() == b"bearer"

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None if it is too long."""
        parts: list[bytes] = []
        size = 0
        while True:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                raise _LeftError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives out a body that was read, then what comes behind it: the news that the client has left."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
