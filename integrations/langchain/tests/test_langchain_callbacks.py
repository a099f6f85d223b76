"""The callback handler: what it counts, and each row of its table of what a callback cannot keep from being shown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import LLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import GenerationChunk
from prometheus_client import CollectorRegistry

from ada_guard import ConfigError, ContentFlaggedError, Guard, Policy, Schedule
from ada_guard.errors import CheckError, MissingExtraError
from ada_guard.testing import UNSAFE, ScriptedGuard, ScriptedSidecar, words
from langchain_ada_guard import ChatAdaGuard, guard_model
from langchain_ada_guard.callbacks import AdaGuardCallbackHandler, CallbackLeakWarning
from langchain_ada_guard.runnable import RunnableAdaGuard
from langchain_ada_guard.testing import ScriptedChatModel, call_chunks, word_chunks

BENIGN = "one two three four five six seven eight nine ten"
BEFORE = "one two three four five six"
AFTER = [f" more{number}" for number in range(30)]
HARMFUL = f"{BEFORE} {UNSAFE}{''.join(AFTER)}"
TO_THE_FLAGGED_TOKEN = f"{BEFORE} {UNSAFE}"
ONE_CHUNK_MORE = f"{TO_THE_FLAGGED_TOKEN}{AFTER[0]}"

# What langchain-core says of version v3 itself.
beta = pytest.mark.filterwarnings("ignore:.*beta.*")


class Quiet(ScriptedChatModel):
    """A model that tells its callbacks no tokens: LangChain tells them, where it does."""

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        return super()._stream(messages, stop, **kwargs)

    async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        async for chunk in super()._astream(messages, stop, **kwargs):
            yield chunk


def guard(schedule: str = "every:1", **policy: Any) -> ScriptedGuard:
    return ScriptedGuard(policy=Policy(schedule=Schedule.parse(schedule), **policy))


def cutting(schedule: str = "every:1", **policy: Any) -> AdaGuardCallbackHandler:
    return AdaGuardCallbackHandler(guard(schedule, **policy))


def with_(*handlers: BaseCallbackHandler) -> Any:
    return {"callbacks": list(handlers)}


async def every(stream: AsyncIterator[Any], into: list[str]) -> None:
    async for chunk in stream:
        into.append(chunk if isinstance(chunk, str) else str(chunk.content))  # noqa: PERF401  # kept when it raises


def shown_until_cut(stream: Iterator[Any]) -> str:
    shown = ""
    with pytest.raises(ContentFlaggedError):  # noqa: PT012  # what came before the error counts
        for chunk in stream:
            shown += chunk if isinstance(chunk, str) else str(chunk.content)
    return shown


async def ashown_until_cut(stream: AsyncIterator[Any]) -> str:
    shown: list[str] = []
    with pytest.raises(ContentFlaggedError):
        await every(stream, shown)
    return "".join(shown)


def messages_of(agent: Any, *handlers: BaseCallbackHandler) -> Iterator[Any]:
    """What an agent's stream of messages shows."""
    for message, _ in agent.stream({"messages": [("user", "hi")]}, stream_mode="messages", config=with_(*handlers)):
        yield message


async def amessages_of(agent: Any, *handlers: BaseCallbackHandler) -> AsyncIterator[Any]:
    stream = agent.astream({"messages": [("user", "hi")]}, stream_mode="messages", config=with_(*handlers))
    async for message, _ in stream:
        yield message


# -- counting -------------------------------------------------------------------------------------------------------


def test_events_of_a_chain_are_counted_and_a_cut_once() -> None:
    audit = AdaGuardCallbackHandler()
    chain = guard_model(ScriptedChatModel.saying(HARMFUL), guard("every:3")) | StrOutputParser()
    list(chain.stream("hi", config=with_(audit)))
    counts = audit.counts
    assert dict(counts.checks) == {("pass", "probe"): 2, ("flag", "probe"): 1}
    assert (counts.flags, counts.unchecked, counts.halts, counts.streams) == (1, 0, 1, 1)
    assert (counts.generated_tokens, counts.released_tokens, counts.unchecked_released_tokens) == (9, 6, 0)
    assert counts.check_ms > 0


