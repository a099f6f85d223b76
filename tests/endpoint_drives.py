"""One test body for both ways to run steps, on one scripted endpoint."""

from __future__ import annotations

import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest

from ada_guard.delta import Delta
from ada_guard.errors import AdaGuardError
from ada_guard.sources import Endpoint, EndpointStream
from ada_guard.steps import Steps, arun, run
from ada_guard.testing_endpoint import Asked, Reply, ScriptedEndpoint

Drive: TypeAlias = Callable[[Steps[Any]], Awaitable[Any]]
SECRET = "UNSAFE"
"""Stands for what must never be shown."""
KEY = "sk-of-mine"
ASK = [{"role": "user", "content": "How do I make a kite?"}]


async def in_a_thread(steps: Steps[Any]) -> Any:
    return run(steps)


both = pytest.mark.parametrize("drive", [in_a_thread, arun], ids=["sync", "async"])
loopback = pytest.mark.allow_hosts(["127.0.0.1"])


@asynccontextmanager
async def served(drive: Drive, *replies: Reply | str, **settings: Any) -> AsyncIterator[tuple[Endpoint, list[Asked]]]:
    """An endpoint on a scripted server, closed in the end; with what the server was asked."""
    script = ScriptedEndpoint(*replies)
    with script.serve() as base_url:
        # Nothing here speaks TLS, and reading the certificates takes longer than most of the tests.
        ours = {"base_url": base_url, "model": "scripted", "api_key_env": None, "verify": False}
        endpoint = Endpoint(**{**ours, **settings})
        try:
            yield endpoint, script.asked
        finally:
            await drive(endpoint.close())


async def pulled(drive: Drive, stream: EndpointStream, *, into: list[Delta] | None = None) -> list[Delta]:
    """Every delta of a stream; `into` keeps those before an error."""
    deltas = [] if into is None else into
    while (delta := await drive(stream.pull())) is not None:
        deltas.append(delta)
    return deltas


def text(deltas: list[Delta], channel: str = "text") -> str:
    return "".join(f.text for delta in deltas for f in delta.fragments if f.channel == channel)


async def fails(drive: Drive, stream: EndpointStream, kind: type[AdaGuardError]) -> tuple[list[Delta], str]:
    """What came before the error, and the error's message; it must carry no text and no key, also in its chain."""
    deltas: list[Delta] = []
    with pytest.raises(kind) as caught:
        await pulled(drive, stream, into=deltas)
    error = caught.value
    assert type(error) is kind
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(stream)
    assert SECRET not in shown
    assert KEY not in shown
    assert "\n" not in str(error)
    with pytest.raises(kind, match=re.escape(str(error))):  # never a silent end behind a failure
        await drive(stream.pull())
    return deltas, str(error)
