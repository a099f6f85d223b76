"""One streamed answer of an endpoint, as steps: opened, pulled delta by delta, closed. Knows no policy and no check."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ada_guard.delta import Delta, Usage
from ada_guard.errors import AdaGuardError, GenerationError
from ada_guard.http import Exchange, Transport
from ada_guard.sources.echo import Echo
from ada_guard.sources.faults import Fault, Refusal, status_fault, transport_fault
from ada_guard.sources.openai_chunks import API, Chunks
from ada_guard.sources.sse import ServerEvent, ServerEvents
from ada_guard.steps import Sleep, Steps

if TYPE_CHECKING:
    import httpx

__all__ = ["EndpointStream", "Limits", "Request"]

T = TypeVar("T")

REFUSAL_BYTES = 1 << 16
"""How much of an error's body is read for its identifiers."""

REFUSAL_S = 5.0
"""How long, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a stream may take; as in `ada_guard.sources.endpoint.Endpoint` and its time-outs."""

    connect_s: float | None
    read_s: float | None
    total_s: float | None
    retries: int
    backoff_s: float
    max_retry_after_s: float
    max_event_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent, and what is known of its answer beforehand.

    Attributes:
        url: Full address.
        headers: With the key.
        body: JSON.
        spare: A body to send where the server refuses `body` as such; or None.
        api: Which API it is for.
        choices: How many choices were asked for.
        echo: The prefill, where the server repeats it.
        continues: Whether it asks to continue an assistant message.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    spare: bytes | None = field(repr=False)
    api: API
    choices: int
    echo: str = field(repr=False)
    continues: bool


