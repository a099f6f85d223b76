"""What an endpoint can do wrong: each fault is one clear error without text, and what came before it was delivered."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from types import FunctionType, ModuleType
from typing import Any

import httpx
import pytest
from endpoint_drives import ASK, KEY, SECRET, Drive, both, fails, loopback, pulled, served, text

from ada_guard.errors import ConfigError, GenerationError
from ada_guard.sources import Endpoint, Timeouts
from ada_guard.steps import arun
from ada_guard.testing_endpoint import Chunk, Cut, Pause, Repeat, Reply, ScriptedEndpoint

pytestmark = [loopback]
SECRET_ERROR = {"error": {"message": SECRET, "type": "server_error", "code": 500}}


# -- in mid-stream ----------------------------------------------------------------------------------------------------

BREAKS: dict[str, tuple[tuple[Any, ...], str]] = {
    "error object": ((SECRET_ERROR,), r"reported an error in mid-stream \(server_error\)"),
    "error event": ((b'event: error\ndata: {"message": "UNSAFE"}\n\n',), "reported an error"),
    "data that is no JSON": ((b"data: UNSAFE is here\n\n",), "cannot be read: it is not a JSON object"),
    "an error that broke its own JSON": ((b'data: {"error": "UNSAFE "quoted""}\n\n',), "not a JSON object"),
    "a chunk without choices": (({"text": SECRET},), "'choices' is missing"),
    "cut": ((Cut(),), "broke in mid-stream"),
    "cut in mid-character": ((b'data: {"choices": [{"delta": {"content": "\xf0\x9f\xaa', Cut()), "broke in mid-stream"),
    "cut between events": ((b": keep-alive\n\n", Cut()), "broke in mid-stream"),
    "an endless line": ((Repeat((b"x" * 1000,)),), "more than 20000 bytes"),
    "an endless event": ((Repeat((b"data: xxxxxxxxxx\n",)),), "more than 20000 bytes"),
}


@both
@pytest.mark.parametrize(("items", "said"), BREAKS.values(), ids=BREAKS.keys())
async def test_a_break(drive: Drive, items: tuple[Any, ...], said: str) -> None:
    reply = Reply(items=("one", " two", *items, "never"))
    async with served(drive, reply, max_event_bytes=20_000, api_key=KEY) as (endpoint, asked):
        deltas, message = await fails(drive, endpoint.open(ASK), GenerationError)
        assert text(deltas) == "one two"
        assert re.search(said, message)
        assert await asyncio.to_thread(asked[0].over.wait, 10)
        assert len(asked) == 1  # nothing is asked twice once an answer has begun


@both
async def test_a_compression_that_is_none(drive: Drive) -> None:
    async with served(drive, Reply(items=("one",), headers={"content-encoding": "gzip"})) as (endpoint, _):
        assert "cannot be read (DecodingError)" in (await fails(drive, endpoint.open(ASK), GenerationError))[1]


@both
async def test_an_end_without_an_end_is_an_error(drive: Drive) -> None:
    async with served(drive, Reply(items=("one",), finish_reason=None, done=False)) as (endpoint, _):
        deltas, said = await fails(drive, endpoint.open(ASK), GenerationError)
        assert text(deltas) == "one"
        assert said == "the endpoint's stream stopped without an end: the answer is incomplete"


@both
async def test_an_end_of_one_choice_only_is_an_error(drive: Drive) -> None:
    reply = Reply(items=("one", Chunk(finish_reason="stop")), finish_reason=None, done=False)
    async with served(drive, reply) as (endpoint, _):
        assert "without an end" in (await fails(drive, endpoint.open(ASK, n=2), GenerationError))[1]


@both
async def test_stray_lines_are_skipped_as_the_standard_says(drive: Drive) -> None:
    async with served(drive, Reply(items=("one", b"stray\n", b'{"error": 1}\n\n', " two"))) as (endpoint, _):
        assert text(await pulled(drive, endpoint.open(ASK))) == "one two"


@both
@pytest.mark.parametrize(
    "endless",
    [(b": keep-alive\n\n", Pause(0.02)), (b"x", Pause(0.02)), (b"data:\n\n",)],
    ids=["keep-alives", "drips", "blanks without a pause"],
)
async def test_bytes_without_end_run_into_the_total_limit(drive: Drive, endless: tuple[Any, ...]) -> None:
    limits = Timeouts(connect_s=5, read_s=5, total_s=1.0)
    async with served(drive, Reply(items=("one", Repeat(endless))), timeouts=limits) as (endpoint, asked):
        deltas, said = await fails(drive, endpoint.open(ASK), GenerationError)
        assert text(deltas) == "one"
        assert "total timeout" in said
        assert await asyncio.to_thread(asked[0].over.wait, 10)
        assert asked[0].gone


@both
async def test_silence_in_mid_stream(drive: Drive) -> None:
    limits = Timeouts(connect_s=5, read_s=0.5, total_s=60)
    async with served(drive, Reply(items=("one", Pause(30))), timeouts=limits) as (endpoint, asked):
        deltas, said = await fails(drive, endpoint.open(ASK), GenerationError)
        assert text(deltas) == "one"
        assert "fell silent" in said
        assert await asyncio.to_thread(asked[0].over.wait, 10)


@both
async def test_silence_behind_the_end_harms_nobody(drive: Drive) -> None:
    limits = Timeouts(connect_s=5, read_s=0.5, total_s=60)
    async with served(drive, Reply(items=("one", Chunk(finish_reason="stop"), Pause(30))), timeouts=limits) as (e, _):
        assert text(await pulled(drive, e.open(ASK))) == "one"


# -- leaving -----------------------------------------------------------------------------------------------------------


async def test_a_cancelled_pull_ends_the_request() -> None:
    async with served(arun, Reply(items=("one", Pause(60)))) as (endpoint, asked):
        stream = endpoint.open(ASK)
        await arun(stream.pull())
        waiting = asyncio.ensure_future(arun(stream.pull()))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await arun(stream.close())
        assert await asyncio.to_thread(asked[0].over.wait, 10)
        assert asked[0].gone


async def test_without_a_socket_the_server_is_never_a_token_ahead() -> None:
    script = ScriptedEndpoint(Reply(items=(Repeat(("tick ",)),)))
    async with httpx.AsyncClient(transport=script.transport()) as client:
        stream = Endpoint(base_url="http://scripted/v1", model="m", async_client=client).open(ASK)
        for count in range(1, 6):
            await arun(stream.pull())
            await asyncio.sleep(0.01)
            assert script.asked[0].generated <= count
        await arun(stream.close())
    assert script.asked[0].gone
    assert script.asked[0].generated <= 6


async def test_without_a_socket_a_cut_and_an_error_are_seen_too() -> None:
    script = ScriptedEndpoint(Reply(items=("one", Cut())), Reply(status=404, json={}))
    async with httpx.AsyncClient(transport=script.transport()) as client:
        endpoint = Endpoint(base_url="http://scripted/v1", model="m", async_client=client)
        assert "broke in mid-stream" in (await fails(arun, endpoint.open(ASK), GenerationError))[1]
        assert "404" in (await fails(arun, endpoint.open(ASK), ConfigError))[1]


def reachable(root: object) -> list[object]:
    """Everything that an object keeps alive, as far as it is data."""
    found, seen, queue = [], set(), [root]
    while queue:
        each = queue.pop()
        if id(each) in seen or isinstance(
            each, type | ModuleType | FunctionType | logging.Logger | asyncio.BaseEventLoop
        ):
            continue
        seen.add(id(each))
        found.append(each)
        queue += gc.get_referents(each)
    return found


@both
@pytest.mark.parametrize("failing", [False, True], ids=["closed", "failed"])
async def test_a_stream_that_is_left_keeps_nothing_of_what_it_read(drive: Drive, failing: bool) -> None:
    call = b'{"index": 0, "function": {"name": "UNSAFE"}}'
    more = b'data: {"choices": [{"delta": {"content": "UNSAFE", "tool_calls": [' + call + b"]}}]}\n\n"
    broken = b'data: {"UNSAFE":}\n\n' if failing else b""
    async with served(drive, Reply(items=(more * 2 + broken + b"data: UNSAFE", Pause(30)))) as (endpoint, _):
        stream = endpoint.open(ASK)
        if failing:
            with pytest.raises(GenerationError):
                await pulled(drive, stream, into=[])
        else:
            await drive(stream.pull())
            await drive(stream.close())
        texts = [value for value in reachable(stream) if isinstance(value, str | bytes | bytearray)]
        assert any(ASK[0]["content"] in str(value) for value in texts)  # the search finds what is there
        assert not any(SECRET in str(value) for value in texts)


@both
async def test_nothing_of_it_is_logged(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with served(drive, Reply(items=(SECRET, SECRET_ERROR)), api_key=KEY) as (endpoint, _):
            await fails(drive, endpoint.open([{"role": "user", "content": SECRET}]), GenerationError)
    logged = [record.getMessage() for record in caplog.records]
    assert not [line for line in logged if SECRET in line or KEY in line]
