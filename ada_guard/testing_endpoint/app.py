"""The scripted endpoint: an ASGI app that answers chat and completion requests as it is told.

It needs no model, no framework and no extra. `ScriptedEndpoint.serve` puts it on a loopback port; httpx for an event
loop can have it without a socket (`ScriptedEndpoint.transport`). It remembers what it was asked, what it sent, and
whether its client went away, so that a test can assert that a cut really stopped the generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ada_guard.testing_endpoint.server import Loopback

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["Asked", "Chunk", "Cut", "Pause", "Repeat", "Reply", "ScriptedEndpoint"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One message of a stream.

    Attributes:
        delta: Its fields: of ``delta`` in a chat, of the choice itself in a completion.
        choice: Index of the choice.
        finish_reason: Set where the choice ends.
        fields: Further fields of the choice, such as ``token_ids``.
        outer: Further fields of the message, such as ``usage``.
    """

    delta: Mapping[str, Any] = field(default_factory=dict, repr=False)
    choice: int = 0
    finish_reason: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    outer: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for some seconds, or until the client has gone."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks, without the end that HTTP asks for."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Items again and again; without `times`, until the client has gone."""

    items: tuple[Item, ...]
    times: int | None = None


Item: TypeAlias = str | bytes | Mapping[str, Any] | Chunk | Pause | Cut | Repeat
"""What a reply consists of: a string is a token of text; a mapping is a ready message, such as an error object; bytes
go out as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer.

    Attributes:
        items: What is sent, in order.
        finish_reason: Sent behind them for every choice; None: it is left out.
        usage: Token counts sent at the end if the client asks for them; None: the tokens that were sent.
        token_ids: Whether each token of text goes with an id, counted from 0.
        done: Whether ``[DONE]`` is sent.
        status: Any but 200 is an answer without a stream.
        headers: Further headers.
        json: The body instead of a stream; bytes go out as they are.
        content_type: Of a stream.
    """

    items: Sequence[Item] = field(default=(), repr=False)
    finish_reason: str | None = "stop"
    usage: Mapping[str, Any] | None = None
    token_ids: bool = False
    done: bool = True
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    content_type: str = "text/event-stream; charset=utf-8"


@dataclass(slots=True, eq=False)
class Asked:
    """A request, and what became of its answer.

    Attributes:
        path: As it was asked for.
        headers: In lower case.
        body: The parsed JSON; empty where there is none.
        generated: Tokens sent so far.
        gone: Whether the client went away before the end.
        over: Set once nothing more is sent, for whatever reason. Wait for it before looking at the rest.
    """

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Any = field(repr=False)
    generated: int = 0
    gone: bool = False
    over: threading.Event = field(default_factory=threading.Event, repr=False)


Script: TypeAlias = Reply | str | Callable[[Asked], Reply | str]


class ScriptedEndpoint:
    """An ASGI app that answers chat and completion requests from a script.

    Args:
        *replies: Given out in order, the last one again and again. A string is the reply of its words; a function is
            called with what was asked.

    Attributes:
        asked: The requests so far, in order.
    """

    def __init__(self, *replies: Script) -> None:
        if not replies:
            raise ValueError("a scripted endpoint needs a reply")
        self._replies = replies
        self.asked: list[Asked] = []

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"no {scope['type']} here")
        body = await _body(receive)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = Asked(path=scope["path"], headers=headers, body=json.loads(body or b"{}"))
        script = self._replies[min(len(self.asked), len(self._replies) - 1)]
        self.asked.append(asked)
        reply = script(asked) if callable(script) else script
        reply = Reply(items=tokens(reply)) if isinstance(reply, str) else reply
        gone = asyncio.Event()
        watch = asyncio.ensure_future(_watch(receive, gone))
        try:
            if reply.status == 200 and reply.json is None:
                await _Answer(asked, reply, send, gone).send_all()
            else:
                await _send_json(reply, send)
        except OSError:
            gone.set()  # this is how some servers tell that there is nobody to send to
        finally:
            asked.gone = gone.is_set()
            asked.over.set()
            watch.cancel()

    @contextmanager
    def serve(self, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Serves on a free loopback port while the block lasts, on a thread; gives the ``base_url``."""
        with Loopback(self, host, tls=tls) as port:
            yield f"{'https' if tls else 'http'}://{host}:{port}/v1"

    def transport(self) -> httpx.AsyncBaseTransport:
        """For ``httpx.AsyncClient(transport=...)``: without a socket, each piece only when the client asks for it."""
        from ada_guard.testing_endpoint.transport import StreamingTransport

        return StreamingTransport(self)


