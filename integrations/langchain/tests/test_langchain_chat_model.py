"""A guarded chat model says what the model inside says, up to where the guard cuts it; sync and async alike."""

import copy
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextvars import ContextVar
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, HumanMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableBranch, RunnableParallel, RunnablePassthrough
from pydantic import PrivateAttr

from ada_guard import ContentFlaggedError, Guard, Policy
from ada_guard.errors import CheckError, ConfigError, GenerationError
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard, guard_model, replacement_only
from langchain_ada_guard.testing import ScriptedChatModel, call_chunks, word_chunks

BENIGN = "Fold the paper once, turn it over and fold it again until it looks like a small boat."
HARMFUL = f"Take the first one and the next {UNSAFE} stuff, then the secret rest of all of it follows here."
EVERY_4 = Schedule.every(4)


def guard(**policy: Any) -> Guard:
    return Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=EVERY_4, **policy))


def guarded(inner: BaseChatModel, **policy: Any) -> ChatAdaGuard:
    return ChatAdaGuard(inner=inner, guard=guard(**policy))


async def streamed(model: Any, how: str, asked: Any = "?") -> list[Any]:
    """The chunks of a stream, sync or async."""
    if how == "sync":
        return list(model.stream(asked))
    return [chunk async for chunk in model.astream(asked)]


async def invoked(model: Any, how: str, asked: Any = "?") -> Any:
    return model.invoke(asked) if how == "sync" else await model.ainvoke(asked)


both = pytest.mark.parametrize("how", ["sync", "async"])


class Whole(BaseChatModel):
    """A model that does not stream."""

    said: str = ""
    message: AIMessage | None = None
    _asked: int = PrivateAttr(default=0)

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self._asked += 1
        usage = {"input_tokens": 7, "output_tokens": 9, "total_tokens": 16}
        message = self.message or AIMessage(
            self.said, usage_metadata=usage, response_metadata={"finish_reason": "stop"}
        )
        return ChatResult(generations=[ChatGeneration(message=message)], llm_output={"model_name": "whole"})


class OnlySync(ScriptedChatModel):
    """Streams for sync callers alone."""

    _astream = BaseChatModel._astream


class OnlyAsync(ScriptedChatModel):
    """Streams for async callers alone."""

    _stream = BaseChatModel._stream

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        try:
            for chunk in self.script(messages):
                self._given += 1
                yield ChatGenerationChunk(message=chunk.model_copy(deep=True))
        finally:
            self._closed += 1

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(
            generations=[ChatGeneration(message=AIMessage("".join(str(c.content) for c in self.script(messages))))]
        )


# -- benign --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", [ScriptedChatModel, OnlySync, OnlyAsync])
async def test_a_benign_stream_adds_up_to_the_unguarded_one(how: str, kind: type[ScriptedChatModel]) -> None:
    plain = await streamed(kind.saying(BENIGN), how)
    chunks = await streamed(guarded(kind.saying(BENIGN)), how)
    if kind is OnlyAsync and how == "sync":
        assert reduce(add, chunks).text == BENIGN
        return
    assert reduce(add, chunks).model_copy(update={"id": None}) == reduce(add, plain).model_copy(update={"id": None})
    assert len(chunks) > 3


@both
async def test_a_benign_answer_is_the_unguarded_one(how: str) -> None:
    plain = await invoked(ScriptedChatModel.saying(BENIGN), how)
    assert await invoked(guarded(ScriptedChatModel.saying(BENIGN)), how) == plain


@both
async def test_a_benign_tool_call_comes_whole_and_runs(how: str) -> None:
    inner = ScriptedChatModel(script=lambda _: call_chunks("clock", '{"zone": "UTC and more"}'))
    chunks = await streamed(guarded(inner), how)
    assert reduce(add, chunks).tool_calls == (await invoked(inner, how)).tool_calls != []
    assert (await invoked(guarded(inner), how)).tool_calls == (await invoked(inner, how)).tool_calls


async def test_batches_keep_their_order_and_do_not_see_each_other() -> None:
    inner = ScriptedChatModel(script=lambda asked: word_chunks(HARMFUL if "bad" in asked[0].text else BENIGN))
    model = guarded(inner)
    asked = ["good", "bad", "good", "bad"]
    expected = [BENIGN, DEFAULT_REPLACEMENT, BENIGN, DEFAULT_REPLACEMENT]
    assert [answer.text for answer in model.batch(asked)] == expected
    assert [answer.text for answer in await model.abatch(asked)] == expected