class EndpointStream:
    """A streamed answer. One consumer at a time pulls it; it reads no further than it is pulled."""

    def __init__(self, transport: Transport, request: Request, limits: Limits) -> None:
        self._transport = transport
        self._request = request
        self._limits = limits
        self._exchange: Exchange | None = None
        self._decoder = ServerEvents(max_event_bytes=limits.max_event_bytes)
        self._chunks = Chunks(request.api, choices=request.choices)
        self._echo = Echo(request.echo, choices=request.choices) if request.echo else None
        self._events: Iterator[ServerEvent] = iter(())
        self._deltas: deque[Delta] = deque()
        self._waited_s = 0.0
        self._opened = False
        self._over = False
        self._fault: AdaGuardError | None = None

    @property
    def usage(self) -> Usage | None:
        """The server's last count, also after the end; None while it has given none."""
        return self._chunks.usage

    @property
    def finish_reasons(self) -> Mapping[int, str]:
        """By choice, why it has ended. A server that only says ``[DONE]`` gives none."""
        return self._chunks.finish_reasons

    @property
    def prompt_token_ids(self) -> tuple[int, ...] | None:
        """Where the server gives them."""
        return self._chunks.prompt_token_ids

    @property
    def response_id(self) -> str | None:
        """The server's id of the response, for its log."""
        return self._chunks.response_id

    def start(self) -> Steps[None]:
        """Sends the request and waits until the answer begins; `pull` does it where it was not done before.

        Raises:
            ConfigError: The server will not take this request at all.
            GenerationError: It cannot be reached, or fails.
        """
        self._raise_fault()
        if not self._opened and not self._over:
            yield from self._settle((yield from self._attempt(self._open())))

    def pull(self) -> Steps[Delta | None]:
        """The next delta, in the server's order; None once the stream is over or closed.

        Raises:
            ConfigError: As in `start`.
            GenerationError: As in `start`; or the stream broke, or is none. What came before was delivered.
        """
        yield from self.start()
        while not self._over and not self._deltas:
            yield from self._settle((yield from self._attempt(self._advance())))
        if self._deltas:
            return self._deltas.popleft()
        return None

    def close(self) -> Steps[None]:
        """Closes the response at once, so that the server stops generating. May be called twice."""
        self._over = True
        # What was read and not pulled is not to be found here any more.
        self._deltas.clear()
        self._events = iter(())
        self._decoder = ServerEvents()
        self._echo = None
        self._chunks.forget()
        if self._exchange is not None:
            with suppress(Exception):  # nobody is harmed by it, and its message may hold text
                yield from self._exchange.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _raise_fault(self) -> None:
        if self._fault is not None:
            # A new one each time, and none kept: a traceback keeps its frames alive, and they the text.
            raise type(self._fault)(*self._fault.args)

    def _attempt(self, steps: Steps[None]) -> Steps[Fault | None]:
        """Runs steps; their error is returned, so that it is raised where nothing is being handled."""
        try:
            yield from steps
        except Exception as error:  # noqa: BLE001  # the one boundary: also whatever a ready client raises
            return transport_fault(error, begun=self._exchange is not None and self._exchange.response is not None)
        return None

    def _settle(self, fault: Fault | None) -> Steps[None]:
        if fault is not None:
            self._fault = fault.error.with_traceback(None)
            yield from self._attempt(self.close())
            self._raise_fault()

    def _advance(self) -> Steps[None]:
        """Reads one event, or more bytes."""
        event = next(self._events, None)
        if event is not None:
            for delta in self._chunks.read(event):
                self._deltas.extend([delta] if self._echo is None else self._echo.strip(delta))
            if self._chunks.done:
                yield from self._end()
            return
        assert self._exchange is not None
        data, fault = b"", None
        try:
            data = yield from self._timed(self._exchange.receive(limit_s=self._left_s()))
        except Exception as error:  # noqa: BLE001  # as in `_attempt`
            fault = transport_fault(error, begun=True)
        if data:
            self._events = self._decoder.feed(data)
        elif self._chunks.ended:
            yield from self._end()  # without [DONE], as many servers do; a break behind the end harms nobody
        else:
            raise fault.error if fault is not None else _incomplete()

    def _end(self) -> Steps[None]:
        last = [*self._deltas, *(self._echo.flush() if self._echo is not None else ())]
        yield from self.close()
        self._deltas.extend(last)

    def _open(self) -> Steps[None]:
        """Sends the request until it is answered by a stream, or there is no further try."""
        limits, body, spare, tries = self._limits, self._request.body, self._request.spare, 0
        while True:
            fault = yield from self._send(body)
            if fault is None:
                self._opened = True
                return
            if spare is not None and isinstance(fault, _Refused):
                body, spare = spare, None
                continue
            pause_s = fault.retry_after_s
            if pause_s is None:
                # Some jitter, so that clients which failed together do not come back together.
                pause_s = limits.backoff_s * 2**tries * random.uniform(0.75, 1.25)
            left_s = self._left_s()
            if not fault.retry or tries >= limits.retries or pause_s > limits.max_retry_after_s:
                raise fault.error
            if left_s is not None and pause_s >= left_s:
                raise fault.error
            tries += 1
            yield from self._timed(_sleep(pause_s))

    def _send(self, body: bytes) -> Steps[Fault | None]:
        request, left_s = self._request, self._left_s()
        exchange = self._transport.exchange(
            "POST", request.url, content=body, headers=dict(request.headers), timeout=self._httpx_timeouts()
        )
        self._exchange = exchange
        fault: Fault | None = None
        try:
            response = yield from self._timed(exchange.send(limit_s=left_s))
        except Exception as error:  # noqa: BLE001  # as in `_attempt`
            fault = transport_fault(error)
        if fault is None:
            fault = yield from self._judge(exchange, response)
        if fault is not None:
            yield from exchange.close()
        return fault

    def _judge(self, exchange: Exchange, response: httpx.Response) -> Steps[Fault | None]:
        """None for a stream, else why it is none."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code == 200:
            if kind in {"application/json", "text/html"}:
                return Fault(GenerationError("the endpoint did not answer with a stream: check base_url"))
            return None
        body = b""
        try:
            body = yield from self._timed(exchange.read(limit_bytes=REFUSAL_BYTES, limit_s=REFUSAL_S))
        except Exception:  # noqa: BLE001  # the status says enough
            body = b""
        refusal = Refusal(status=response.status_code, headers=response.headers, body=body)
        fault = status_fault(refusal, prefill=self._request.continues)
        return _Refused(fault.error) if response.status_code in {400, 422} else fault

    def _timed(self, steps: Steps[T]) -> Steps[T]:
        started = time.perf_counter()
        try:
            return (yield from steps)
        finally:
            self._waited_s += time.perf_counter() - started

    def _left_s(self) -> float | None:
        """What is left of the total time, in seconds."""
        if self._limits.total_s is None:
            return None
        left_s = self._limits.total_s - self._waited_s
        if left_s <= 0:
            raise GenerationError(f"the endpoint took longer than the total timeout of {self._limits.total_s:g} s")
        return left_s

    def _httpx_timeouts(self) -> httpx.Timeout:
        """The form in which httpx takes them for one request."""
        import httpx

        limits = self._limits
        shortest = min((each for each in (limits.read_s, limits.total_s) if each is not None), default=None)
        return httpx.Timeout(shortest, connect=limits.connect_s, pool=limits.connect_s)


def _incomplete() -> GenerationError:
    return GenerationError("the endpoint's stream stopped without an end: the answer is incomplete")


class _Refused(Fault):
    """The server takes no request of this form."""


def _sleep(seconds: float) -> Steps[None]:
    yield Sleep(seconds)