async def test_events_of_an_async_chain_are_counted_and_a_cut_once() -> None:
    audit = AdaGuardCallbackHandler()
    chain = guard_model(ScriptedChatModel.saying(HARMFUL), guard("every:3")) | StrOutputParser()
    await chain.ainvoke("hi", config=with_(audit))
    assert (audit.counts.halts, audit.counts.streams, audit.counts.flags) == (1, 1, 1)


def test_benign_streams_are_counted_without_a_cut() -> None:
    audit = AdaGuardCallbackHandler()
    chain = guard_model(ScriptedChatModel.saying(BENIGN), guard("every:5")) | StrOutputParser()
    for question in ("a", "b", "c"):
        chain.invoke(question, config=with_(audit))
    counts = audit.counts
    assert (counts.streams, counts.halts, counts.flags, counts.generated_tokens) == (3, 0, 0, 30)


def test_handler_of_the_model_itself_hears_the_events_of_a_bare_call() -> None:
    audit = AdaGuardCallbackHandler()
    model = ChatAdaGuard(inner=ScriptedChatModel.saying(HARMFUL), guard=guard(), callbacks=[audit])
    model.invoke("hi")
    list(model.stream("hi"))
    assert (audit.counts.halts, audit.counts.streams) == (2, 2)


def test_handler_of_one_bare_stream_counts_the_cut_from_the_message() -> None:
    audit = AdaGuardCallbackHandler()
    model = guard_model(ScriptedChatModel.saying(HARMFUL), guard())
    list(model.stream("hi", config=with_(audit)))
    list(guard_model(ScriptedChatModel.saying(BENIGN), guard()).stream("hi", config=with_(audit)))
    counts = audit.counts
    assert (counts.halts, counts.streams, dict(counts.checks)) == (1, 1, {("flag", "probe"): 1})


def test_handler_of_one_bare_invoke_counts_a_cut_once() -> None:
    audit = AdaGuardCallbackHandler()
    guard_model(ScriptedChatModel.saying(HARMFUL), guard()).invoke("hi", config=with_(audit))
    assert (audit.counts.halts, audit.counts.streams, audit.counts.flags) == (1, 1, 1)


def test_handler_of_one_bare_call_counts_the_cut_from_the_error() -> None:
    audit = AdaGuardCallbackHandler()
    model = guard_model(ScriptedChatModel.saying(HARMFUL), guard(on_flag="raise"))
    for call in (
        lambda: model.invoke("hi", config=with_(audit)),
        lambda: list(model.stream("hi", config=with_(audit))),
    ):
        with pytest.raises(ContentFlaggedError):
            call()
    assert (audit.counts.halts, audit.counts.flags) == (2, 2)


def test_cut_that_raises_in_a_chain_is_counted_once() -> None:
    audit = AdaGuardCallbackHandler()
    chain = guard_model(ScriptedChatModel.saying(HARMFUL), guard(on_flag="raise")) | StrOutputParser()
    with pytest.raises(ContentFlaggedError):
        chain.invoke("hi", config=with_(audit))
    assert (audit.counts.halts, audit.counts.flags, audit.counts.streams) == (1, 1, 1)


def test_streams_with_and_without_events_are_each_counted_once_when_they_interleave() -> None:
    audit = AdaGuardCallbackHandler()
    model = guard_model(ScriptedChatModel.saying(HARMFUL), guard())
    streams = [
        (model | StrOutputParser()).stream("hi", config=with_(audit)),
        model.stream("hi", config=with_(audit)),
        (model | StrOutputParser()).stream("hi", config=with_(audit)),
    ]
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]
    assert audit.counts.halts == 3


def test_each_cut_of_a_batch_is_counted() -> None:
    audit = AdaGuardCallbackHandler()
    chain = guard_model(ScriptedChatModel.saying(HARMFUL), guard()) | StrOutputParser()
    chain.batch(["a", "b", "c"], config=with_(audit))
    assert (audit.counts.halts, audit.counts.flags) == (3, 3)


def test_agent_is_counted() -> None:
    audit = AdaGuardCallbackHandler()
    agent = create_agent(guard_model(ScriptedChatModel.saying(HARMFUL), guard()), [])
    list(messages_of(agent, audit))
    assert (audit.counts.halts, audit.counts.streams) == (1, 1)


