"""An ASGI app behind an ``httpx.AsyncClient``, streamed. Knows no socket.

``httpx.ASGITransport`` gathers the whole answer before it gives out the first byte: a stream could neither be watched
nor left. Here the app's ``send`` waits until the client asks for more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

__all__ = ["StreamingTransport"]


class StreamingTransport(httpx.AsyncBaseTransport):
    """Runs an app for each request, in step with the client."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Starts the app and waits for the head of its answer."""
        body = await request.aread()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
        }
        body_stream = _Body(body)
        body_stream.task = asyncio.ensure_future(body_stream.run(self._app, scope))
        head = await body_stream.next_message()
        if head is None:
            await body_stream.aclose()
            raise httpx.RemoteProtocolError("the app returned without an answer", request=request)
        return httpx.Response(head["status"], headers=head["headers"], stream=body_stream, request=request)


class _Body(httpx.AsyncByteStream):
    """The answer of a running app. The client's queue has room for nothing: each message is handed over."""

    def __init__(self, body: bytes) -> None:
        self._request: bytes | None = body
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=1)
        self._wanted = asyncio.Semaphore(0)
        self._left = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def run(self, app: Callable[..., Awaitable[None]], scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            if not self._left.is_set():
                await self._messages.put(None)

    async def next_message(self) -> dict[str, Any] | None:
        self._wanted.release()
        return await self._messages.get()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self.next_message()
            if message is None:
                raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
            more = bool(message.get("more_body"))
            if message.get("body"):
                yield message["body"]

    async def aclose(self) -> None:
        """Tells the app that its client has left, and waits for its end."""
        self._left.set()
        self._wanted.release()
        if self.task is not None:
            await asyncio.wait({self.task})

    async def _receive(self) -> dict[str, Any]:
        if self._request is not None:
            body, self._request = self._request, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self._wanted.acquire()
        if self._left.is_set():
            self._wanted.release()
            raise OSError("the client has left")
        await self._messages.put(message)
