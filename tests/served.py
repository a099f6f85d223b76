"""Sidecar servers for tests: on a thread with a scripted sidecar, or as a process of their own."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from ada_guard import Event, Guard, Release
from ada_guard.checking import Ask, CheckContext, Checker
from ada_guard.policy import Schedule
from ada_guard.serve import ServeSettings, bind, create_app
from ada_guard.sidecar.protocol import Conversation
from ada_guard.steps import Steps
from ada_guard.testing import UNSAFE, ScriptedFollowing, ScriptedSidecar
from ada_guard.verdict import Verdict

loopback = pytest.mark.allow_hosts(["127.0.0.1"])
USER = [{"role": "user", "content": "Tell me."}]
SAFE = " ".join(f"word{i}" for i in range(60))
BAD = " ".join([f"word{i}" for i in range(30)] + [UNSAFE] + [f"word{i}" for i in range(30, 60)])


class Following(ScriptedFollowing):
    """A scripted place whose checks first do something else."""

    before: Callable[[int], Steps[None]] | None = None

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        if self.before is not None:
            yield from self.before(context.depth)
        return (yield from super().check(checker, context))


class Sidecar(ScriptedSidecar):
    """A scripted sidecar that can be told to misbehave.

    Args:
        harm: Depth -> harm probability; None: that of the words.
        lookahead: Depth -> what the model says behind its header; None: it refuses where a word is harmful.
        before: Steps before each check, told the depth.
    """

    def __init__(
        self,
        harm: Callable[[int], float] | None = None,
        lookahead: Callable[[int], str] | None = None,
        before: Callable[[int], Steps[None]] | None = None,
        name: str = "scripted",
    ) -> None:
        super().__init__()
        self.name = name
        self.harm, self.lookahead, self.before = harm, lookahead, before

    def open(
        self, conversation: Conversation, *, asks: frozenset[type[Ask]], schedule: Schedule
    ) -> Steps[ScriptedFollowing]:
        yield from super().open(conversation, asks=asks, schedule=schedule)
        plain = self.followed.pop()

        def unsafe(depth: int) -> bool:
            return UNSAFE in "".join(piece.text for piece in following.pieces[:depth])

        def harm(depth: int) -> float:
            return self.harm(depth) if self.harm else (0.99 if unsafe(depth) else 0.01)

        def lookahead(depth: int) -> str:
            if self.lookahead:
                return self.lookahead(depth)
            return "I'm sorry, but I can't help with that. Ask me more." if unsafe(depth) else "Sure, here are more."

        following = Following(harm, lookahead, plain.prefill_text)
        following.before = self.before
        self.followed.append(following)
        return following


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """An app on a thread."""

    def __init__(self, app: FastAPI, port: int = 0) -> None:
        self.app = app
        self.service = app.state.service
        self._bound = bind("127.0.0.1", port, api_key=None)
        self.port = int(self._bound.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve([self._bound])

        asyncio.run(main())

    def do(self, work: Any) -> Any:
        """Runs a coroutine on the server's loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def lose_sessions(self) -> None:
        """What a restart does to clients."""
        self.do(self.service.sessions.close_all())

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(15)
        self._bound.close()


@contextmanager
def served(sidecar: Any = None, *, port: int = 0, api_key: str | None = None, **settings: Any) -> Iterator[Served]:
    """A server on loopback."""
    app = create_app(sidecar or Sidecar(), api_key=api_key, settings=ServeSettings(**settings))
    server = Served(app, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def in_process(
    sidecar: Any = None, *, api_key: str | None = None, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """A client of an app without a socket, and the app's service."""
    app = create_app(sidecar or Sidecar(), api_key=api_key, settings=ServeSettings(**settings))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://sidecar.test") as client,
    ):
        yield client, app.state.service


def split(text: str, seed: int, most: int = 9) -> list[str]:
    """A text in pieces of random lengths."""
    rng, parts = random.Random(seed), []
    while text:
        size = rng.randint(1, most)
        parts.append(text[:size])
        text = text[size:]
    return parts


def pushed(guard: Guard, parts: Sequence[Any], messages: Any = USER) -> list[Event]:
    """The events of a session that is given the parts, until it ends."""
    with guard.session(messages) as session:
        events: list[Event] = []
        for part in parts:
            events += session.push(part)
            if session.ended:
                return events
        return [*events, *session.close()]


async def apushed(guard: Guard, parts: Sequence[Any], messages: Any = USER) -> list[Event]:
    async with await guard.asession(messages) as session:
        events: list[Event] = []
        for part in parts:
            events += await session.apush(part)
            if session.ended:
                return events
        return [*events, *await session.aclose()]


def shape(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events without what the clock says, and without what depends on how much had come when the stream was cut."""
    shapes = [{k: v for k, v in event.to_dict().items() if not k.endswith("_ms")} for event in events]
    for each in shapes:
        if each["event"] == "done" and each["finish_reason"] == "content_filter":
            each.pop("generated_tokens")
    return shapes


def released(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Release))
