"""A guard as a step of a chain: what it protects, and what it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableGenerator

from ada_guard import ConfigError, ContentFlaggedError, Guard, Policy, Schedule
from ada_guard.errors import GenerationError
from ada_guard.testing import UNSAFE, ScriptedGuard, ScriptedSidecar
from langchain_ada_guard.cut import cut_of
from langchain_ada_guard.runnable import STAND_IN, RunnableAdaGuard
from langchain_ada_guard.testing import ScriptedChatModel, call_chunks, word_chunks

BENIGN = "one two three four five six seven eight nine ten"
HARMFUL = f"one two three four five six {UNSAFE} " + " ".join(["more"] * 40)
REPLACEMENT = " [cut]"
STOPPED_AT = 9
"""Chunks that are read up to the flag at depth 8: a word is settled when the next one begins."""
PROMPT = ChatPromptTemplate.from_messages([("user", "{question}")])
ASKED = {"question": "hello"}


def guarding(**policy: Any) -> ScriptedGuard:
    return ScriptedGuard(policy=Policy(schedule=Schedule.parse("every:4"), replacement=REPLACEMENT, **policy))


def texts(chunks: list[Any]) -> list[str]:
    return [str(chunk.content) for chunk in chunks]


def conversation(sidecar: ScriptedSidecar, seen: list[Any]) -> Any:
    """Has a sidecar note the messages of what it follows."""
    opened = sidecar.open

    def noted(conversation: Any, **settings: Any) -> Any:
        seen.append(conversation.messages)
        return opened(conversation, **settings)

    sidecar.open = noted  # type: ignore[method-assign]  # a note, not another answer
    return sidecar


# -- cuts -----------------------------------------------------------------------------------------------------------


def test_cut_shows_prefix_and_replacement_and_stops_the_model() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    chunks = list((PROMPT | model | RunnableAdaGuard(guarding())).stream(ASKED))
    assert texts(chunks) == ["one", " two", " three", " four", REPLACEMENT]
    assert (model.given, model.closed) == (STOPPED_AT, 1)
    entry = cut_of(chunks[-1])
    assert entry is not None
    assert (entry["verdict"], entry["depth"], entry["released_depth"]) == ("flag", 8, 4)


async def test_async_cut_shows_prefix_and_replacement_and_stops_the_model() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    chain = PROMPT | model | RunnableAdaGuard(guarding())
    chunks = [chunk async for chunk in chain.astream(ASKED)]
    assert texts(chunks) == ["one", " two", " three", " four", REPLACEMENT]
    assert (model.given, model.closed) == (STOPPED_AT, 1)


def test_cut_in_a_chain_with_a_parser_behind_it() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    chain = PROMPT | model | RunnableAdaGuard(guarding()) | StrOutputParser()
    assert list(chain.stream(ASKED)) == ["one", " two", " three", " four", REPLACEMENT]
    assert (model.given, model.closed) == (STOPPED_AT, 1)


async def test_async_cut_in_a_chain_with_a_parser_behind_it() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    chain = PROMPT | model | RunnableAdaGuard(guarding()) | StrOutputParser()
    assert [text async for text in chain.astream(ASKED)] == ["one", " two", " three", " four", REPLACEMENT]
    assert (model.given, model.closed) == (STOPPED_AT, 1)


def test_cut_behind_a_parser_is_clean_but_the_parser_reads_the_model_to_its_end() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    chain = PROMPT | model | StrOutputParser() | RunnableAdaGuard(guarding())
    assert list(chain.stream(ASKED)) == ["one", " two", " three", " four", REPLACEMENT]
    assert model.given == len(word_chunks(HARMFUL))


async def test_async_cut_behind_a_parser() -> None:
    chain = PROMPT | ScriptedChatModel.saying(HARMFUL) | StrOutputParser() | RunnableAdaGuard(guarding())
    assert [text async for text in chain.astream(ASKED)] == ["one", " two", " three", " four", REPLACEMENT]


def test_halt_ends_the_text_without_a_replacement() -> None:
    chain = ScriptedChatModel.saying(HARMFUL) | RunnableAdaGuard(guarding(on_flag="halt"))
    chunks = list(chain.stream("hello"))
    assert texts(chunks) == ["one", " two", " three", " four", ""]
    assert chunks[-1].response_metadata["finish_reason"] == "content_filter"


def test_halt_of_texts_gives_no_empty_text() -> None:
    step = RunnableAdaGuard(guarding(on_flag="halt"))
    assert list(step.transform(iter([HARMFUL]))) == ["one two three four"]


def test_raise_raises_after_the_prefix_and_stops_the_model() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    shown: list[Any] = []
    with pytest.raises(ContentFlaggedError):
        shown.extend((model | RunnableAdaGuard(guarding(on_flag="raise"))).stream("hello"))
    assert texts(shown) == ["one", " two", " three", " four"]
    assert (model.given, model.closed) == (STOPPED_AT, 1)


async def test_async_raise_raises_and_stops_the_model() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    with pytest.raises(ContentFlaggedError):
        _ = [chunk async for chunk in (model | RunnableAdaGuard(guarding(on_flag="raise"))).astream("hello")]
    assert (model.given, model.closed) == (STOPPED_AT, 1)


# -- benign answers -------------------------------------------------------------------------------------------------


def test_benign_chunks_are_those_of_the_model() -> None:
    model = ScriptedChatModel.saying(BENIGN)
    given_out = list(model.stream("hello"))
    assert list((model | RunnableAdaGuard(guarding())).transform(iter(["hello"]))) == given_out


async def test_benign_chunks_are_those_of_the_model_in_async_code() -> None:
    model = ScriptedChatModel.saying(BENIGN)
    chain = PROMPT | model | RunnableAdaGuard(guarding())
    assert [chunk async for chunk in chain.astream(ASKED)] == [chunk async for chunk in model.astream("hello")]


def test_benign_texts_are_those_of_the_parser() -> None:
    before = PROMPT | ScriptedChatModel.saying(BENIGN) | StrOutputParser()
    expected = [text for text in before.stream(ASKED) if text]
    assert list((before | RunnableAdaGuard(guarding())).stream(ASKED)) == expected


@given(st.lists(st.integers(1, 7), min_size=1), st.booleans())
def test_chunking_does_not_matter(sizes: list[int], harmful: bool) -> None:
    text = HARMFUL if harmful else BENIGN
    pieces, at = [], 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    shown = RunnableAdaGuard(guarding()).transform(iter(pieces))
    assert "".join(shown) == (f"one two three four{REPLACEMENT}" if harmful else BENIGN)


# -- whole answers --------------------------------------------------------------------------------------------------


def test_invoke_gives_back_the_very_answer_that_passed() -> None:
    step = RunnableAdaGuard(guarding())
    message = AIMessage(BENIGN, id="its-own", usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})
    assert step.invoke(message) is message
    assert step.invoke(BENIGN) == BENIGN


async def test_ainvoke_gives_back_the_very_answer_that_passed() -> None:
    message = AIMessage(BENIGN)
    assert await RunnableAdaGuard(guarding()).ainvoke(message) is message


def test_invoke_holds_the_replacement_alone_after_a_cut() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    answer = (PROMPT | model | RunnableAdaGuard(guarding())).invoke(ASKED)
    assert answer.content == REPLACEMENT
    assert model.given == len(word_chunks(HARMFUL)), "a whole answer is written before it is judged"
    assert RunnableAdaGuard(guarding()).invoke(HARMFUL) == REPLACEMENT


async def test_ainvoke_holds_the_replacement_alone_after_a_cut() -> None:
    assert await RunnableAdaGuard(guarding()).ainvoke(HARMFUL) == REPLACEMENT
    with pytest.raises(ContentFlaggedError):
        await RunnableAdaGuard(guarding(on_flag="raise")).ainvoke(HARMFUL)


def test_batch_judges_each_answer() -> None:
    assert RunnableAdaGuard(guarding()).batch([BENIGN, HARMFUL]) == [BENIGN, REPLACEMENT]


class NotStreaming(ScriptedChatModel):
    """A model that gives its answer whole."""

    disable_streaming: bool = True


def test_whole_message_of_a_model_that_does_not_stream() -> None:
    assert texts(list((NotStreaming.saying(BENIGN) | RunnableAdaGuard(guarding())).stream("hello"))) == [BENIGN]
    assert texts(list((NotStreaming.saying(HARMFUL) | RunnableAdaGuard(guarding())).stream("hello"))) == [REPLACEMENT]


async def test_whole_message_of_a_model_that_does_not_stream_in_async_code() -> None:
    chain = NotStreaming.saying(HARMFUL) | RunnableAdaGuard(guarding())
    assert texts([chunk async for chunk in chain.astream("hello")]) == [REPLACEMENT]


# -- structured chunks ----------------------------------------------------------------------------------------------


def calling(arguments: str) -> ScriptedChatModel:
    chunks = [*word_chunks("I look it up.")[:-1], *call_chunks("search", arguments, size=6)]
    return ScriptedChatModel(script=lambda _: chunks)


def test_tool_call_waits_for_the_end_and_passes_as_it_came() -> None:
    model = calling('{"query": "kittens and more kittens"}')
    chunks = list((model | RunnableAdaGuard(guarding())).stream("hello"))
    assert chunks == list(model.stream("hello"))
    assert sum(chunks[1:], chunks[0]).tool_calls[0]["args"] == {"query": "kittens and more kittens"}


def test_tool_call_of_an_answer_that_was_cut_is_never_shown() -> None:
    model = calling('{"query": "' + UNSAFE + ' things", "then": "more"}')
    chunks = list((model | RunnableAdaGuard(guarding())).stream("hello"))
    assert not any(chunk.tool_call_chunks or chunk.tool_calls for chunk in chunks)
    assert chunks[-1].content == REPLACEMENT


# -- the step before ------------------------------------------------------------------------------------------------


def test_consumer_that_breaks_off_stops_the_model() -> None:
    model = ScriptedChatModel.saying(BENIGN)
    stream = (PROMPT | model | RunnableAdaGuard(guarding())).stream(ASKED)
    assert next(stream).content == "one"
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert (model.given, model.closed) == (5, 1)


def test_consumer_that_breaks_off_behind_a_parser_does_not_stop_the_model() -> None:
    model = ScriptedChatModel.saying(BENIGN)
    stream = (PROMPT | model | RunnableAdaGuard(guarding()) | StrOutputParser()).stream(ASKED)
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert model.given == len(word_chunks(BENIGN)), "LangChain's parser reads on"


async def test_consumer_that_closes_the_step_stops_the_source_in_async_code() -> None:
    closed = []

    async def source() -> AsyncIterator[str]:
        try:
            for word in BENIGN.split(" "):
                yield f"{word} "
        finally:
            closed.append(True)

    stream = RunnableAdaGuard(guarding()).atransform(source())
    assert await anext(stream) == "one "
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert closed == [True]


def test_error_before_any_text_is_the_models_own() -> None:
    failing = ScriptedChatModel(script=lambda _: [], error=OSError("no route"))
    with pytest.raises(OSError, match="no route"):
        list((failing | RunnableAdaGuard(guarding())).stream("hello"))


def test_error_in_the_middle_is_named_and_nothing_held_back_is_shown() -> None:
    failing = ScriptedChatModel.saying("one two three four five", error=OSError("secret five"))
    shown: list[Any] = []
    with pytest.raises(GenerationError) as caught:
        shown.extend((failing | RunnableAdaGuard(guarding())).stream("hello"))
    assert texts(shown) == ["one", " two", " three", " four"]
    assert "secret" not in str(caught.value)


async def test_async_errors_are_as_sync_ones() -> None:
    for script, expected in (("", OSError), ("one two", GenerationError)):
        failing = ScriptedChatModel(script=lambda _, said=script: word_chunks(said)[:-1], error=OSError("x"))
        with pytest.raises(expected):
            _ = [chunk async for chunk in (failing | RunnableAdaGuard(guarding())).astream("hello")]


def test_something_that_is_no_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="dict"):
        list(RunnableAdaGuard(guarding()).transform(iter([{"a": 1}])))
    with pytest.raises(ConfigError, match="HumanMessage"):
        RunnableAdaGuard(guarding()).invoke(HumanMessage("x"))


def test_empty_stream_stays_empty() -> None:
    assert list(RunnableAdaGuard(guarding()).transform(iter([]))) == []


# -- what the answer is judged behind -------------------------------------------------------------------------------


def followed_messages(messages: Any, config: Any = None) -> list[Any]:
    seen: list[Any] = []
    guard = Guard(sidecar=conversation(ScriptedSidecar(), seen))
    RunnableAdaGuard(guard, messages=messages).invoke(BENIGN, config)
    return [(message["role"], message["content"]) for message in seen[0]]


def test_answer_is_judged_behind_the_messages_it_was_given() -> None:
    assert followed_messages([("system", "be kind"), HumanMessage("why?")]) == [("system", "be kind"), ("user", "why?")]


def test_messages_may_come_from_the_config() -> None:
    config = {"configurable": {"question": "why?"}}
    assert followed_messages(lambda given: [("user", given["configurable"]["question"])], config) == [("user", "why?")]


def test_without_messages_a_stand_in_is_judged() -> None:
    assert followed_messages(None) == [("user", STAND_IN)]


# -- who observes ---------------------------------------------------------------------------------------------------


class Recorder(BaseCallbackHandler):
    """Keeps what callbacks are told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.steps: dict[UUID, dict[str, Any]] = {}
        self.events: list[Any] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(str(token))

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.steps[run_id] = {"name": kwargs.get("name"), "tags": kwargs.get("tags"), "inputs": inputs}

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.steps[run_id] |= {"outputs": outputs, "ended": kwargs.get("inputs")}

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.steps[run_id] |= {"error": type(error)}

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append((name, data["event"]))

    def step(self) -> dict[str, Any]:
        """The guard's own step."""
        return next(step for step in self.steps.values() if step["name"] == "RunnableAdaGuard")


