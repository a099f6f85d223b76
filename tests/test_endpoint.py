"""The endpoint source against a scripted server on loopback: what is sent, what is read, and how it is closed."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from endpoint_drives import ASK, Drive, both, loopback, pulled, served, text

from ada_guard.delta import Usage
from ada_guard.errors import ConfigError
from ada_guard.sources import Endpoint, Timeouts
from ada_guard.steps import arun, run
from ada_guard.testing_endpoint import Chunk, Cut, Pause, Repeat, Reply, ScriptedEndpoint

pytestmark = [loopback, both]
PREFILLED = [*ASK, {"role": "assistant", "content": "Sure, here"}]


async def test_a_chat(drive: Drive) -> None:
    async with served(drive, "Fold the paper. 🪁") as (endpoint, asked):
        stream = endpoint.open(ASK, max_tokens=20)
        deltas = await pulled(drive, stream)
        assert text(deltas) == "Fold the paper. 🪁"
        assert stream.finish_reasons == {0: "stop"}
        assert stream.usage == Usage(prompt_tokens=1, completion_tokens=4, details={"total_tokens": 5})
        assert stream.response_id == "scripted-1"
        assert await drive(stream.pull()) is None
        assert asked[0].path == "/v1/chat/completions"


async def test_a_completion(drive: Drive) -> None:
    async with served(drive, Reply(items=("a", " b"), token_ids=True), api="completions") as (endpoint, asked):
        deltas = await pulled(drive, endpoint.open(prompt=[1, 2, 3], return_token_ids=True))
        assert text(deltas) == "a b"
        assert [delta.token_ids for delta in deltas if delta.fragments] == [(0,), (1,)]
        assert asked[0].path == "/v1/completions"
        assert asked[0].body["prompt"] == [1, 2, 3]


async def test_what_is_sent(drive: Drive) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    settings: dict[str, Any] = {"temperature": 0.5, "stop": ["."], "seed": 1, "max_tokens": None}
    async with served(drive, "x", api_key="key", headers={"X-Tenant": "a"}) as (endpoint, asked):
        await pulled(drive, endpoint.open(ASK, tools=[tool], extra_body={"cache_salt": "s"}, **settings))
    assert asked[0].body == {
        "model": "scripted",
        "messages": ASK,
        "tools": [tool],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "stop": ["."],
        "seed": 1,
        "cache_salt": "s",
    }
    assert asked[0].headers["authorization"] == "Bearer key"
    assert asked[0].headers["x-tenant"] == "a"


async def test_the_key_comes_from_the_environment(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "key-of-mine")
    async with served(drive, "x", api_key_env="MY_KEY") as (endpoint, asked):
        await pulled(drive, endpoint.open(ASK))
    assert asked[0].headers["authorization"] == "Bearer key-of-mine"


async def test_choices_reasoning_and_tool_calls(drive: Drive) -> None:
    items = (
        Chunk(delta={"reasoning_content": "hm"}),
        Chunk(delta={"content": "b"}, choice=1),
        Chunk(delta={"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}]}),
        Chunk(choice=1, finish_reason="length"),
        Chunk(finish_reason="tool_calls"),
    )
    async with served(drive, Reply(items=items, finish_reason=None)) as (endpoint, _):
        stream = endpoint.open(ASK, n=2)
        deltas = await pulled(drive, stream)
    assert text([d for d in deltas if d.choice == 1]) == "b"
    assert text([d for d in deltas if d.choice == 0], "reasoning") == "hm"
    assert text([d for d in deltas if d.choice == 0], "tool_call") == "{}"
    assert stream.finish_reasons == {1: "length", 0: "tool_calls"}


@pytest.mark.parametrize(
    "reply",
    [
        Reply(items=("a", " b"), done=False),
        Reply(items=("a", " b"), finish_reason=None),
        Reply(items=("a", " b", b"data: [DONE]\n\n", b"data: whatever\n\n"), finish_reason=None, done=False),
        Reply(items=("a", " b", Chunk(finish_reason="stop"), b"data: half an ev", Cut())),
    ],
    ids=["finish reason only", "DONE only", "bytes behind DONE", "broken behind the end"],
)
async def test_ends_that_count_as_such(drive: Drive, reply: Reply) -> None:
    async with served(drive, reply) as (endpoint, _):
        assert text(await pulled(drive, endpoint.open(ASK))) == "a b"


async def test_closing_stops_the_server(drive: Drive) -> None:
    async with served(drive, Reply(items=("one", " two", Repeat((" more", Pause(0.01)))))) as (endpoint, asked):
        stream = endpoint.open(ASK)
        await drive(stream.pull())
        await drive(stream.pull())
        await drive(stream.close())
        assert await asyncio.to_thread(asked[0].over.wait, 10)
        assert asked[0].gone
        assert asked[0].generated < 200
        await drive(stream.close())
        assert await drive(stream.pull()) is None


async def test_a_running_count_survives_a_cut(drive: Drive) -> None:
    counted = Chunk(delta={"content": "a"}, outer={"usage": {"prompt_tokens": 7, "completion_tokens": 1}})
    async with served(drive, Reply(items=(counted, Pause(30)))) as (endpoint, asked):
        stream = endpoint.open(ASK, stream_options={"include_usage": True, "continuous_usage_stats": True})
        await drive(stream.pull())
        await drive(stream.close())
        assert stream.usage == Usage(prompt_tokens=7, completion_tokens=1)
        assert asked[0].body["stream_options"]["continuous_usage_stats"]


async def test_a_stream_that_was_never_pulled_is_never_sent(drive: Drive) -> None:
    async with served(drive, "x") as (endpoint, asked):
        stream = endpoint.open(ASK)
        await drive(stream.close())
        assert await drive(stream.pull()) is None
        assert asked == []


async def test_start_sends_once(drive: Drive) -> None:
    async with served(drive, "x") as (endpoint, asked):
        stream = endpoint.open(ASK)
        await drive(stream.start())
        await drive(stream.start())
        assert text(await pulled(drive, stream)) == "x"
        assert len(asked) == 1


async def test_a_slow_reader_holds_the_server_up(drive: Drive) -> None:
    """What it has sent meanwhile fits into the buffers on the way, however long the answer would be."""
    page = "x" * 65_536
    async with served(drive, Reply(items=(Repeat((page,)),))) as (endpoint, asked):
        stream = endpoint.open(ASK)
        await drive(stream.pull())
        before = -1
        for _ in range(100):
            await asyncio.sleep(0.1)
            before, now = asked[0].generated, before
            if before == now:
                break
        assert asked[0].generated == before < 1000
        await drive(stream.pull())
        await drive(stream.close())
        assert await asyncio.to_thread(asked[0].over.wait, 10)


async def test_a_ready_client_is_used_and_left_open(drive: Drive) -> None:
    script = ScriptedEndpoint("a b")
    with script.serve() as url, httpx.Client(headers={"x-from": "mine"}) as client:
        async with httpx.AsyncClient(headers={"x-from": "mine"}) as async_client:
            endpoint = Endpoint(base_url=url, model="m", client=client, async_client=async_client)
            assert text(await pulled(drive, endpoint.open(ASK))) == "a b"
            await drive(endpoint.close())
            assert text(await pulled(drive, endpoint.open(ASK))) == "a b"
    assert [each.headers["x-from"] for each in script.asked] == ["mine", "mine"]


async def test_a_proxy_is_asked_instead(drive: Drive) -> None:
    async with served(drive, "a b") as (proxy, asked):
        address = proxy.base_url.removesuffix("/v1")
        endpoint = Endpoint(base_url="http://llm.invalid/v1", model="m", proxy=address, verify=False)
        assert text(await pulled(drive, endpoint.open(ASK))) == "a b"
        await drive(endpoint.close())
    assert asked[0].path == "http://llm.invalid/v1/chat/completions"


async def test_a_ready_client_that_is_closed(drive: Drive) -> None:
    with httpx.Client() as client:
        async_client = httpx.AsyncClient()
        await async_client.aclose()
    endpoint = Endpoint(base_url="http://127.0.0.1:1/v1", model="m", client=client, async_client=async_client)
    with pytest.raises(ConfigError, match="client is closed"):
        await drive(endpoint.open(ASK).start())


async def test_a_client_of_the_other_kind_is_not_replaced_silently(drive: Drive) -> None:
    with httpx.Client() as client:
        async with httpx.AsyncClient() as async_client:
            given: dict[str, Any] = {"client": client} if drive is arun else {"async_client": async_client}
            endpoint = Endpoint(base_url="http://127.0.0.1:1/v1", model="m", **given)
            with pytest.raises(ConfigError, match=r"a ready .*client is given"):
                await drive(endpoint.open(ASK).start())


async def test_a_prefill_is_continued(drive: Drive) -> None:
    async with served(drive, " is how") as (endpoint, asked):
        assert text(await pulled(drive, endpoint.open(PREFILLED))) == " is how"
    assert asked[0].body["continue_final_message"] is True
    assert asked[0].body["add_generation_prompt"] is False


async def test_a_prefill_as_it_is_or_not_at_all(drive: Drive) -> None:
    async with served(drive, "x", prefill="plain") as (endpoint, asked):
        await pulled(drive, endpoint.open(PREFILLED))
    assert "continue_final_message" not in asked[0].body
    with pytest.raises(ConfigError, match="prefill='reject'"):
        Endpoint(base_url=endpoint.base_url, model="m", prefill="reject").open(PREFILLED)


@pytest.mark.parametrize(
    ("items", "answer"),
    [
        (("Sure,", " here", " is", " how"), " is how"),
        (("Sure, here is how",), " is how"),
        (("Sure, here",), ""),
        (("Su", "per"), "Super"),
        (("Sure,",), "Sure,"),
    ],
    ids=["in pieces", "at once", "alone", "not repeated", "repeated in part"],
)
@pytest.mark.parametrize("finish_reason", ["stop", None])
async def test_a_repeated_prefill_is_taken_off(
    drive: Drive, items: tuple[str, ...], answer: str, finish_reason: str | None
) -> None:
    reply = Reply(items=items, finish_reason=finish_reason, token_ids=True)
    async with served(drive, reply, prefill_echo=True) as (endpoint, _):
        deltas = await pulled(drive, endpoint.open(PREFILLED))
    assert text(deltas) == answer
    assert not any(delta.token_ids for delta in deltas)


async def test_a_server_that_refuses_to_count_is_asked_again_without(drive: Drive) -> None:
    refused = Reply(status=422, json={"detail": "Unexpected fields in the request: {'stream_options'}"})
    async with served(drive, refused, "a b", retries=0) as (endpoint, asked):
        stream = endpoint.open(ASK)
        assert text(await pulled(drive, stream)) == "a b"
        assert stream.usage is None
    assert ["stream_options" in each.body for each in asked] == [True, False]


@pytest.mark.parametrize(("usage", "sent"), [(True, True), (False, False)])
async def test_counting_can_be_insisted_on_or_left_out(drive: Drive, usage: bool, sent: bool) -> None:
    async with served(drive, Reply(status=422, json={}), usage=usage) as (endpoint, asked):
        with pytest.raises(ConfigError, match="422"):
            await drive(endpoint.open(ASK).start())
    assert ["stream_options" in each.body for each in asked] == [sent]


async def test_many_streams_at_once_on_one_endpoint(drive: Drive) -> None:
    async with served(drive, Reply(items=(*"abcdef",))) as (endpoint, _):
        streams = [endpoint.open(ASK) for _ in range(5)]
        seen = [""] * 5
        for _ in range(6):
            for i, stream in enumerate(streams):
                seen[i] += text([await drive(stream.pull())])
        assert seen == ["abcdef"] * 5
        for stream in streams:
            await drive(stream.close())


async def test_timeouts_in_all(drive: Drive) -> None:
    """The consumer's own time does not count."""
    limits = Timeouts(connect_s=5, read_s=5, total_s=1.0)
    async with served(drive, Reply(items=("a", " b")), timeouts=limits) as (endpoint, _):
        stream = endpoint.open(ASK)
        await drive(stream.pull())
        await asyncio.sleep(1.2)
        assert text(await pulled(drive, stream)) == " b"


async def test_one_endpoint_for_threads_and_loops(drive: Drive) -> None:
    async with served(drive, "a b") as (endpoint, _):
        assert text(await pulled(drive, endpoint.open(ASK))) == "a b"
        other = await asyncio.to_thread(lambda: asyncio.run(_whole(endpoint)))
        assert other == "a b"
        assert await asyncio.to_thread(run, endpoint.open(ASK).pull()) is not None
        run(endpoint.close())


async def _whole(endpoint: Endpoint) -> str:
    answer = text(await pulled(arun, endpoint.open(ASK)))
    await arun(endpoint.close())
    return answer
