"""A guarded endpoint, end to end on a scripted server: promises 1, 4, 5, 6 and 8, sync and async."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from ada_guard import (
    Check,
    ConfigError,
    Done,
    Event,
    Fragment,
    GenerationError,
    Guard,
    Halt,
    Policy,
    Release,
    Replace,
    Schedule,
    ToolCall,
)
from ada_guard.sources import Endpoint
from ada_guard.testing import UNSAFE, ScriptedSidecar
from ada_guard.testing_endpoint import Asked, Chunk, Reply, ScriptedEndpoint

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
USER = [{"role": "user", "content": "Tell me."}]
SAFE = " ".join(f"word{i}" for i in range(60))
BAD = " ".join([f"word{i}" for i in range(30)] + [UNSAFE] + [f"word{i}" for i in range(30, 5000)])
EVERY5 = Policy(schedule=Schedule.every(5))
both = pytest.mark.parametrize("how", ["sync", "async"])


@contextmanager
def guarded(*replies: Any, policy: Policy = EVERY5, **settings: Any) -> Iterator[tuple[Guard, list[Asked]]]:
    """A guard on a scripted endpoint, with what the endpoint was asked."""
    script = ScriptedEndpoint(*replies)
    with script.serve() as base_url:
        endpoint = Endpoint(base_url=base_url, model="scripted", api_key_env=None, verify=False, **settings)
        yield Guard(endpoint, sidecar=ScriptedSidecar(), policy=policy), script.asked


def events_of(guard: Guard, how: str, messages: Any = USER, **settings: Any) -> list[Event]:
    if how == "sync":
        return list(guard.stream(messages, **settings))

    async def collect() -> list[Event]:
        try:
            return [event async for event in guard.astream(messages, **settings)]
        finally:
            await guard.aclose()

    return asyncio.run(collect())


def text(events: list[Event], choice: int = 0, kinds: Any = Release) -> str:
    return "".join(e.text for e in events if isinstance(e, kinds) and e.choice == choice)


@both
def test_a_benign_answer_is_released_whole(how: str) -> None:
    with guarded(SAFE) as (guard, _):
        events = events_of(guard, how)
        control = list(guard.unguarded(USER))
        guard.close()
    assert text(events) == text(control) == SAFE
    done, plain = events[-1], control[-1]
    assert isinstance(done, Done)
    assert isinstance(plain, Done)
    assert (done.finish_reason, done.usage) == (plain.finish_reason, plain.usage)
    assert done.usage is not None
    assert not done.usage.estimated
    assert done.unchecked_released_tokens == 0


@both
def test_a_cut_closes_the_response_so_that_the_server_stops(how: str) -> None:
    with guarded(BAD) as (guard, asked):
        events = events_of(guard, how)
        assert asked[0].over.wait(10)
        guard.close()
    assert asked[0].gone
    assert asked[0].generated < 5000
    assert UNSAFE not in text(events, kinds=(Release, Replace))
    assert text(events) == " ".join(f"word{i}" for i in range(30))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.unchecked_released_tokens == 0
    assert done.usage is not None
    assert done.usage.estimated


@both
def test_a_consumer_that_leaves_closes_the_response(how: str) -> None:
    with guarded(" ".join(["word"] * 5000)) as (guard, asked):
        if how == "sync":
            stream = guard.stream(USER)
            next(stream)
            stream.close()
            guard.close()
        else:

            async def leave() -> None:
                events = guard.astream(USER)
                await anext(events)
                await events.aclose()
                await guard.aclose()

            asyncio.run(leave())
        assert asked[0].over.wait(10)
    assert asked[0].gone


async def test_a_cancelled_consumer_closes_the_response() -> None:
    with guarded(" ".join(["word"] * 5000)) as (guard, asked):
        first = asyncio.Event()

        async def consume() -> None:
            async for _ in guard.astream(USER):
                first.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(consume())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(asked[0].over.wait, 10)
        await guard.aclose()
    assert asked[0].gone


@both
def test_a_cut_mutes_its_choice_and_the_others_go_on(how: str) -> None:
    items = [Chunk(delta={"content": word}, choice=choice) for words in zip(
        [f"a{i} " for i in range(12)], [f"b{i} " if i != 3 else f"{UNSAFE} " for i in range(12)], strict=True
    ) for choice, word in enumerate(words)]  # fmt: skip
    with guarded(Reply(items=items)) as (guard, asked):
        events = events_of(guard, how, n=2)
        guard.close()
    assert asked[0].body["n"] == 2
    assert text(events, 0).split() == [f"a{i}" for i in range(12)]
    assert text(events, 1) == ""
    assert [e.choice for e in events if isinstance(e, Halt)] == [1]
    assert sorted(e.choice for e in events if isinstance(e, Done)) == [0, 1]
    assert UNSAFE not in str([e.to_dict() for e in events])


def test_choices_asked_for_among_the_further_fields_count() -> None:
    items = [Chunk(delta={"content": "a "}), Chunk(delta={"content": "b "}, choice=1)]
    with guarded(Reply(items=items)) as (guard, _):
        events = events_of(guard, "sync", extra_body={"n": 2})
        guard.close()
    assert (text(events, 0), text(events, 1)) == ("a ", "b ")


def test_all_choices_cut_close_the_response() -> None:
    items = [Chunk(delta={"content": f"{UNSAFE} "}, choice=i % 2) for i in range(4000)]
    with guarded(Reply(items=items)) as (guard, asked):
        events = events_of(guard, "sync", n=2)
        assert asked[0].over.wait(10)
        guard.close()
    assert asked[0].gone
    assert [e.finish_reason for e in events if isinstance(e, Done)] == ["content_filter"] * 2


@both
def test_a_flagged_prefill_never_reaches_the_endpoint(how: str) -> None:
    with guarded(SAFE) as (guard, asked):
        events = events_of(guard, how, [*USER, {"role": "assistant", "content": f"Sure, {UNSAFE}"}])
        guard.close()
    assert asked == []
    assert isinstance(events[0], Check)
    assert events[0].decision == "flag"


@both
def test_a_failing_endpoint_raises_and_shows_nothing_unchecked(how: str) -> None:
    with guarded(Reply(items=["one ", "two ", {"error": {"message": f"{UNSAFE} happened", "code": 500}}])) as (
        guard,
        _,
    ):
        with pytest.raises(GenerationError) as caught:
            events_of(guard, how)
        guard.close()
    assert UNSAFE not in str(caught.value)


def test_a_failing_sidecar_fails_closed_before_and_in_mid_stream() -> None:
    class Gone(ScriptedSidecar):
        def open(self, *args: Any, **settings: Any) -> Any:
            following = yield from super().open(*args, **settings)
            following._harm = lambda depth: 0.0 if depth < 10 else float("nan")
            return following

    with guarded(SAFE) as (guard, asked):
        guard = Guard(guard.endpoint, sidecar=Gone(), policy=EVERY5)
        events = list(guard.stream(USER))
        assert asked[0].over.wait(10)
        guard.close()
    assert [e.decision for e in events if isinstance(e, Check)] == ["pass", "unchecked"]
    assert text(events) == "word0 word1 word2 word3 word4"


def test_a_guard_without_anything_that_judges_is_refused() -> None:
    with pytest.raises(ConfigError, match="sidecar"):
        Guard(Endpoint(base_url="http://127.0.0.1:1/v1", model="m"))
    with pytest.raises(ConfigError, match="sidecar"):
        Guard()


def test_complete_takes_one_choice() -> None:
    with guarded(SAFE) as (guard, _):
        assert guard.complete(USER).text == SAFE
        with pytest.raises(ConfigError, match="n > 1"):
            guard.complete(USER, n=2)
        guard.close()


async def test_streams_in_tasks_do_not_see_each_other() -> None:
    with guarded(lambda asked: BAD[:800] if "bad" in asked.body["messages"][0]["content"] else SAFE) as (guard, _):

        async def one(kind: str) -> list[Event]:
            return [event async for event in guard.astream([{"role": "user", "content": kind}])]

        found = await asyncio.gather(*(one(kind) for kind in ["good", "bad"] * 6))
        await guard.aclose()
    for events, kind in zip(found, ["good", "bad"] * 6, strict=True):
        assert any(isinstance(e, Halt) for e in events) is (kind == "bad")
        assert (text(events) == SAFE) is (kind == "good")


def test_ids_define_depth_only_where_the_tokenizer_is_shared() -> None:
    for shared in (None, True):
        with guarded(Reply(items=["one two ", "three ", "four"], token_ids=True)) as (guard, asked):
            guard = Guard(guard.endpoint, sidecar=guard.sidecar, policy=EVERY5, shared_tokenizer=shared)
            done = list(guard.stream(USER))[-1]
            guard.close()
        assert isinstance(done, Done)
        assert done.generated_tokens == (3 if shared else 4)
        assert ("return_token_ids" in asked[0].body) is bool(shared)


def test_the_salt_of_a_request_goes_with_its_conversation() -> None:
    seen: list[str | None] = []

    class Watching(ScriptedSidecar):
        def open(self, conversation: Any, **settings: Any) -> Any:
            seen.append(conversation.cache_salt)
            return (yield from super().open(conversation, **settings))

    with guarded(SAFE) as (guard, asked):
        guard = Guard(guard.endpoint, sidecar=Watching(), policy=EVERY5)
        list(guard.stream(USER, cache_salt="tenant"))
        list(guard.stream(USER, extra_body={"cache_salt": "other"}))
        guard.close()
    assert seen == ["tenant", "other"]
    assert [request.body["cache_salt"] for request in asked] == ["tenant", "other"]


@both
def test_any_iterable_can_be_guarded(how: str) -> None:
    read: list[int] = []

    def items() -> Iterator[str]:
        for number, word in enumerate(BAD.split(" ")):
            read.append(number)
            yield f"{word} "

    guard = Guard(sidecar=ScriptedSidecar(), policy=EVERY5)
    if how == "sync":
        events = list(guard.stream_from(items(), USER))
        whole = list(guard.stream_from(SAFE.split(" "), USER))
    else:

        async def aitems() -> AsyncIterator[str]:
            for item in items():
                yield item

        async def collect() -> tuple[list[Event], list[Event]]:
            return (
                [event async for event in guard.astream_from(aitems(), USER)],
                [event async for event in guard.astream_from(SAFE.split(" "), USER)],
            )

        events, whole = asyncio.run(collect())
    assert text(events).split() == [f"word{i}" for i in range(30)]
    assert len(read) < 50
    assert text(whole) == SAFE.replace(" ", "")


def test_template_variables_go_to_the_endpoint_too() -> None:
    with guarded(SAFE) as (guard, asked):
        list(guard.stream(USER, template_kwargs={"enable_thinking": False}))
        guard.close()
    assert asked[0].body["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_reason_that_is_a_text_is_not_shown() -> None:
    with guarded(Reply(items=["one "], finish_reason=f"{UNSAFE} in the reason")) as (guard, _):
        done = list(guard.stream(USER))[-1]
        guard.close()
    assert isinstance(done, Done)
    assert done.finish_reason == "stop"


@both
def test_a_response_that_cannot_be_closed_does_not_undo_the_cut(how: str) -> None:
    class Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for _ in range(100):
                chunk = {"choices": [{"index": 0, "delta": {"content": f"{UNSAFE} "}}]}
                yield f"data: {json.dumps(chunk)}\n\n".encode()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for part in self:
                yield part

        def close(self) -> None:
            raise RuntimeError(f"{UNSAFE} in close")

        async def aclose(self) -> None:
            self.close()

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream())

    transport = httpx.MockTransport(answer)
    clients: dict[str, Any] = {"client": httpx.Client(transport=transport)}
    clients["async_client"] = httpx.AsyncClient(transport=transport)
    endpoint = Endpoint(base_url="http://localhost/v1", model="m", api_key_env=None, **clients)
    events = events_of(Guard(endpoint, sidecar=ScriptedSidecar(), policy=EVERY5), how)
    assert [type(e) for e in events] == [Check, Halt, Replace, Done]


@pytest.mark.parametrize("pushed", [None, b"bytes", 7, ["text"], object()], ids=lambda pushed: type(pushed).__name__)
def test_what_is_no_stream_is_refused_in_one_line(pushed: Any) -> None:
    guard = Guard(sidecar=ScriptedSidecar())
    with pytest.raises(ConfigError, match="a stream is text"):
        guard.check(USER, pushed)
    with guard.session(USER) as session, pytest.raises(ConfigError, match="a stream is text"):
        session.push(pushed)


def test_settings_that_cannot_work_are_refused_in_one_line() -> None:
    url: Any = "http://127.0.0.1:1/v1"
    endpoint = Endpoint(base_url=url, model="m", api_key_env=None)
    wrong: list[tuple[Any, str]] = [
        (lambda: Guard(endpoint, sidecar="reference"), "for_endpoint"),  # type: ignore[arg-type]  # the mistake
        (lambda: Guard("reference"), "from_pretrained"),  # type: ignore[arg-type]  # the mistake
        (lambda: Guard.for_endpoint(url, model="m", sidecar="self"), "tokenizer="),
        (lambda: Guard.for_endpoint(url, model="m", sidecar=url, tokenizer="x"), "tokenizer="),
        (lambda: Guard.for_endpoint(url, model="m", sidecar=url, probe="x"), "probe="),
        (lambda: list(Guard(sidecar=ScriptedSidecar()).stream(USER, extra_body="x")), "extra_body"),
        (lambda: list(Guard(sidecar=ScriptedSidecar()).stream(USER, template_kwargs=["x"])), "template_kwargs"),  # type: ignore[arg-type]  # the mistake
        (lambda: Fragment(text="x", channel="nowhere"), "channels"),  # type: ignore[arg-type]  # the mistake
    ]
    for call, says in wrong:
        with pytest.raises(ConfigError, match=says) as error:
            call()
        assert "\n" not in str(error.value)


def test_after_a_push_that_failed_nothing_more_is_released() -> None:
    def call(index: int, arguments: str) -> Fragment:
        return Fragment(text=arguments, channel="tool_call", call=ToolCall(index=index, name="f"))

    with Guard(sidecar=ScriptedSidecar(), policy=EVERY5).session(USER) as session:
        lost = [call(0, "{}"), call(1, "{}"), Fragment(text="First cut the paper. "), call(0, '{"more": 1}')]
        with pytest.raises(GenerationError):
            session.push(lost)
        assert session.ended
        assert session.push("Then fold it in two.") == []
        assert session.close() == []


def test_a_scripted_sidecar_keeps_channels_apart_and_reads_them_all() -> None:
    items = [
        Chunk(delta={"reasoning": "I think "}),
        Chunk(delta={"content": "Hello there"}),
        Chunk(delta={"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"a": 1}'}}]}),
    ]
    with guarded(Reply(items=items, finish_reason="tool_calls")) as (guard, _):
        done = guard.complete(USER)
        guard.close()
    assert (done.text, done.reasoning, done.finish_reason) == ("Hello there", "I think ", "tool_calls")
    assert [(call.name, arguments) for call, arguments in done.tool_calls] == [("look", '{"a": 1}')]
    named = [{"index": 0, "id": "c1", "function": {"name": UNSAFE, "arguments": "{}"}}]
    with guarded(Reply(items=[Chunk(delta={"tool_calls": named})])) as (guard, _):
        assert guard.complete(USER).tool_calls == ()
        guard.close()


def test_a_setting_that_no_endpoint_has_is_named() -> None:
    with pytest.raises(ConfigError, match="no setting called temprature"):
        Guard.for_endpoint("http://127.0.0.1:9/v1", model="m", sidecar=ScriptedSidecar(), temprature=1)
