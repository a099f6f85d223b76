"""HTTP as steps, over httpx: one implementation for sync and async callers. Knows no endpoint and no message format."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from ada_guard.errors import ConfigError
from ada_guard.steps import Steps

if TYPE_CHECKING:
    import httpx

__all__ = ["Exchange", "Transport", "checked_url"]

C = TypeVar("C", bound="httpx.Client | httpx.AsyncClient")


def checked_url(url: str, *, what: str, example: str) -> str:
    """A URL without a slash at its end.

    Args:
        url: As the user gave it.
        what: How the error calls it.
        example: One that would do.

    Raises:
        ConfigError: It is no plain http or https address. The message does not show it: it may hold a password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not (url.isascii() and url.isprintable()) or " " in url:
        raise ConfigError(f"{what} must be an http or https address, such as {example}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{what} must not hold a user name or a password: use api_key or headers")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ConfigError(f"{what} must not have a query or a fragment")
    return url.rstrip("/")


class Transport:
    """The httpx clients of one peer, made when they are first needed: one for threads, one for each event loop.

    Args:
        settings: Keyword arguments of ``httpx.Client`` and ``httpx.AsyncClient`` (timeout, proxy, verify, headers).
        client: A ready client for sync use. It stays the caller's to close.
        async_client: Likewise for async use; it must then be used from its own event loop only. Where only one of the
            two is given, the other kind of use is a `ConfigError`: a client of our own would not have its settings.
    """

    def __init__(
        self,
        settings: Callable[[], dict[str, Any]] = dict,
        *,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
    ) -> None:
        self._settings = settings
        self._given, self._given_async = client, async_client
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    @property
    def client(self) -> httpx.Client:
        """For callers in threads."""
        if self._given is not None:
            return _usable(self._given)
        if self._given_async is not None:
            raise ConfigError("a ready async_client is given, but no client, which sync code needs")
        with self._lock:
            if self._client is None:
                import httpx

                self._client = httpx.Client(**self._settings())
            return self._client

    @property
    def async_client(self) -> httpx.AsyncClient:
        """For the running event loop: connections cannot move from one loop to another."""
        if self._given_async is not None:
            return _usable(self._given_async)
        if self._given is not None:
            raise ConfigError("a ready client is given, but no async_client, which async code needs")
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._async_clients:
                import httpx

                # A client's connections keep their loop alive, so weakness alone does not end what `asyncio.run` left.
                for ended in [each for each in self._async_clients if each.is_closed()]:
                    del self._async_clients[ended]
                self._async_clients[loop] = httpx.AsyncClient(**self._settings())
            return self._async_clients[loop]

    def exchange(self, method: str, url: str, **request: Any) -> Exchange:
        """A request that is not sent yet; `request` holds further arguments of ``httpx.Client.build_request``."""
        return Exchange(self, method, url, request)

    def close(self) -> Steps[None]:
        """Closes the clients that were made here."""
        yield _CloseClients(self)


def _usable(client: C) -> C:
    if client.is_closed:
        raise ConfigError("the ready httpx client is closed")
    return client


class Exchange:
    """One request and its response, whose body is read piece by piece.

    Errors of httpx are raised as they are: the caller maps them, once. Close it in every case.

    A `limit_s` is the longest wait in seconds, then `TimeoutError`. It holds on an event loop. A thread cannot be
    woken: there the timeouts of httpx apply, those of the client or of the request.
    """

    def __init__(self, transport: Transport, method: str, url: str, request: dict[str, Any]) -> None:
        self.transport = transport
        self.arguments: tuple[str, str, dict[str, Any]] = (method, url, request)
        self.response: httpx.Response | None = None
        self.chunks: Iterator[bytes] | AsyncIterator[bytes] | None = None

    def send(self, *, limit_s: float | None = None) -> Steps[httpx.Response]:
        """Sends the request and waits for the head of the response."""
        response: httpx.Response = yield _Send(self, limit_s)
        return response

    def receive(self, *, limit_s: float | None = None) -> Steps[bytes]:
        """The next bytes of the body, decoded from any compression; empty at its end."""
        chunk: bytes = yield _Receive(self, limit_s)
        return chunk

    def read(self, *, limit_bytes: int, limit_s: float | None = None) -> Steps[bytes]:
        """The rest of the body, at most about `limit_bytes` of it, and what came within about `limit_s`."""
        parts: list[bytes] = []
        size, started = 0, time.perf_counter()
        while size < limit_bytes and (limit_s is None or time.perf_counter() - started < limit_s):
            chunk = yield from self.receive(limit_s=limit_s)
            if not chunk:
                break
            parts.append(chunk)
            size += len(chunk)
        return b"".join(parts)

    def close(self) -> Steps[None]:
        """Closes the response, and with it the work of the server behind it. May be called twice, and before `send`."""
        if self.response is not None:
            yield _Close(self)


@dataclass(frozen=True, slots=True)
class _Send:
    exchange: Exchange
    limit_s: float | None

    def run(self) -> httpx.Response:
        client = self.exchange.transport.client
        method, url, request = self.exchange.arguments
        self.exchange.response = client.send(client.build_request(method, url, **request), stream=True)
        return self.exchange.response

    async def arun(self) -> httpx.Response:
        client = self.exchange.transport.async_client
        method, url, request = self.exchange.arguments
        async with asyncio.timeout(self.limit_s):
            self.exchange.response = await client.send(client.build_request(method, url, **request), stream=True)
        return self.exchange.response


@dataclass(frozen=True, slots=True)
class _Receive:
    exchange: Exchange
    limit_s: float | None

    def run(self) -> bytes:
        exchange = self.exchange
        assert exchange.response is not None
        if exchange.chunks is None:
            exchange.chunks = exchange.response.iter_bytes()
        assert isinstance(exchange.chunks, Iterator)
        return next(exchange.chunks, b"")

    async def arun(self) -> bytes:
        exchange = self.exchange
        assert exchange.response is not None
        if exchange.chunks is None:
            exchange.chunks = exchange.response.aiter_bytes()
        assert isinstance(exchange.chunks, AsyncIterator)
        async with asyncio.timeout(self.limit_s):
            return await anext(exchange.chunks, b"")


@dataclass(frozen=True, slots=True)
class _Close:
    exchange: Exchange

    # The readers are closed here, not whenever they are collected: each holds the bytes it read last.
    def run(self) -> None:
        if self.exchange.response is not None:
            self.exchange.response.close()
        chunks = self.exchange.chunks
        if isinstance(chunks, GeneratorType) and not chunks.gi_running:
            chunks.close()

    async def arun(self) -> None:
        if self.exchange.response is not None:
            await self.exchange.response.aclose()
        chunks = self.exchange.chunks
        if isinstance(chunks, AsyncGeneratorType) and not chunks.ag_running:
            await chunks.aclose()


@dataclass(frozen=True, slots=True)
class _CloseClients:
    transport: Transport

    def run(self) -> None:
        client, self.transport._client = self.transport._client, None
        if client is not None:
            client.close()

    async def arun(self) -> None:
        self.run()
        client = self.transport._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
