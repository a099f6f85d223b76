"""Any iterable as a source: strings or deltas, sync or async, closed when it is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from endpoint_drives import Drive, both, in_a_thread

from ada_guard.delta import Delta, Fragment
from ada_guard.errors import ConfigError, GenerationError
from ada_guard.sources import IterableSource
from ada_guard.steps import arun

SECRET = "UNSAFE"


class Words:
    """A generator's doings, to look at."""

    def __init__(self, error: Exception | None = None) -> None:
        self.given = 0
        self.closed = False
        self.threads: set[int] = set()
        self.error = error

    def __iter__(self) -> Iterator[str]:
        try:
            for word in ("a", "", " b", " c"):
                self.given += 1
                self.threads.add(threading.get_ident())
                yield word
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


class AsyncWords(Words):
    """The same for an event loop, and for nothing else."""

    __iter__ = None  # type: ignore[assignment]  # this is how Python is told that it cannot be iterated

    async def __aiter__(self) -> AsyncIterator[str]:
        for word in Words.__iter__(self):
            yield word


async def taken(drive: Drive, source: IterableSource, count: int = 10) -> list[tuple[str, str | None]]:
    found = []
    while len(found) < count and (delta := await drive(source.pull())) is not None:
        found.append(("".join(f.text for f in delta.fragments), delta.finish_reason))
    return found


ENDED = [("a", None), (" b", None), (" c", None), ("", "stop")]


@both
async def test_strings(drive: Drive) -> None:
    assert await taken(drive, IterableSource(["a", " b", " c"])) == ENDED
    assert await taken(drive, IterableSource(Words())) == ENDED
    assert await taken(drive, IterableSource(["a"], finish_reason="length")) == [("a", None), ("", "length")]


@both
async def test_deltas_with_an_end_of_their_own(drive: Drive) -> None:
    items = [Delta(fragments=(Fragment(text="a"),)), Delta(finish_reason="length")]
    assert await taken(drive, IterableSource(items)) == [("a", None), ("", "length")]


async def test_an_async_iterable() -> None:
    assert await taken(arun, IterableSource(AsyncWords())) == ENDED


async def test_an_async_iterable_in_sync_code_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs async code"):
        await in_a_thread(IterableSource(AsyncWords()).pull())


async def test_a_sync_iterable_does_not_hold_up_the_event_loop() -> None:
    words = Words()
    source = IterableSource(words)
    await taken(arun, source, 2)
    await arun(source.close())
    assert threading.get_ident() not in words.threads
    assert len(words.threads) == 1
    assert words.closed


@both
@pytest.mark.parametrize("kind", [Words, AsyncWords])
async def test_leaving_closes_and_no_more_is_read(drive: Drive, kind: type[Words]) -> None:
    if kind is AsyncWords and drive is in_a_thread:
        return
    words = kind()
    source = IterableSource(words)
    assert await taken(drive, source, 1) == ENDED[:1]
    assert words.given == 1
    await drive(source.close())
    await drive(source.close())
    assert words.closed
    assert await drive(source.pull()) is None


async def test_a_cancelled_pull_is_cancelled_behind() -> None:
    cancelled = False

    async def slow() -> AsyncIterator[str]:
        nonlocal cancelled
        try:
            yield "a"
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled = True
            raise

    source = IterableSource(slow())
    await arun(source.pull())
    waiting = asyncio.ensure_future(arun(source.pull()))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled
    await arun(source.close())


@both
async def test_an_error_of_the_iterable_is_named_not_shown(drive: Drive) -> None:
    words = Words(ValueError(SECRET))
    with pytest.raises(GenerationError) as caught:
        await taken(drive, IterableSource(words))
    assert str(caught.value) == "the source failed (ValueError)"
    assert caught.value.__context__ is None
    assert words.closed


@both
@pytest.mark.parametrize("item", [1, b"bytes", None, ["a"]])
async def test_what_is_no_text_is_an_error(drive: Drive, item: Any) -> None:
    with pytest.raises(GenerationError, match=f"gave a {type(item).__name__} where a string"):
        await taken(drive, IterableSource(["a", item]))


@pytest.mark.parametrize("items", ["text", b"text", 5, None])
def test_what_is_no_stream_is_refused(items: Any) -> None:
    with pytest.raises(ConfigError, match="iterable of strings"):
        IterableSource(items)