def test_step_is_traced_with_its_output_and_without_its_input() -> None:
    seen = Recorder()
    chain = PROMPT | ScriptedChatModel.saying(HARMFUL) | RunnableAdaGuard(guarding())
    list(chain.stream(ASKED, config={"callbacks": [seen], "tags": ["mine"]}))
    step = seen.step()
    assert step["inputs"] == {"input": ""}
    assert step["outputs"].content == REPLACEMENT
    assert step["ended"] is None
    assert {"mine", "seq:step:3"} <= set(step["tags"])
    assert seen.events[-2:] == [("ada_guard", "halt"), ("ada_guard", "done")]


def test_step_that_raises_is_traced_with_its_error() -> None:
    seen = Recorder()
    chain = ScriptedChatModel.saying(HARMFUL) | RunnableAdaGuard(guarding(on_flag="raise"))
    with pytest.raises(ContentFlaggedError):
        list(chain.stream("hello", config={"callbacks": [seen]}))
    assert seen.step()["error"] is ContentFlaggedError


async def test_async_step_is_traced_with_its_output_and_without_its_input() -> None:
    seen = Recorder()
    chain = PROMPT | ScriptedChatModel.saying(HARMFUL) | RunnableAdaGuard(guarding())
    await chain.ainvoke(ASKED, config={"callbacks": [seen]})
    step = seen.step()
    assert (step["inputs"], step["outputs"].content) == ({"input": ""}, REPLACEMENT)