@both
async def test_output_version_v1_gives_the_same_blocks(how: str) -> None:
    inner = ScriptedChatModel.saying(BENIGN, output_version="v1")
    plain, ours = await streamed(inner, how), await streamed(guarded(inner), how)
    assert reduce(add, ours).content_blocks == reduce(add, plain).content_blocks
    cut = await invoked(guarded(ScriptedChatModel.saying(HARMFUL, output_version="v1")), how)
    assert [(block["type"], block["text"]) for block in cut.content_blocks] == [("text", DEFAULT_REPLACEMENT)]


# -- cut -----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", [ScriptedChatModel, OnlySync, OnlyAsync])
async def test_a_cut_shows_a_checked_prefix_and_the_replacement_and_stops_the_model(
    how: str, kind: type[ScriptedChatModel]
) -> None:
    inner = kind.saying(HARMFUL)
    chunks = await streamed(guarded(inner), how)
    added = reduce(add, chunks)
    if kind is OnlyAsync and how == "sync":
        assert added.text.endswith(DEFAULT_REPLACEMENT)  # judged whole
        assert UNSAFE not in added.text
        return
    assert added.text == "Take the first one" + DEFAULT_REPLACEMENT
    assert (inner.given, inner.closed) == (9, 1)
    assert {chunk.id for chunk in chunks} == {added.id}
    assert replacement_only(added).text == DEFAULT_REPLACEMENT
    assert added.response_metadata["finish_reason"] == "content_filter"
    assert added.response_metadata["model_name"] == "scripted"
    assert added.chunk_position == "last"
    assert added.response_metadata["ada_guard"] | {"harm_probability": 0, "threshold": 0, "reason": None} == {
        "verdict": "flag",
        "depth": 8,
        "released_depth": 4,
        "checks": 2,
        "replacement_chars": len(DEFAULT_REPLACEMENT),
        "checker": "probe",
        "reason": None,
        "harm_probability": 0,
        "threshold": 0,
        "partial_view": False,
    }


@both
async def test_an_answer_that_was_cut_is_the_replacement_alone(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL)
    answer = await invoked(guarded(inner), how)
    assert answer.text == DEFAULT_REPLACEMENT
    assert answer.response_metadata["ada_guard"]["verdict"] == "flag"
    assert (inner.given, inner.closed) == (9, 1)


@both
async def test_a_cut_while_a_tool_call_is_written_leaves_no_call(how: str) -> None:
    inner = ScriptedChatModel(script=lambda _: call_chunks("shell", json.dumps({"command": f"one {UNSAFE} two"})))
    added = reduce(add, await streamed(guarded(inner), how))
    assert (added.tool_calls, added.invalid_tool_calls, added.tool_call_chunks) == ([], [], [])
    assert added.text == DEFAULT_REPLACEMENT


@both
async def test_text_before_a_tool_call_is_shown_and_the_call_comes_last(how: str) -> None:
    said = [*word_chunks(BENIGN)[:-1], *call_chunks("clock", '{"zone": "UTC"}')]
    chunks = await streamed(guarded(ScriptedChatModel(script=lambda _: said)), how)
    shown = [bool(chunk.tool_call_chunks) for chunk in chunks]
    first = shown.index(True)
    assert reduce(add, chunks[:first]).text == BENIGN
    assert len(chunks[:first]) > 3
    assert reduce(add, chunks).tool_calls[0]["args"] == {"zone": "UTC"}


@both
async def test_reasoning_is_guarded_like_text(how: str) -> None:
    said = [AIMessageChunk(content="", additional_kwargs={"reasoning_content": f" {word}"}) for word in HARMFUL.split()]
    added = reduce(add, await streamed(guarded(ScriptedChatModel(script=lambda _: [*said, *word_chunks(BENIGN)])), how))
    assert UNSAFE not in str(added)
    assert added.text == DEFAULT_REPLACEMENT


@both
async def test_a_cut_in_content_blocks_adds_a_block_of_its_own(how: str) -> None:
    said = [AIMessageChunk([{"type": "text", "text": f" {word}", "index": 3}]) for word in HARMFUL.split()]
    added = reduce(add, await streamed(guarded(ScriptedChatModel(script=lambda _: said)), how))
    assert added.content == [
        {"type": "text", "text": " Take the first one", "index": 3},
        {"type": "text", "text": DEFAULT_REPLACEMENT, "index": 4},
    ]


