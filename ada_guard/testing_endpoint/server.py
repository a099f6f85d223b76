"""The smallest HTTP server that an ASGI app of a test needs: loopback, one request a connection, chunked answers.

Written for the faults: an app that returns in mid-answer breaks the connection, a client that leaves is told to the app
at once, and an app that sends faster than it is read has to wait. None of it needs an extra.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

__all__ = ["Loopback"]

App = Callable[..., Awaitable[None]]


class Loopback:
    """Serves an ASGI app on a thread while the block lasts; entering it gives the port."""

    def __init__(self, app: App, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> None:
        self._app, self._host, self._tls = app, host, tls
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ada-guard-scripted-endpoint", daemon=True)
        self._stop: asyncio.Event | None = None
        self._port = 0
        self._failure: Exception | None = None

    def __enter__(self) -> int:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self._port

    def __exit__(self, *_: object) -> None:
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # noqa: BLE001  # raised by the thread that waits
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        self._stop = asyncio.Event()
        server = await asyncio.start_server(accept, self._host, 0, ssl=self._tls)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = _Exchange(reader, writer)
        try:
            scope = await exchange.read_request()
            await self._app(scope, exchange.receive, exchange.send)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left; the app has been told
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


class _Exchange:
    """One request and its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._body: bytes | None = b""
        self._chunked = False

    async def read_request(self) -> dict[str, Any]:
        """The request as an ASGI scope; its body is kept for `receive`."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = [line.split(":", 1) for line in lines]
        headers = [(name.strip().lower().encode(), value.strip().encode("latin-1")) for name, value in pairs]
        length = int(dict(headers).get(b"content-length", b"0"))
        self._body = await self._reader.readexactly(length)
        path, _, query = target.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": headers,
        }

    async def receive(self) -> dict[str, Any]:
        """The body, then the news that the client has left."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        with suppress(OSError):
            while await self._reader.read(1 << 16):
                pass
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Sends a part of the answer, and waits while the client does not read."""
        if message["type"] == "http.response.start":
            status = message["status"]
            phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
            self._chunked = b"content-length" not in dict(message["headers"])
            headers = [*message["headers"], (b"connection", b"close")]
            headers += [(b"transfer-encoding", b"chunked")] if self._chunked else []
            self._writer.write(f"HTTP/1.1 {status} {phrase}\r\n".encode())
            self._writer.write(b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n")
        else:
            body = message.get("body", b"")
            if self._chunked and body:
                body = f"{len(body):x}\r\n".encode() + body + b"\r\n"
            end = b"0\r\n\r\n" if self._chunked and not message.get("more_body") else b""
            self._writer.write(body + end)
        await self._writer.drain()