def test_many_threads_are_counted_together() -> None:
    audit = AdaGuardCallbackHandler()
    chain = guard_model(ScriptedChatModel.saying(HARMFUL), guard()) | StrOutputParser()
    threads = [threading.Thread(target=lambda: chain.invoke("hi", config=with_(audit))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (audit.counts.halts, audit.counts.streams, audit.counts.flags) == (8, 8, 8)


def test_counts_are_a_snapshot() -> None:
    audit = AdaGuardCallbackHandler()
    before = audit.counts
    (guard_model(ScriptedChatModel.saying(BENIGN), guard()) | StrOutputParser()).invoke("hi", config=with_(audit))
    assert before.streams == 0
    with pytest.raises(TypeError):
        before.checks["pass", "probe"] = 1  # type: ignore[index]  # that it cannot be set is the point


def test_records_come_one_by_one_and_hold_no_text() -> None:
    records: list[tuple[UUID, Any]] = []
    audit = AdaGuardCallbackHandler(on_record=lambda run_id, data: records.append((run_id, data)))
    model = guard_model(ScriptedChatModel.saying(HARMFUL), guard("every:8", replacement="other words"))
    (model | StrOutputParser()).invoke("hi", config=with_(audit))
    list(model.stream("hi", config=with_(audit)))
    assert [data["event"] for _, data in records] == ["check", "halt", "done", "cut"]
    assert len({run_id for run_id, _ in records}) == 2
    for text in (*BEFORE.split()[1:], "more", UNSAFE, "words"):
        assert text not in repr(records)


def test_events_of_others_are_not_counted() -> None:
    audit = AdaGuardCallbackHandler()
    audit.on_custom_event("another", {"event": "halt"}, run_id=uuid4())
    assert audit.counts.halts == 0


def test_counting_alone_breaks_nothing_off() -> None:
    audit = AdaGuardCallbackHandler()
    model = ScriptedChatModel.saying(HARMFUL)
    assert "".join(str(chunk.content) for chunk in model.stream("hi", config=with_(audit))) == HARMFUL
    assert (audit.counts.streams, audit.open_streams) == (0, 0)


# -- Prometheus -----------------------------------------------------------------------------------------------------


def test_metrics_say_what_the_counts_say_and_many_handlers_share_a_registry() -> None:
    registry = CollectorRegistry()
    chain = guard_model(ScriptedChatModel.saying(HARMFUL), guard("every:3")) | StrOutputParser()
    for _ in range(2):
        chain.invoke("hi", config=with_(AdaGuardCallbackHandler(metrics=registry)))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"ada_guard_langchain_{name}", labels)

    assert value("checks_total", decision="pass", checker="probe") == 4
    assert value("checks_total", decision="flag", checker="probe") == 2
    assert value("check_seconds_count") == 6
    assert value("cuts_total", reason="flag") == 2
    assert value("streams_total") == 2
    assert value("tokens_total", kind="generated") == 18
    assert value("tokens_total", kind="released") == 12
    assert value("tokens_total", kind="unchecked_released") == 0


def test_metrics_without_their_extra_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ada-guard\[serve\]'"):
        AdaGuardCallbackHandler(metrics=True)


# -- cutting: the rows of the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ScriptedChatModel, Quiet])
def test_stream_checked_at_every_token_shows_the_flagged_token_and_is_stopped(kind: Any) -> None:
    model, handler = kind.saying(HARMFUL), cutting()
    assert shown_until_cut(model.stream("hi", config=with_(handler))) == TO_THE_FLAGGED_TOKEN
    assert (model.given, model.closed) == (8, 1)
    assert (handler.counts.halts, handler.counts.streams, handler.open_streams) == (1, 1, 0)


async def test_astream_checked_at_every_token_shows_the_flagged_token_and_is_stopped() -> None:
    model, handler = ScriptedChatModel.saying(HARMFUL), cutting()
    assert await ashown_until_cut(model.astream("hi", config=with_(handler))) == TO_THE_FLAGGED_TOKEN
    assert (model.given, model.closed, handler.open_streams) == (8, 1, 0)


def test_stream_checked_every_n_tokens_shows_up_to_n_more() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    shown = shown_until_cut(model.stream("hi", config=with_(cutting("every:12"))))
    assert shown == TO_THE_FLAGGED_TOKEN + "".join(AFTER[:5])
    assert model.given == 13


def test_flag_of_the_check_at_the_end_comes_after_all_of_it() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    assert shown_until_cut(model.stream("hi", config=with_(cutting("every:500")))) == HARMFUL


async def test_async_flag_of_the_check_at_the_end_comes_after_all_of_it() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    assert await ashown_until_cut(model.astream("hi", config=with_(cutting("every:500")))) == HARMFUL


def test_invoke_raises_instead_of_answering_when_the_model_is_done() -> None:
    model, handler = ScriptedChatModel.saying(HARMFUL), cutting()
    with pytest.warns(CallbackLeakWarning, match="without streaming"), pytest.raises(ContentFlaggedError):
        model.invoke("hi", config=with_(handler))
    assert model.given == len(word_chunks(HARMFUL))
    assert (handler.counts.halts, handler.open_streams) == (1, 0)


async def test_ainvoke_raises_instead_of_answering_when_the_model_is_done() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    with pytest.warns(CallbackLeakWarning, match="without streaming"), pytest.raises(ContentFlaggedError):
        await model.ainvoke("hi", config=with_(cutting()))
    assert model.given == len(word_chunks(HARMFUL))


@pytest.mark.parametrize("in_a_chain", [False, True])
async def test_event_stream_shows_the_flagged_token_and_is_stopped(in_a_chain: bool) -> None:
    model: Any = ScriptedChatModel.saying(HARMFUL)
    events = (model | StrOutputParser() if in_a_chain else model).astream_events(
        "hi", version="v2", config=with_(cutting())
    )
    shown = (event["data"]["chunk"] async for event in events if event["event"] == "on_chat_model_stream")
    assert await ashown_until_cut(shown) == TO_THE_FLAGGED_TOKEN
    assert model.given == 8


def test_agents_messages_show_the_flagged_token_and_are_stopped() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    assert shown_until_cut(messages_of(create_agent(model, []), cutting())) == TO_THE_FLAGGED_TOKEN
    assert model.given == 8


async def test_async_agents_messages_show_the_flagged_token_and_are_stopped() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    assert await ashown_until_cut(amessages_of(create_agent(model, []), cutting())) == TO_THE_FLAGGED_TOKEN
    assert model.given == 8


def test_agent_whose_model_holds_the_handler_shows_one_chunk_more() -> None:
    agent = create_agent(ScriptedChatModel.saying(HARMFUL, callbacks=[cutting()]), [])
    with pytest.warns(CallbackLeakWarning, match="stands before"):
        assert shown_until_cut(messages_of(agent)) == ONE_CHUNK_MORE


async def test_async_agent_whose_model_holds_the_handler_shows_one_chunk_more() -> None:
    agent = create_agent(ScriptedChatModel.saying(HARMFUL, callbacks=[cutting()]), [])
    with pytest.warns(CallbackLeakWarning, match="stands before"):
        assert await ashown_until_cut(amessages_of(agent)) == ONE_CHUNK_MORE


class Onlooker(BaseCallbackHandler):
    """Shows tokens as they come."""

    run_inline = True

    def __init__(self) -> None:
        self.seen = ""

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen += token


def test_inline_handler_before_it_is_shown_one_chunk_more() -> None:
    onlooker = Onlooker()
    chain = ScriptedChatModel.saying(HARMFUL) | StrOutputParser()
    with pytest.warns(CallbackLeakWarning, match="stands before"):
        shown_until_cut(chain.stream("hi", config=with_(onlooker, cutting())))
    assert onlooker.seen == ONE_CHUNK_MORE


def test_inline_handler_behind_it_is_shown_no_more_than_the_consumer() -> None:
    onlooker = Onlooker()
    chain = ScriptedChatModel.saying(HARMFUL) | StrOutputParser()
    shown_until_cut(chain.stream("hi", config=with_(cutting(), onlooker)))
    assert onlooker.seen == TO_THE_FLAGGED_TOKEN


async def test_handler_that_is_not_inline_comes_later_in_async_code() -> None:
    onlooker = Onlooker()
    onlooker.run_inline = False
    chain = ScriptedChatModel.saying(HARMFUL) | StrOutputParser()
    await ashown_until_cut(chain.astream("hi", config=with_(onlooker, cutting())))
    assert onlooker.seen == TO_THE_FLAGGED_TOKEN


@beta
def test_v3_events_of_a_model_that_tells_its_tokens_show_the_flagged_token() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    stream = model.stream_events("hi", version="v3", config=with_(cutting()))
    assert shown_until_cut(iter(stream.text)) == TO_THE_FLAGGED_TOKEN
    assert (model.given, model.closed) == (8, 1)


@beta
def test_v3_events_of_another_model_show_one_chunk_more() -> None:
    model = Quiet.saying(HARMFUL)
    with pytest.warns(CallbackLeakWarning, match="version v3"):  # noqa: PT031  # it may come at either
        stream = model.stream_events("hi", version="v3", config=with_(cutting()))
        assert shown_until_cut(iter(stream.text)) == ONE_CHUNK_MORE
    assert model.given == 8
    del stream
    gc.collect()
    assert model.closed == 1


@beta
async def test_async_v3_events_of_another_model_show_one_chunk_more() -> None:
    model = Quiet.saying(HARMFUL)
    with pytest.warns(CallbackLeakWarning, match="version v3"):  # noqa: PT031  # it may come at either
        stream = await model.astream_events("hi", version="v3", config=with_(cutting()))
        assert await ashown_until_cut(aiter(stream.text)) == ONE_CHUNK_MORE
    # Whoever reads the model does so in a task: when all of them have ended nobody does any more.
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
    assert model.given == 8, "it is read no further"


@beta
@pytest.mark.parametrize("kind", [ScriptedChatModel, Quiet])
@pytest.mark.filterwarnings("ignore::langchain_ada_guard.callbacks.CallbackLeakWarning")
def test_v3_text_that_two_callbacks_show_is_judged_once(kind: Any) -> None:
    handler = cutting("every:5")
    assert "".join(kind.saying(BENIGN).stream_events("hi", version="v3", config=with_(handler)).text) == BENIGN
    assert (handler.counts.generated_tokens, handler.counts.streams, handler.open_streams) == (10, 1, 0)


@beta
@pytest.mark.filterwarnings("ignore::langchain_ada_guard.callbacks.CallbackLeakWarning")
def test_v3_tool_call_is_judged() -> None:
    chunks = call_chunks("search", '{"query": "' + UNSAFE + '"}')
    stream = Quiet(script=lambda _: chunks).stream_events("hi", version="v3", config=with_(cutting()))
    with pytest.raises(ContentFlaggedError):
        _ = stream.output


# -- cutting: everything else ---------------------------------------------------------------------------------------


def test_benign_answer_is_untouched_and_judged_to_its_end() -> None:
    handler = cutting("every:4")
    model = ScriptedChatModel.saying(BENIGN)
    assert list(model.stream("hi", config=with_(handler))) == list(model.stream("hi"))
    assert dict(handler.counts.checks) == {("pass", "probe"): 3}
    assert (handler.counts.generated_tokens, handler.open_streams) == (10, 0)


def test_tool_call_is_judged_with_the_text() -> None:
    chunks = [*word_chunks("let me see")[:-1], *call_chunks("search", '{"query": "' + UNSAFE + '"}')]
    with pytest.raises(ContentFlaggedError):
        list(ScriptedChatModel(script=lambda _: chunks).stream("hi", config=with_(cutting())))


def test_guarded_model_is_left_to_its_own_guard() -> None:
    handler = cutting()
    model = guard_model(ScriptedChatModel.saying(HARMFUL), guard("every:8", replacement=" [cut]"))
    shown = "".join(str(chunk.content) for chunk in model.stream("hi", config=with_(handler)))
    assert shown == " [cut]"
    assert (handler.counts.halts, handler.counts.flags, handler.open_streams) == (1, 1, 0)


def test_each_leak_is_warned_of_once() -> None:
    handler = cutting()
    model = ScriptedChatModel.saying(BENIGN)
    with pytest.warns(CallbackLeakWarning) as warned:  # noqa: PT031  # both calls count
        model.invoke("hi", config=with_(handler))
        model.invoke("hi", config=with_(handler))
    assert len(warned) == 1


def test_neither_error_nor_log_nor_warning_holds_text(caplog: pytest.LogCaptureFixture) -> None:
    records: list[Any] = []
    handler = AdaGuardCallbackHandler(guard("every:8"), on_record=lambda _, data: records.append(data))
    with caplog.at_level(logging.DEBUG), pytest.raises(ContentFlaggedError) as caught:
        list(ScriptedChatModel.saying(HARMFUL).stream("hi", config=with_(handler)))
    said = [repr(caught.value), repr(caught.value.events), repr(caught.value.__context__), caplog.text, repr(records)]
    assert caught.value.events == ()
    assert not any(text in each for text in (*BEFORE.split()[1:], "more", UNSAFE) for each in said)


def test_error_is_the_same_whatever_the_policy_does_on_a_flag() -> None:
    for on_flag in ("replace", "halt", "raise"):
        model = ScriptedChatModel.saying(HARMFUL)
        with pytest.raises(ContentFlaggedError) as caught:
            list(model.stream("hi", config=with_(cutting(on_flag=on_flag))))
        assert (caught.value.verdict.depth, caught.value.verdict.checker) == (7, "probe")
        assert caught.value.__context__ is None or "events" not in vars(caught.value.__context__)


def test_policy_that_never_cuts_only_counts() -> None:
    handler = cutting("every:8", release="audit")
    model = ScriptedChatModel.saying(HARMFUL)
    assert "".join(str(chunk.content) for chunk in model.stream("hi", config=with_(handler))) == HARMFUL
    assert handler.counts.flags > 0
    assert handler.counts.halts == 0


def test_check_that_cannot_be_made_breaks_the_stream_off() -> None:
    class Failing(ScriptedSidecar):
        def open(self, *args: Any, **settings: Any) -> Any:
            following = yield from super().open(*args, **settings)

            def fail(depth: int) -> float:
                raise OSError("gone")

            following._harm = fail
            return following

    handler = AdaGuardCallbackHandler(Guard(sidecar=Failing()))
    model = ScriptedChatModel.saying(BENIGN)
    with pytest.raises(CheckError, match="depth 5"):
        list(model.stream("hi", config=with_(handler)))
    assert (handler.counts.unchecked, handler.counts.halts, handler.open_streams) == (1, 1, 0)


def test_models_error_ends_the_session() -> None:
    handler = cutting()
    with pytest.raises(OSError, match="gone"):
        list(ScriptedChatModel.saying(BENIGN, error=OSError("gone")).stream("hi", config=with_(handler)))
    assert handler.open_streams == 0
    assert handler.counts.halts == 0


def test_consumer_that_breaks_off_ends_the_session() -> None:
    handler = cutting()
    stream = ScriptedChatModel.saying(BENIGN).stream("hi", config=with_(handler))
    next(stream)
    assert handler.open_streams == 1
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert handler.open_streams == 0


@beta
def test_streams_that_nobody_reads_on_are_bounded_and_fail_closed() -> None:
    handler = AdaGuardCallbackHandler(guard(), max_open_streams=2)
    streams = [iter(ScriptedChatModel.saying(BENIGN).stream("hi", config=with_(handler))) for _ in range(3)]
    for stream in streams:
        next(stream)
    assert handler.open_streams == 2
    with pytest.raises(CheckError, match="max_open_streams"):
        next(streams[0])
    assert "".join(str(chunk.content) for chunk in streams[2]) == BENIGN.removeprefix("one")
    with pytest.raises(ConfigError, match="max_open_streams"):
        AdaGuardCallbackHandler(guard(), max_open_streams=0)


def test_interleaved_streams_are_judged_apart() -> None:
    handler = cutting()
    benign = ScriptedChatModel.saying(BENIGN).stream("hi", config=with_(handler))
    harmful = ScriptedChatModel.saying(HARMFUL).stream("hi", config=with_(handler))
    for _ in range(7):
        next(benign)
        next(harmful)
    with pytest.raises(ContentFlaggedError):
        next(harmful)
    assert "".join(str(chunk.content) for chunk in benign) == " eight nine ten"
    assert handler.counts.halts == 1


class Writing(LLM):
    """A model of plain text that writes a word at a time."""

    @property
    def _llm_type(self) -> str:
        return "writing"

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        return HARMFUL

    def _stream(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        for piece in words(HARMFUL):
            chunk = GenerationChunk(text=piece.text)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def test_model_of_plain_text_is_broken_off_too() -> None:
    handler = cutting()
    assert shown_until_cut(Writing().stream("hi", config=with_(handler))) == TO_THE_FLAGGED_TOKEN
    assert handler.open_streams == 0


def test_whole_answer_of_a_model_of_plain_text_is_judged() -> None:
    with pytest.warns(CallbackLeakWarning, match="without streaming"), pytest.raises(ContentFlaggedError):
        Writing().invoke("hi", config=with_(cutting()))


def test_answer_is_judged_behind_the_prompt_and_the_tools_of_its_call() -> None:
    seen: list[Any] = []

    class Noting(ScriptedSidecar):
        def open(self, conversation: Any, **settings: Any) -> Any:
            seen.append(conversation)
            return super().open(conversation, **settings)

    handler = AdaGuardCallbackHandler(Guard(sidecar=Noting()))
    tool = {"type": "function", "function": {"name": "search", "description": "", "parameters": {"type": "object"}}}
    model = ScriptedChatModel.saying(BENIGN).bind_tools([tool])
    list(model.stream([("system", "be kind"), ("user", "why?")], config=with_(handler)))
    [conversation] = seen
    assert [(said["role"], said["content"]) for said in conversation.messages] == [
        ("system", "be kind"),
        ("user", "why?"),
    ]
    assert conversation.tools == [tool]


def test_what_is_no_guard_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="AdaGuardCallbackHandler takes a Guard, not a str") as raised:
        AdaGuardCallbackHandler("reference")  # type: ignore[arg-type]  # wrong on purpose
    assert "\n" not in str(raised.value)


# -- cuts that are told of and never told again ---------------------------------------------------------------------


def bare_cut(audit: AdaGuardCallbackHandler) -> None:
    """A stream whose cut stands in its message alone."""
    list(guard_model(ScriptedChatModel.saying(HARMFUL), guard()).stream("hi", config=with_(audit)))


@pytest.mark.parametrize("on_flag", ["replace", "raise"])
def test_cut_of_a_step_behind_the_model_does_not_hide_that_of_a_later_message(on_flag: str) -> None:
    audit = AdaGuardCallbackHandler()
    chain = ScriptedChatModel.saying(HARMFUL) | RunnableAdaGuard(guard(on_flag=on_flag))
    for call in (chain.invoke, lambda *args, **kwargs: list(chain.stream(*args, **kwargs))):
        with contextlib.suppress(ContentFlaggedError):
            call("hi", config=with_(audit))
    assert audit.counts.halts == 2
    bare_cut(audit)
    bare_cut(audit)
    assert audit.counts.halts == 4


async def test_cut_of_an_async_step_behind_the_model_does_not_hide_that_of_a_later_message() -> None:
    audit = AdaGuardCallbackHandler()
    chain = ScriptedChatModel.saying(HARMFUL) | RunnableAdaGuard(guard())
    await chain.ainvoke("hi", config=with_(audit))
    bare_cut(audit)
    assert audit.counts.halts == 2


@pytest.mark.parametrize("by_events", [False, True])
def test_consumer_that_leaves_at_the_replacement_does_not_hide_a_later_cut(by_events: bool) -> None:
    audit = AdaGuardCallbackHandler()
    speaking, replacing = ScriptedChatModel.saying(HARMFUL), guard(replacement="[cut]")
    model = ChatAdaGuard(inner=speaking, guard=replacing, callbacks=[audit] if by_events else None)
    stream = model.stream("hi", config=None if by_events else with_(audit))
    assert any(chunk.content == "[cut]" for chunk in stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert (audit.counts.halts, audit.counts.streams) == (1, 1)
    bare_cut(audit)
    assert (audit.counts.halts, audit.counts.streams) == (2, 2)


@pytest.mark.parametrize(
    "data", [None, "text", {}, {"event": "click"}, {"event": "halt"}, {"event": "check", "decision": "pass"}]
)
def test_event_of_an_application_that_has_our_name_is_not_counted(data: Any) -> None:
    records: list[Any] = []
    audit = AdaGuardCallbackHandler(on_record=lambda _, found: records.append(found))
    before = audit.counts
    audit.on_custom_event("ada_guard", data, run_id=uuid4())
    assert audit.counts == before
    assert records == []