@both
async def test_usage_after_a_cut_is_what_the_model_stated_and_what_the_guard_counted(how: str) -> None:
    start = {"input_tokens": 40, "output_tokens": 1, "total_tokens": 41}
    said = [AIMessageChunk("", usage_metadata=start), *word_chunks(HARMFUL)]
    added = reduce(add, await streamed(guarded(ScriptedChatModel(script=lambda _: said)), how))
    assert added.usage_metadata == {"input_tokens": 40, "output_tokens": 8, "total_tokens": 48}


@both
async def test_usage_after_a_cut_that_nobody_stated_is_the_guards_count(how: str) -> None:
    added = reduce(add, await streamed(guarded(ScriptedChatModel.saying(HARMFUL)), how))
    assert added.usage_metadata == {"input_tokens": 0, "output_tokens": 8, "total_tokens": 8}


@both
async def test_a_model_name_that_was_shown_is_not_repeated(how: str) -> None:
    first, *rest = word_chunks(HARMFUL)
    named = first.model_copy(update={"response_metadata": {"model_name": "scripted"}})
    added = reduce(add, await streamed(guarded(ScriptedChatModel(script=lambda _: [named, *rest])), how))
    assert added.response_metadata["model_name"] == "scripted"


@both
async def test_halt_ends_the_stream_and_leaves_no_empty_turn(how: str) -> None:
    model = guarded(ScriptedChatModel.saying(HARMFUL), on_flag="halt")
    assert reduce(add, await streamed(model, how)).text == "Take the first one"
    assert (await invoked(model, how)).text == DEFAULT_REPLACEMENT


@both
async def test_raise_raises_and_stops_the_model(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL)
    model = guarded(inner, on_flag="raise")
    with pytest.raises(ContentFlaggedError):
        await invoked(model, how)
    with pytest.raises(ContentFlaggedError):
        await streamed(model, how)
    assert inner.closed == 2


@both
async def test_window_and_audit_release_as_they_say(how: str) -> None:
    window = guarded(ScriptedChatModel.saying(HARMFUL), release="window", window_tokens=2)
    assert reduce(add, await streamed(window, how)).text == "Take the first one and the" + DEFAULT_REPLACEMENT
    audit = guarded(ScriptedChatModel.saying(HARMFUL), release="audit")
    assert reduce(add, await streamed(audit, how)).text == HARMFUL


# -- checks that fail ----------------------------------------------------------------------------------------------