def tokens(text: str) -> tuple[str, ...]:
    """Words with the space before them, as a model would send them."""
    return tuple(re.findall(r"\s*\S+|\s+$", text))


class _Answer:
    """One streamed answer on its way."""

    def __init__(self, asked: Asked, reply: Reply, send: Send, gone: asyncio.Event) -> None:
        self._asked, self._reply, self._send, self._gone = asked, reply, send, gone
        self._chat = asked.path.endswith("/chat/completions")
        self._choices = int(asked.body.get("n") or 1)

    async def send_all(self) -> None:
        """Sends head, items and end, until a cut or until the client has gone."""
        headers = {"content-type": self._reply.content_type, **self._reply.headers}
        await self._send({"type": "http.response.start", "status": 200, "headers": _encoded(headers)})
        if self._reply.items and self._chat and not isinstance(self._reply.items[0], bytes):
            await self._message(self._wire(Chunk(delta={"role": "assistant", "content": ""})))
        if not await self._items(self._reply.items):
            return
        for choice in range(self._choices if self._reply.finish_reason else 0):
            await self._message(self._wire(Chunk(choice=choice, finish_reason=self._reply.finish_reason)))
        if (self._asked.body.get("stream_options") or {}).get("include_usage"):
            count = self._asked.generated
            usage = self._reply.usage or {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
            await self._message({**self._envelope(), "choices": [], "usage": usage})
        if self._reply.done:
            await self._bytes(b"data: [DONE]\n\n")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _items(self, items: Sequence[Item]) -> bool:
        """Whether the stream goes on behind them."""
        for item in items:
            if self._gone.is_set() or isinstance(item, Cut):
                return False
            if isinstance(item, Repeat):
                done = 0
                while item.times is None or done < item.times:
                    if not await self._items(item.items):
                        return False
                    done += 1
            else:
                await self._item(item)
            await asyncio.sleep(0)  # the client's leaving is seen also where nothing ever waits
        return not self._gone.is_set()

    async def _item(self, item: str | bytes | Mapping[str, Any] | Chunk | Pause) -> None:
        if isinstance(item, Pause):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), timeout=item.seconds)
        elif isinstance(item, bytes):
            await self._bytes(item)
        elif isinstance(item, Chunk):
            await self._message(self._wire(item))
            self._asked.generated += bool(item.delta)
        elif isinstance(item, str):
            ids = {"token_ids": [self._asked.generated]} if self._reply.token_ids else {}
            await self._message(self._wire(Chunk(delta={"content" if self._chat else "text": item}, fields=ids)))
            self._asked.generated += 1
        else:
            await self._message(item)

    def _wire(self, chunk: Chunk) -> dict[str, Any]:
        content = {"delta": dict(chunk.delta)} if self._chat else {"text": "", **chunk.delta}
        choice = {"index": chunk.choice, **content, "finish_reason": chunk.finish_reason, **chunk.fields}
        return {**self._envelope(), "choices": [choice], **chunk.outer}

    def _envelope(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {"id": "scripted-1", "object": kind, "created": 0, "model": self._asked.body.get("model")}

    async def _message(self, message: Mapping[str, Any]) -> None:
        await self._bytes(b"data: " + json.dumps(message, ensure_ascii=False).encode() + b"\n\n")

    async def _bytes(self, data: bytes) -> None:
        if not self._gone.is_set():
            await self._send({"type": "http.response.body", "body": data, "more_body": True})


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _send_json(reply: Reply, send: Send) -> None:
    body = reply.json if isinstance(reply.json, bytes) else json.dumps(reply.json or {}).encode()
    headers = _encoded({"content-type": "application/json", "content-length": str(len(body)), **reply.headers})
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