def test_leak_callbacks_of_the_model_still_see_what_it_writes() -> None:
    seen = Recorder()
    model = ScriptedChatModel.saying(HARMFUL)
    list((model | RunnableAdaGuard(guarding())).stream("hello", config={"callbacks": [seen]}))
    assert UNSAFE in "".join(seen.tokens)
    assert (model.given, model.closed) == (STOPPED_AT, 1), "it was stopped all the same"


async def test_leak_event_streams_still_show_what_the_model_writes() -> None:
    model = ScriptedChatModel.saying(HARMFUL)
    chain = PROMPT | model | RunnableAdaGuard(guarding())
    shown: dict[str, str] = {}
    async for event in chain.astream_events(ASKED, version="v2"):
        if event["event"].endswith("_stream"):
            place = f"{event['event']} {event['name']}"
            shown[place] = shown.get(place, "") + str(event["data"]["chunk"].content)
    assert UNSAFE in shown.pop("on_chat_model_stream ScriptedChatModel")
    released = f"one two three four{REPLACEMENT}"
    assert shown == {"on_chain_stream RunnableAdaGuard": released, "on_chain_stream RunnableSequence": released}
    assert model.given == STOPPED_AT, "it was stopped all the same"


def test_usage_of_the_model_is_still_counted() -> None:
    with get_usage_metadata_callback() as usage:
        list(RunnableAdaGuard(guarding()).transform(ScriptedChatModel.saying(BENIGN).stream("hello")))
    assert usage.usage_metadata["scripted"]["output_tokens"] == 10


def test_it_stands_behind_any_step_that_gives_text() -> None:
    def shout(texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            yield text.upper()

    chain = RunnableGenerator(shout) | RunnableAdaGuard(guarding(), name="last look")
    assert list(chain.transform(iter(["a b c d ", "unsafe e f g"]))) == ["A B C D", REPLACEMENT]


def test_chunks_keep_their_type() -> None:
    chain = ScriptedChatModel.saying(HARMFUL) | RunnableAdaGuard(guarding())
    assert all(type(chunk) is AIMessageChunk for chunk in chain.stream("hello"))


def test_what_is_no_guard_is_one_clear_line() -> None:
    for wrong in ("reference", None, ScriptedSidecar()):
        with pytest.raises(ConfigError, match="RunnableAdaGuard takes a Guard") as raised:
            RunnableAdaGuard(wrong)  # type: ignore[arg-type]  # wrong on purpose
        assert "\n" not in str(raised.value)