class FailingSidecar(ScriptedSidecar):
    """Follows, and cannot judge."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        following = yield from super().open(*args, **kwargs)

        def fails(depth: int) -> float:
            raise CheckError("no answer")

        following._harm = fails
        return following


@both
async def test_a_check_that_fails_cuts_as_unchecked(how: str) -> None:
    failing = Guard(sidecar=FailingSidecar(), policy=Policy(schedule=EVERY_4))
    added = reduce(add, await streamed(ChatAdaGuard(inner=ScriptedChatModel.saying(BENIGN), guard=failing), how))
    assert added.text == DEFAULT_REPLACEMENT
    assert added.response_metadata["ada_guard"]["verdict"] == "unchecked"


@both
async def test_fail_open_is_written_out_and_shows_the_answer(how: str) -> None:
    failing = Guard(sidecar=FailingSidecar(), policy=Policy(schedule=EVERY_4, on_error="release"))
    assert (await invoked(ChatAdaGuard(inner=ScriptedChatModel.saying(BENIGN), guard=failing), how)).text == BENIGN


# -- the model inside fails, or is left ----------------------------------------------------------------------------


@both
async def test_an_error_before_any_text_is_the_models_own(how: str) -> None:
    inner = ScriptedChatModel(script=lambda _: [], error=TimeoutError("busy"))
    with pytest.raises(TimeoutError, match="busy"):
        await invoked(guarded(inner), how)
    with pytest.raises(TimeoutError, match="busy"):
        await streamed(guarded(inner), how)


@both
async def test_an_error_before_any_text_can_be_retried_and_fallen_back_from(how: str) -> None:
    broken = guarded(ScriptedChatModel(script=lambda _: [], error=TimeoutError("busy")))
    other = guarded(ScriptedChatModel.saying(BENIGN))
    assert (await invoked(broken.with_fallbacks([other], exceptions_to_handle=(TimeoutError,)), how)).text == BENIGN
    tried: list[int] = []

    def script(_: Any) -> list[AIMessageChunk]:
        tried.append(1)
        if len(tried) < 3:
            raise ConnectionError
        return word_chunks(BENIGN)

    again = guarded(ScriptedChatModel(script=script)).with_retry(
        retry_if_exception_type=(ConnectionError,), wait_exponential_jitter=False, stop_after_attempt=3
    )
    assert (await invoked(again, how)).text == BENIGN


@both
async def test_an_error_behind_text_is_named_and_carries_none_of_it(how: str) -> None:
    inner = ScriptedChatModel(script=lambda _: word_chunks(BENIGN)[:6], error=ValueError(f"parsing {BENIGN}"))
    with pytest.raises(GenerationError, match="ValueError") as raised:
        await streamed(guarded(inner), how)
    error: BaseException | None = raised.value
    assert error is not None
    assert "Fold" not in str(error)
    assert (error.__cause__, error.__context__) == (None, None)


@both
async def test_a_consumer_that_breaks_off_stops_the_model(how: str) -> None:
    inner = ScriptedChatModel.saying(BENIGN)
    if how == "sync":
        stream = guarded(inner).stream("?")
        next(stream)
        stream.close()  # type: ignore[attr-defined]  # it is a generator
    else:
        astream = guarded(inner).astream("?")
        await anext(astream)
        await astream.aclose()  # type: ignore[attr-defined]  # likewise
    assert inner.closed == 1
    assert inner.given < len(word_chunks(BENIGN)) - 4


# -- models that do not stream, or shall not -----------------------------------------------------------------------


@both
@pytest.mark.parametrize(("said", "shown"), [(BENIGN, BENIGN), (HARMFUL, DEFAULT_REPLACEMENT)])
async def test_a_model_that_does_not_stream_is_judged_whole(how: str, said: str, shown: str) -> None:
    inner = Whole(said=said)
    plain = await invoked(inner, how)
    answer = await invoked(guarded(inner), how)
    assert answer.text == shown
    if said == BENIGN:
        assert answer.model_copy(update={"id": plain.id}) == plain
    assert reduce(add, await streamed(guarded(inner), how)).text.endswith(shown)
    assert UNSAFE not in "".join(str(chunk) for chunk in await streamed(guarded(inner), how))
    assert inner._asked == 4


@both
async def test_calls_in_a_whole_answer_stay_what_they_are(how: str) -> None:
    message = AIMessage(
        [{"type": "text", "text": "Well. "}, {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}],
        tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}],
        invalid_tool_calls=[{"name": "g", "args": "{oops", "id": "2", "error": "no JSON"}],
    )
    model = guarded(Whole(message=message))
    answer = await invoked(model, how)
    assert (answer.content, answer.tool_calls, answer.invalid_tool_calls) == (
        message.content,
        message.tool_calls,
        message.invalid_tool_calls,
    )
    [chunk] = await streamed(model, how)
    assert chunk.tool_calls == message.tool_calls
    assert [call["name"] for call in chunk.invalid_tool_calls] == ["g"]


@both
async def test_a_model_that_was_told_not_to_stream_is_not_streamed(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL, disable_streaming=True)
    assert (await invoked(guarded(inner), how)).text == DEFAULT_REPLACEMENT
    assert inner.given == len(word_chunks(HARMFUL))
    assert len(await streamed(guarded(inner), how)) == 1


@both
async def test_a_model_that_was_told_not_to_stream_with_tools_is_judged_whole_there(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL, disable_streaming="tool_calling")
    clock = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    assert (await invoked(guarded(inner).bind_tools([clock]), how)).text == DEFAULT_REPLACEMENT
    assert inner.given == len(word_chunks(HARMFUL))
    assert (await invoked(guarded(inner), how)).text == DEFAULT_REPLACEMENT
    assert inner.given == len(word_chunks(HARMFUL)) + 9


@both
async def test_stream_invoke_off_waits_for_the_whole_answer(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL)
    model = ChatAdaGuard(inner=inner, guard=guard(), stream_invoke=False)
    assert (await invoked(model, how)).text == DEFAULT_REPLACEMENT
    assert inner.given == len(word_chunks(HARMFUL))
    assert (
        await invoked(ChatAdaGuard(inner=Whole(said=BENIGN), guard=guard(), stream_invoke=False), how)
    ).text == BENIGN


# -- settings that LangChain applies around a model ----------------------------------------------------------------


class Counting(BaseRateLimiter):
    """Counts."""

    def __init__(self) -> None:
        self.acquired = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.acquired += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


@both
async def test_the_rate_limiter_of_the_model_inside_is_asked_once(how: str) -> None:
    limiter = Counting()
    model = guarded(ScriptedChatModel.saying(BENIGN, rate_limiter=limiter))
    await invoked(model, how)
    await streamed(model, how)
    assert limiter.acquired == 2


def test_tags_metadata_profile_and_names_are_those_of_the_model_inside() -> None:
    inner = ScriptedChatModel.saying(BENIGN, tags=["t"], metadata={"a": 1, "b": 1}, profile={"max_input_tokens": 9})
    model = ChatAdaGuard(inner=inner, guard=guard(), metadata={"b": 2})
    assert (model.tags, model.profile) == (["t"], {"max_input_tokens": 9})
    assert model.metadata == {**(inner.metadata or {}), "b": 2}
    assert (inner.metadata or {})["b"] == 1
    assert (model.model_name, model._llm_type) == ("scripted", "ada-guard-scripted")
    assert ChatAdaGuard(inner=inner, guard=guard(), tags=["own"]).tags == ["own"]


def test_tracing_parameters_are_those_of_the_model_inside_also_where_a_call_names_another_model() -> None:
    inner = ScriptedChatModel.saying(BENIGN)
    for settings in ({}, {"model": "another"}):
        assert guarded(inner)._get_ls_params(**settings) == inner._get_ls_params(**settings)


def test_tokens_are_counted_as_the_model_inside_does() -> None:
    inner = ScriptedChatModel.saying(BENIGN, custom_get_token_ids=lambda text: list(range(len(text))))
    model = guarded(inner)
    assert (model.get_num_tokens("four"), model.get_token_ids("ab")) == (4, [0, 1])
    asked = [HumanMessage("four")]
    assert model.get_num_tokens_from_messages(asked) == inner.get_num_tokens_from_messages(asked)


@both
async def test_variables_of_the_callers_context_reach_the_model_inside(how: str) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    class Asking(OnlySync):
        def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            for word in ("for", tenant.get()):
                yield ChatGenerationChunk(message=AIMessageChunk(f"{word} "))

    token = tenant.set("us")
    try:
        assert reduce(add, await streamed(guarded(Asking(script=lambda _: [])), how)).text == "for us "
    finally:
        tenant.reset(token)


# -- in chains -----------------------------------------------------------------------------------------------------


@both
async def test_a_chain_of_prompt_model_and_parser_streams_what_passes(how: str) -> None:
    chain = ChatPromptTemplate.from_template("{x}") | guarded(ScriptedChatModel.saying(HARMFUL)) | StrOutputParser()
    assert "".join(await streamed(chain, how, {"x": "?"})) == "Take the first one" + DEFAULT_REPLACEMENT
    assert await invoked(chain, how, {"x": "?"}) == DEFAULT_REPLACEMENT


@both
async def test_json_parsers_get_the_same_partial_objects(how: str) -> None:
    said = json.dumps({"steps": ["fold the paper", "turn it over"], "done": True})
    partials = await streamed(guarded(ScriptedChatModel.saying(said)) | JsonOutputParser(), how)
    assert partials[-1] == json.loads(said)
    assert len(partials) > 1


@both
async def test_bound_settings_and_config_reach_the_model_inside(how: str) -> None:
    asked: list[dict[str, Any]] = []

    class Noting(ScriptedChatModel):
        def _stream(self, messages: list[BaseMessage], stop: Any = None, *args: Any, **kwargs: Any) -> Any:
            asked.append({"stop": stop, **kwargs})
            return super()._stream(messages, stop, *args, **kwargs)

    model = guarded(Noting.saying(BENIGN)).bind(stop=["x"], temperature=0.5).with_config(tags=["t"])
    assert (await invoked(model, how)).text == BENIGN
    assert asked == [{"stop": ["x"], "temperature": 0.5}]


@both
async def test_configurable_alternatives_stay_guarded(how: str) -> None:
    model = guarded(ScriptedChatModel.saying(BENIGN)).configurable_alternatives(
        ConfigurableField(id="which"), harmful=guarded(ScriptedChatModel.saying(HARMFUL))
    )
    chosen = model.with_config(configurable={"which": "harmful"})
    assert [(await invoked(one, how)).text for one in (model, chosen)] == [BENIGN, DEFAULT_REPLACEMENT]


@both
async def test_fields_of_the_guarded_model_are_configurable(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL)
    model: Any = guarded(inner).configurable_fields(stream_invoke=ConfigurableField(id="early"))
    assert (await invoked(model.with_config(configurable={"early": False}), how)).text == DEFAULT_REPLACEMENT
    assert inner.given == len(word_chunks(HARMFUL))
    assert (await invoked(model.with_config(configurable={"early": True}), how)).text == DEFAULT_REPLACEMENT
    assert inner.given == len(word_chunks(HARMFUL)) + 9


@both
async def test_a_guarded_model_can_be_guarded_again(how: str) -> None:
    other = Guard(sidecar=ScriptedSidecar("boat."), policy=Policy(schedule=EVERY_4, replacement="No boats."))
    model = guard_model(guarded(ScriptedChatModel.saying(BENIGN)), other)
    assert (await invoked(model, how)).text == "No boats."
    model = guard_model(guarded(ScriptedChatModel.saying(HARMFUL)), other)
    assert (await invoked(model, how)).text == DEFAULT_REPLACEMENT


# -- guard_model ---------------------------------------------------------------------------------------------------


@both
async def test_guard_model_finds_the_model_in_what_was_built_around_it(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL)
    built: Sequence[Any] = [
        inner,
        inner.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ChatPromptTemplate.from_template("{x}") | inner | (lambda answer: answer),
        inner.with_fallbacks([ScriptedChatModel.saying(BENIGN)]),
        inner.with_retry(),
        inner.with_config(tags=["t"]).bind(stop=["x"]),
    ]
    for runnable in built:
        model = guard_model(runnable, guard())
        asked: Any = {"x": "?"} if runnable is built[2] else "?"
        assert (await invoked(model, how, asked)).text == DEFAULT_REPLACEMENT
    assert inner.bind(stop=["x"]).bound is inner


@both
async def test_guard_model_leaves_no_model_unguarded_beside_one_that_it_found(how: str) -> None:
    inner = ScriptedChatModel.saying(HARMFUL)
    alternatives = inner.configurable_alternatives(
        ConfigurableField(id="which"), other=ScriptedChatModel.saying(HARMFUL)
    )
    branch = RunnableBranch((lambda asked: asked == "?", inner.bind(stop=["x"])), inner)
    parallel = RunnableParallel(a=inner, b=RunnablePassthrough() | branch, c=alternatives)
    chosen: Any = guard_model(parallel, guard()).with_config(configurable={"which": "other"})
    assert {key: answer.text for key, answer in (await invoked(chosen, how)).items()} == dict.fromkeys(
        "abc", DEFAULT_REPLACEMENT
    )
    each = guard_model(inner.map(), guard())
    assert [answer.text for answer in await invoked(each, how, ["?", "?"])] == [DEFAULT_REPLACEMENT] * 2


def test_fields_that_a_call_configures_are_a_config_error() -> None:
    model = ScriptedChatModel.saying(BENIGN).configurable_fields(model_name=ConfigurableField(id="model"))
    with pytest.raises(ConfigError, match="guard the model itself"):
        guard_model(model, guard())


@both
async def test_a_sidecar_that_cannot_be_reached_is_an_error_before_the_model_is_asked(how: str) -> None:
    class Gone(ScriptedSidecar):
        def connect(self) -> Any:
            yield from ()
            raise CheckError("nobody there")

    inner = ScriptedChatModel.saying(BENIGN)
    with pytest.raises(CheckError, match="nobody there"):
        await streamed(ChatAdaGuard(inner=inner, guard=Guard(sidecar=Gone())), how)
    assert inner.given == 0


def test_wrong_arguments_of_guard_model_are_one_clear_line() -> None:
    inner = ScriptedChatModel.saying(BENIGN)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((inner,), {}),
        ((inner, guard()), {"policy": Policy()}),
        ((lambda x: x, guard()), {}),
        ((StrOutputParser(), guard()), {}),
        ((inner, "http://127.0.0.1:1"), {}),
    ]
    for given, named in wrong:
        with pytest.raises(ConfigError) as raised:
            guard_model(*given, **named)
        assert "\n" not in str(raised.value)


def test_a_guard_or_a_model_inside_that_is_none_is_one_clear_line() -> None:
    inner = ScriptedChatModel.saying(BENIGN)
    wrong: list[dict[str, Any]] = [
        {"inner": inner},
        {"inner": inner, "guard": "reference"},
        {"guard": guard()},
        {"inner": "gpt-4", "guard": guard()},
        {"inner": inner.bind(stop=["x"]), "guard": guard()},
    ]
    for fields in wrong:
        with pytest.raises(ConfigError, match="ChatAdaGuard takes a") as raised:
            ChatAdaGuard(**fields)
        assert "\n" not in str(raised.value)
        assert BENIGN not in str(raised.value)
    message: Any = "x"
    with pytest.raises(ConfigError, match="takes a message, not a str"):
        replacement_only(message)


def test_a_guarded_model_can_be_copied_and_shares_its_guard() -> None:
    model = guarded(ScriptedChatModel.saying(HARMFUL))
    for copied in (copy.copy(model), copy.deepcopy(model), model.model_copy(deep=True)):
        assert copied.guard is model.guard
        assert copied.invoke("?").text == DEFAULT_REPLACEMENT


# -- what else is taken over from the model inside -----------------------------------------------------------------


class Streaming(ScriptedChatModel):
    """A model with the setting of many providers."""

    streaming: bool = False


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.heard.append(token)


@both
async def test_a_model_that_was_told_to_stream_tells_its_tokens_under_invoke_too(how: str) -> None:
    async def heard(model: Any) -> list[Any]:
        tokens = Tokens()
        asked: Any = {"callbacks": [tokens]}
        (model.invoke("?", asked) if how == "sync" else await model.ainvoke("?", asked))
        return tokens.heard

    told = Streaming.saying(BENIGN, streaming=True)
    assert "".join(await heard(guarded(told))) == BENIGN
    assert await heard(guarded(told)) == await heard(told)
    assert await heard(guarded(guarded(told))) == await heard(told)
    assert HARMFUL not in "".join(await heard(guarded(Streaming.saying(HARMFUL, streaming=True))))
    for quiet in (Streaming.saying(BENIGN), Streaming.saying(BENIGN, streaming=True, disable_streaming=True)):
        assert await heard(guarded(quiet)) == []
    assert await heard(ChatAdaGuard(inner=told, guard=guard(), stream_invoke=False)) == []


def test_the_name_is_that_of_the_model_inside() -> None:
    assert guarded(ScriptedChatModel.saying(BENIGN, name="mine")).get_name() == "mine"
    assert ChatAdaGuard(inner=ScriptedChatModel.saying(BENIGN, name="mine"), guard=guard(), name="own").name == "own"


class AnyMessage(Whole):
    """A model that answers with a message of whichever role it is told."""

    role: str = "assistant"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        message = ChatMessage(role=self.role, content=self.said, additional_kwargs={"k": "v"})
        return ChatResult(generations=[ChatGeneration(message=message)])


@both
async def test_a_whole_answer_in_the_assistants_role_is_judged_and_stays_what_it_is(how: str) -> None:
    plain = AnyMessage(said=BENIGN)
    answer, alone = await invoked(guarded(plain), how), await invoked(plain, how)
    assert (type(answer), answer.content, answer.additional_kwargs) == (ChatMessage, BENIGN, {"k": "v"})
    assert (answer.role, type(alone)) == (alone.role, ChatMessage)
    assert (await invoked(guarded(AnyMessage(said=HARMFUL)), how)).content == DEFAULT_REPLACEMENT
    with pytest.raises(ConfigError, match="answered with a ChatMessage"):
        await invoked(guarded(AnyMessage(said=BENIGN, role="critic")), how)


@both
async def test_a_cut_has_one_finish_reason_where_every_chunk_says_one(how: str) -> None:
    chunks = [
        chunk.model_copy(update={"response_metadata": {"finish_reason": "STOP"}}) for chunk in word_chunks(HARMFUL)
    ]
    model = guarded(ScriptedChatModel(script=lambda _: chunks))
    assert (await invoked(model, how)).response_metadata["finish_reason"] == "content_filter"
    added = reduce(add, await streamed(model, how))
    assert replacement_only(added).response_metadata["finish_reason"] == "content_filter"
    # What was shown cannot be taken back: only the last chunk by itself says it.
    said = [chunk.response_metadata["finish_reason"] for chunk in await streamed(model, how) if chunk.text]
    assert (set(said[:-1]), said[-1]) == ({"STOP"}, "content_filter")
