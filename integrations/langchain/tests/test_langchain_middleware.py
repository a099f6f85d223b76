"""What `AdaGuardMiddleware` does to a request, and what it owes its agent: errors, structured output, verdicts."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    LLMToolSelectorMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    ModelResponse,
    ModelRetryMiddleware,
    after_model,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core import exceptions
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langsmith import Client, tracing_context
from langsmith.run_trees import RunTree
from opentelemetry import trace
from pydantic import BaseModel

from ada_guard import AdaGuardError, CheckError, ConfigError, ContentFlaggedError, Guard, Policy
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, ScriptedFollowing, ScriptedGuard, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard, StructuredOutputCutError
from langchain_ada_guard.middleware import AdaGuardMiddleware
from langchain_ada_guard.testing import ScriptedChatModel, call_chunks, word_chunks

HARMFUL = " ".join([*(f"w{i}" for i in range(24)), UNSAFE, *(f"v{i}" for i in range(25))])
SHOWN = " ".join(f"w{i}" for i in range(24))
BENIGN = " ".join(f"w{i}" for i in range(30))
ASKED: dict[str, Any] = {"messages": [HumanMessage("a question", id="q1")]}
REFUSAL: type[Exception] = getattr(exceptions, "ModelRefusalError", StructuredOutputCutError)
v3_is_beta = pytest.mark.filterwarnings("ignore:.*v3 streaming protocol.*")


def guard(**policy: Any) -> ScriptedGuard:
    return ScriptedGuard(policy=Policy(schedule=Schedule.parse("every:8"), **policy))


def guarding(**policy: Any) -> AdaGuardMiddleware:
    return AdaGuardMiddleware(guard(**policy))


_NAMES = map("model-{}".format, itertools.count())


class CountingChatModel(ScriptedChatModel):
    """Says one thing and counts how often it was asked: a stream is closed once for each."""

    @classmethod
    def told(cls, answer: str | Sequence[AIMessageChunk], **settings: Any) -> CountingChatModel:
        asked: list[int] = []
        name = next(_NAMES)

        def script(messages: list[BaseMessage]) -> Sequence[AIMessageChunk]:
            del messages
            asked.append(1)
            return word_chunks(answer, id=f"{name}-{len(asked)}") if isinstance(answer, str) else answer

        return cls(script=script, **settings)

    @property
    def calls(self) -> int:
        return self.closed


def in_thread(name: str = "1") -> Any:
    # An agent that goes round in circles fails here soon; its own limit is 9,999 steps.
    return {"configurable": {"thread_id": name}, "recursion_limit": 25}


def answers(state: dict[str, Any]) -> list[str]:
    return [str(message.content) for message in state["messages"] if isinstance(message, AIMessage)]


def stored(saver: InMemorySaver) -> str:
    unpacked = list(saver.list(None))
    return repr(
        [unpacked, [c.pending_writes for c in unpacked], dict(saver.storage), dict(saver.writes), dict(saver.blobs)]
    )


async def run(agent: Any, sync: bool, config: Any = None) -> Any:
    config = config or in_thread()
    return agent.invoke(ASKED, config) if sync else await agent.ainvoke(ASKED, config)


both = pytest.mark.parametrize("sync", [True, False])


# -- what other middlewares do to the model ---------------------------------------------------------------------------

Changed = Callable[[ModelRequest[Any]], ModelRequest[Any]]


class Changing(AgentMiddleware):
    """Changes the request before it goes on."""

    def __init__(self, change: Changed) -> None:
        self.change = change

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        return handler(self.change(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        return await handler(self.change(request))


class Answering(AgentMiddleware):
    """Answers by itself."""

    def __init__(self, answer: Callable[[ModelRequest[Any]], Any]) -> None:
        self.answer = answer

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        return self.answer(request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        return self.answer(request)


def assigned(request: ModelRequest[Any], model: Any) -> ModelRequest[Any]:
    with pytest.warns(DeprecationWarning, match="Direct attribute assignment"):
        request.model = model
    return request


def hand_built(request: ModelRequest[Any], model: Any) -> ModelRequest[Any]:
    return ModelRequest(
        model=model, messages=request.messages, tools=request.tools, state=request.state, runtime=request.runtime
    )


STICKY: dict[str, Callable[[ModelRequest[Any], Any], ModelRequest[Any]]] = {
    "override": lambda request, model: request.override(model=model),
    "override twice": lambda request, model: request.override(model=model).override(messages=list(request.messages)),
    "bound": lambda request, model: request.override(model=model.bind(stop=["END"])),
    "its own model bound": lambda request, model: request.override(model=model).override(
        model=request.override(model=model).model.bind(stop=["END"])  # type: ignore[typeddict-item]  # as people do
    ),
    "replace": lambda request, model: dataclasses.replace(request, model=model),
    "assigned": assigned,
}


@both
@pytest.mark.parametrize("how", sorted(STICKY))
async def test_model_that_a_later_middleware_puts_in_is_guarded_too(how: str, sync: bool) -> None:
    routed, saver = CountingChatModel.told(HARMFUL), InMemorySaver()
    route = Changing(lambda request: STICKY[how](request, routed))
    agent = create_agent(CountingChatModel.told(BENIGN), [], middleware=[guarding(), route], checkpointer=saver)
    modes = ["messages", "values", "updates"]
    if sync:
        seen = list(agent.stream(ASKED, in_thread(), stream_mode=modes))
    else:
        seen = [item async for item in agent.astream(ASKED, in_thread(), stream_mode=modes)]
    assert UNSAFE not in repr(seen) + stored(saver)
    assert answers(agent.get_state(in_thread()).values) == [DEFAULT_REPLACEMENT]
    assert (routed.given, routed.calls) == (33, 1)


@both
@pytest.mark.parametrize("guard_last", [True, False])
async def test_fallback_model_is_guarded_too(guard_last: bool, sync: bool) -> None:
    broken = CountingChatModel.told([], error=RuntimeError("busy"))
    spare, saver = CountingChatModel.told(HARMFUL), InMemorySaver()
    fallback = ModelFallbackMiddleware(spare)
    middleware = [fallback, guarding()] if guard_last else [guarding(), fallback]
    agent = create_agent(broken, [], middleware=middleware, checkpointer=saver)
    state = await run(agent, sync, in_thread())
    assert answers(state) == [DEFAULT_REPLACEMENT]
    assert UNSAFE not in stored(saver)
    assert (broken.calls, spare.calls) == (1, 1)


def answer_of(model: Any) -> Callable[[ModelRequest[Any]], Any]:
    return lambda request: model.invoke(request.messages)


def answer_after(model: Any) -> Callable[[ModelRequest[Any]], Any]:
    """Asks the guarded model, and lets its own one have the last word."""

    def answer(request: ModelRequest[Any]) -> Any:
        request.model.invoke(request.messages)
        return ModelResponse(result=[model.invoke(request.messages)])

    return answer


def reworded_answer(model: Any) -> Callable[[ModelRequest[Any]], Any]:
    def answer(request: ModelRequest[Any]) -> Any:
        request.model.invoke(request.messages)
        return AIMessage(model.invoke(request.messages).content)

    return answer


@both
@pytest.mark.parametrize("retries", [False, True])
@pytest.mark.parametrize("told", [HARMFUL, BENIGN])
@pytest.mark.parametrize(
    "past",
    [
        lambda model: Changing(lambda request: hand_built(request, model)),
        lambda model: Answering(answer_of(model)),
        lambda model: Answering(answer_after(model)),
        lambda model: Answering(reworded_answer(model)),
        lambda model: Answering(lambda request: AIMessage("canned " + UNSAFE)),
    ],
    ids=["hand-built request", "own model", "own model in the end", "own model's words", "canned"],
)
async def test_answer_of_a_model_that_could_not_be_guarded_is_refused(
    past: Callable[[Any], AgentMiddleware], told: str, retries: bool, sync: bool
) -> None:
    saver = InMemorySaver()
    outer: list[Any] = [ModelRetryMiddleware(on_failure="error", initial_delay=0)] if retries else []
    middleware = [*outer, guarding(), past(CountingChatModel.told(told))]
    agent = create_agent(CountingChatModel.told(BENIGN), [], middleware=middleware, checkpointer=saver)
    with pytest.raises(ConfigError) as caught:
        await run(agent, sync, in_thread())
    assert str(caught.value) == (
        "inside AdaGuardMiddleware a model answered that it could not guard: "
        "put AdaGuardMiddleware last in the middleware list"
    )
    assert answers(agent.get_state(in_thread()).values) == []
    assert UNSAFE not in stored(saver)


def test_middleware_may_stream_and_add_up_the_guarded_model_by_itself() -> None:
    def answer(request: ModelRequest[Any]) -> AIMessage:
        chunks = list(request.model.stream(request.messages))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        return AIMessage(**{name: getattr(whole, name) for name in ("content", "id", "response_metadata")})

    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding(), Answering(answer)])
    assert answers(agent.invoke(ASKED)) == [DEFAULT_REPLACEMENT]


def test_model_that_its_user_has_guarded_keeps_its_own_guard() -> None:
    own, shared = guard(replacement="its own words"), guard()
    model = ChatAdaGuard(inner=CountingChatModel.told(HARMFUL), guard=own)
    agent = create_agent(model, [], middleware=[AdaGuardMiddleware(shared)])
    assert answers(agent.invoke(ASKED)) == ["its own words"]
    assert isinstance(shared.sidecar, ScriptedSidecar)
    assert shared.sidecar.followed == []


def test_model_that_a_middleware_keeps_from_an_earlier_request_is_watched_in_the_next() -> None:
    kept: list[Any] = []

    def reuse(request: ModelRequest[Any]) -> ModelRequest[Any]:
        kept.append(request.model)
        return request.override(model=kept[0])

    model = CountingChatModel.told(HARMFUL)
    agent = create_agent(model, [], middleware=[guarding(), Changing(reuse)])
    told = [[item["ada_guard"]["event"] for item in agent.stream(ASKED, stream_mode="custom")] for _ in range(3)]
    assert told == [["check"] * 4 + ["halt", "done"]] * 3
    assert kept[2].inner.callbacks is None


def test_request_shows_later_middlewares_the_name_and_profile_of_its_model() -> None:
    seen: list[Any] = []

    def look(request: ModelRequest[Any]) -> ModelRequest[Any]:
        seen.append((request.model.model_name, request.model.profile, request.model._llm_type))  # type: ignore[attr-defined]  # most have a name
        return request

    model = CountingChatModel.told(BENIGN, profile={"max_input_tokens": 7})
    create_agent(model, [], middleware=[guarding(), Changing(look)]).invoke(ASKED)
    assert seen == [("scripted", {"max_input_tokens": 7}, "ada-guard-scripted")]


def test_tool_selector_behind_the_guard_asks_the_guarded_model() -> None:
    @tool
    def bake(what: str) -> str:
        """Bakes something."""
        return what

    selection = call_chunks("ToolSelectionResponse", '{"tools": ["bake"]}')

    def script(messages: list[BaseMessage]) -> Sequence[AIMessageChunk]:
        return selection if "select" in str(messages[0].content).lower() else word_chunks(BENIGN)

    model = ScriptedChatModel(script=script)
    agent = create_agent(model, [bake], middleware=[guarding(), LLMToolSelectorMiddleware(always_include=["bake"])])
    assert answers(agent.invoke(ASKED)) == [BENIGN]


def test_template_variables_reach_the_guard() -> None:
    class Noting(ScriptedGuard):
        noted: Any = None

        def stream_from(self, *args: Any, **kwargs: Any) -> Any:
            self.noted = kwargs["template_kwargs"]
            return super().stream_from(*args, **kwargs)

    noting = Noting()
    middleware = AdaGuardMiddleware(noting, template_kwargs={"enable_thinking": False})
    create_agent(CountingChatModel.told(BENIGN), [], middleware=[middleware]).invoke(ASKED)
    assert noting.noted == {"enable_thinking": False}


def test_what_is_no_guard_or_no_chat_model_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^AdaGuardMiddleware takes a Guard"):
        AdaGuardMiddleware("http://127.0.0.1:8008")  # type: ignore[arg-type]  # the mistake under test
    route = Changing(lambda request: request.override(model="gpt"))  # type: ignore[typeddict-item]  # likewise
    with pytest.raises(ConfigError, match=r"^AdaGuardMiddleware found no chat model in a str:"):
        create_agent(CountingChatModel.told(BENIGN), [], middleware=[guarding(), route]).invoke(ASKED)


# -- on_flag="raise" --------------------------------------------------------------------------------------------------


def retrying(**settings: Any) -> Any:
    return ModelRetryMiddleware(max_retries=2, initial_delay=0, backoff_factor=0, jitter=False, **settings)


NEIGHBOURS: dict[str, Callable[[AdaGuardMiddleware, Any], list[Any]]] = {
    "alone": lambda own, spare: [own],
    "retry outside": lambda own, spare: [retrying(), own],
    "retry inside": lambda own, spare: [own, retrying()],
    "retry inside, error": lambda own, spare: [own, retrying(on_failure="error")],
    "fallback outside": lambda own, spare: [ModelFallbackMiddleware(spare), own],
    "fallback inside": lambda own, spare: [own, ModelFallbackMiddleware(spare)],
    "both": lambda own, spare: [ModelFallbackMiddleware(spare), retrying(), own],
}


@both
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("neighbours", sorted(NEIGHBOURS))
async def test_flagged_answer_is_raised_once_and_not_asked_for_again(
    neighbours: str, streams: bool, sync: bool
) -> None:
    told = {} if streams else {"disable_streaming": True}
    model, spare = CountingChatModel.told(HARMFUL, **told), CountingChatModel.told(BENIGN)
    saver = InMemorySaver()
    middleware = NEIGHBOURS[neighbours](guarding(on_flag="raise"), spare)
    agent = create_agent(model, [], middleware=middleware, checkpointer=saver)
    with pytest.raises(ContentFlaggedError) as caught:
        await run(agent, sync, in_thread())
    verdict = caught.value.verdict
    assert (verdict.checker, verdict.depth, verdict.harm_probability, verdict.threshold) == ("probe", 32, 0.99, 0.5)
    assert (model.calls, spare.calls) == (1, 0)
    assert answers(agent.get_state(in_thread()).values) == [DEFAULT_REPLACEMENT]
    assert UNSAFE not in stored(saver)


@v3_is_beta
@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "debug", "v3"])
def test_every_stream_of_a_flagged_answer_ends_with_the_error(mode: str) -> None:
    model, saver = CountingChatModel.told(HARMFUL), InMemorySaver()
    agent = create_agent(model, [], middleware=[guarding(on_flag="raise")], checkpointer=saver)
    seen: list[Any] = []
    stream = (
        agent.stream_events(ASKED, in_thread(), version="v3")
        if mode == "v3"
        else agent.stream(ASKED, in_thread(), stream_mode=mode)
    )
    with pytest.raises(ContentFlaggedError):
        seen.extend(stream)
    assert seen
    assert UNSAFE not in repr(seen) + stored(saver)
    if mode == "messages":
        assert "".join(str(chunk.content) for chunk, _ in seen) == SHOWN


@v3_is_beta
@pytest.mark.parametrize("version", ["v2", "v3"])
async def test_async_events_of_a_flagged_answer_end_with_the_error(version: Any) -> None:
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding(on_flag="raise")])
    seen: list[Any] = []
    events: Any = agent.astream_events(ASKED, version=version)
    events = await events if version == "v3" else events

    async def read() -> None:
        async for event in events:
            seen.append(event)  # noqa: PERF401  # what came before the error is wanted too

    with pytest.raises(ContentFlaggedError):
        await read()
    assert seen
    assert UNSAFE not in repr(seen)


@both
async def test_flagged_answer_of_a_model_with_its_own_guard_is_not_asked_for_again(sync: bool) -> None:
    inner = CountingChatModel.told(HARMFUL)
    model = ChatAdaGuard(inner=inner, guard=guard(on_flag="raise", replacement="its own words"))
    agent = create_agent(model, [], middleware=[guarding(), retrying()], checkpointer=InMemorySaver())
    with pytest.raises(ContentFlaggedError):
        await run(agent, sync, in_thread())
    assert inner.calls == 1
    assert answers(agent.get_state(in_thread()).values) == ["its own words"]


def test_flagged_answer_in_content_blocks_ends_in_their_form() -> None:
    chunks = [
        AIMessageChunk(content=[{"type": "text", "text": f" {word}", "index": 0}], id="blocks")
        for word in HARMFUL.split()
    ]
    agent = create_agent(CountingChatModel.told(chunks), [], middleware=[guarding(on_flag="raise")])
    seen: list[Any] = []
    with pytest.raises(ContentFlaggedError):
        seen.extend(agent.stream(ASKED, stream_mode="messages"))
    whole = seen[0][0]
    for chunk, _ in seen[1:]:
        whole = whole + chunk
    assert whole.content == [{"type": "text", "text": f" {SHOWN}", "index": 0}]
    assert whole.usage_metadata == {"input_tokens": 0, "output_tokens": 32, "total_tokens": 32}


@both
@pytest.mark.parametrize("guard_last", [True, False])
@pytest.mark.parametrize("said", ["", " ".join(f"w{i}" for i in range(20))])
async def test_model_that_fails_is_retried_and_its_last_failure_may_stand_as_the_answer(
    said: str, guard_last: bool, sync: bool
) -> None:
    model, own, retry = CountingChatModel.told(said or [], error=RuntimeError("busy")), guarding(), retrying()
    state = await run(create_agent(model, [], middleware=[retry, own] if guard_last else [own, retry]), sync)
    [answer] = answers(state)
    assert answer.startswith(
        "Model call failed after 3 attempts with " + ("GenerationError" if said else "RuntimeError")
    )
    assert model.calls == 3


def test_agent_goes_on_after_an_error_with_the_replacement_in_its_history() -> None:
    def script(messages: list[BaseMessage]) -> Sequence[AIMessageChunk]:
        return word_chunks(HARMFUL if len(messages) == 1 else BENIGN, id=f"answer-{len(messages)}")

    policy = {"on_flag": "raise", "replacement": "not that"}
    agent = create_agent(
        ScriptedChatModel(script=script), [], middleware=[guarding(**policy)], checkpointer=InMemorySaver()
    )
    with pytest.raises(ContentFlaggedError):
        agent.invoke(ASKED, in_thread())
    state = agent.invoke({"messages": [HumanMessage("something else")]}, in_thread())
    assert answers(state) == ["not that", BENIGN]


def test_resuming_a_flagged_run_raises_again() -> None:
    model = CountingChatModel.told(HARMFUL)
    agent = create_agent(model, [], middleware=[guarding(on_flag="raise")], checkpointer=InMemorySaver())
    for _ in range(2):
        with pytest.raises(ContentFlaggedError):
            agent.invoke(ASKED if model.calls == 0 else None, in_thread())
    assert model.calls == 1


def test_error_and_what_state_says_of_it_hold_no_text_of_the_answer() -> None:
    agent = create_agent(
        CountingChatModel.told(HARMFUL), [], middleware=[guarding(on_flag="raise")], checkpointer=InMemorySaver()
    )
    with pytest.raises(ContentFlaggedError) as caught:
        agent.invoke(ASKED, in_thread())
    entry = agent.get_state(in_thread()).values["messages"][-1].response_metadata["ada_guard"]
    assert (entry["raises"], entry["verdict"], entry["depth"], entry["released_depth"]) == ("flagged", "flag", 32, 24)
    assert "w0" not in json.dumps(entry) + repr(caught.value) + repr(vars(caught.value))
    assert caught.value.__cause__ is None


class BrokenSidecar(ScriptedSidecar):
    """One that is gone by the first check."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        raise CheckError("the sidecar is gone")
        yield


@both
async def test_check_that_could_not_be_made_may_be_retried(sync: bool) -> None:
    own = AdaGuardMiddleware(Guard(sidecar=BrokenSidecar(), policy=Policy(on_flag="raise")))
    model = CountingChatModel.told(HARMFUL)
    state = await run(create_agent(model, [], middleware=[retrying(), own]), sync)
    [answer] = answers(state)
    assert answer.startswith("Model call failed after 3 attempts with CheckError")
    assert UNSAFE not in answer


class FailingSidecar(ScriptedSidecar):
    """One whose checks fail."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        yield from ()

        def fail(depth: int) -> float:
            raise CheckError(f"no answer at depth {depth}")

        return ScriptedFollowing(fail)


def test_answer_that_could_not_be_checked_is_replaced_and_said_to_be_unchecked() -> None:
    agent = create_agent(
        CountingChatModel.told(BENIGN), [], middleware=[AdaGuardMiddleware(Guard(sidecar=FailingSidecar()))]
    )
    span = NotingSpan()
    with trace.use_span(span):
        state = agent.invoke(ASKED)
    assert answers(state) == [DEFAULT_REPLACEMENT]
    assert state["messages"][-1].response_metadata["ada_guard"]["verdict"] == "unchecked"
    assert span.attributes == {
        "ada_guard.verdict": "unchecked",
        "ada_guard.depth": 5,
        "ada_guard.released_depth": 0,
        "ada_guard.checks": 1,
    }


@both
async def test_structured_output_that_could_not_be_checked_is_a_refusal(sync: bool) -> None:
    agent, model = structured("provider strategy", GOOD, [AdaGuardMiddleware(Guard(sidecar=FailingSidecar()))])
    with pytest.raises(REFUSAL):
        await run(agent, sync)
    assert model.calls == 1


def test_flagged_answer_from_a_cache_is_raised_again_by_an_agent_and_not_found_by_others() -> None:
    model = CountingChatModel.told(HARMFUL, cache=InMemoryCache())
    shared = guard(on_flag="raise")
    agent = create_agent(model, [], middleware=[AdaGuardMiddleware(shared)])
    for _ in range(2):
        with pytest.raises(ContentFlaggedError):
            agent.invoke(ASKED)
    assert model.calls == 1
    with pytest.raises(ContentFlaggedError):
        ChatAdaGuard(inner=model, guard=shared).invoke(ASKED["messages"])
    assert model.calls == 2


@pytest.mark.parametrize("said", [HARMFUL, BENIGN])
def test_answer_from_a_cache_is_that_of_a_guarded_model(said: str) -> None:
    model = CountingChatModel.told(said, cache=InMemoryCache())
    agent = create_agent(model, [], middleware=[guarding()])
    first, second = (answers(agent.invoke(ASKED)) for _ in range(2))
    assert first == second == [BENIGN if said == BENIGN else DEFAULT_REPLACEMENT]
    assert model.calls == 1


# -- structured output ------------------------------------------------------------------------------------------------


class Recipe(BaseModel):
    """A recipe."""

    title: str


GOOD = '{"title": "bread and water"}'
BAD = '{"title": "bread and ' + UNSAFE + '"}'
FORMATS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "tool strategy": (ToolStrategy(Recipe), {}, True),
    "provider strategy": (ProviderStrategy(Recipe), {}, False),
    "plain schema, tools": (Recipe, {}, True),
    "plain schema, provider": (Recipe, {"profile": {"structured_output": True}}, False),
}


def structured(name: str, arguments: str, middleware: Sequence[Any], **settings: Any) -> tuple[Any, CountingChatModel]:
    schema, told, by_tool = FORMATS[name]
    chunks = call_chunks("Recipe", arguments) if by_tool else word_chunks(arguments)
    model = CountingChatModel.told(chunks, **told)
    return create_agent(model, middleware=middleware, response_format=schema, **settings), model


@both
@pytest.mark.parametrize("name", sorted(FORMATS))
async def test_benign_structured_output_is_that_of_the_unguarded_agent(name: str, sync: bool) -> None:
    guarded, plain = [await run(structured(name, GOOD, middleware)[0], sync) for middleware in ([guarding()], [])]
    assert guarded["structured_response"] == plain["structured_response"] == Recipe(title="bread and water")
    assert [(m.type, m.content) for m in guarded["messages"]] == [(m.type, m.content) for m in plain["messages"]]


@both
@pytest.mark.parametrize(
    "neighbours", ["alone", "retry inside", "retry outside", "fallback inside", "fallback outside"]
)
@pytest.mark.parametrize(
    ("on_flag", "error"), [("replace", REFUSAL), ("halt", REFUSAL), ("raise", ContentFlaggedError)]
)
@pytest.mark.parametrize("name", sorted(FORMATS))
async def test_cut_structured_output_is_a_refusal_and_not_asked_for_again(
    name: str, on_flag: str, error: type[Exception], neighbours: str, sync: bool
) -> None:
    saver, spare = InMemorySaver(), CountingChatModel.told(GOOD)
    middleware = NEIGHBOURS[neighbours](guarding(on_flag=on_flag), spare)
    agent, model = structured(name, BAD, middleware, checkpointer=saver)
    with pytest.raises(error) as caught:
        await run(agent, sync, in_thread())
    assert type(caught.value) is error
    assert (model.calls, spare.calls) == (1, 0)
    state = agent.get_state(in_thread()).values
    assert answers(state) == [DEFAULT_REPLACEMENT]
    assert state.get("structured_response") is None
    assert UNSAFE not in stored(saver) + repr(caught.value) + repr(vars(caught.value))


def test_cut_structured_output_shows_its_stream_and_then_the_refusal() -> None:
    agent, _ = structured("provider strategy", '{"title": "' + HARMFUL + '"}', [guarding()])
    seen: list[Any] = []
    with pytest.raises(REFUSAL):
        seen.extend(agent.stream(ASKED, stream_mode="messages"))
    assert (
        "".join(str(chunk.content) for chunk, _ in seen)
        == '{"title": "' + " ".join(SHOWN.split()[:23]) + DEFAULT_REPLACEMENT
    )


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_custom_stream_has_the_verdicts_where_they_belong_between_the_chunks() -> None:
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding()])
    order = []
    for mode, item in agent.stream(ASKED, stream_mode=["custom", "messages"]):
        order.append(item["ada_guard"]["event"] if mode == "custom" else "chunk")
    checked = ["check", *["chunk"] * 8]
    assert order == [*checked * 3, "check", "halt", "done", "chunk"]


@both
async def test_custom_stream_says_where_an_answer_was_cut_and_never_why_in_words(sync: bool) -> None:
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding()])
    if sync:
        told = list(agent.stream(ASKED, stream_mode="custom"))
    else:
        told = [item async for item in agent.astream(ASKED, stream_mode="custom")]
    events = [item["ada_guard"] for item in told]
    assert [event["event"] for event in events] == ["check"] * 4 + ["halt", "done"]
    assert events[-2] == {"event": "halt", "choice": 0, "depth": 32, "reason": "flag", "released_depth": 24}
    assert "w0" not in json.dumps(events)


@v3_is_beta
def test_v3_run_has_a_channel_of_verdicts() -> None:
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding()])
    run = agent.stream_events(ASKED, version="v3")
    assert [event["event"] for event in run.extensions["ada_guard"]] == ["check"] * 4 + ["halt", "done"]
    run = agent.stream_events(ASKED, version="v3")
    named = [event["params"]["data"]["event"] for event in run if event["method"] == "custom:ada_guard"]
    assert named == ["check"] * 4 + ["halt", "done"]


@v3_is_beta
async def test_async_v3_run_has_a_channel_of_verdicts() -> None:
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding()])
    run = await agent.astream_events(ASKED, version="v3")
    seen = [event["event"] async for event in run.extensions["ada_guard"]]
    assert seen == ["check"] * 4 + ["halt", "done"]


CUT = {"ada_guard.verdict": "flag", "ada_guard.depth": 32, "ada_guard.released_depth": 24, "ada_guard.checks": 4}
PASSED = {"ada_guard.verdict": "pass", "ada_guard.depth": 30, "ada_guard.released_depth": 30, "ada_guard.checks": 4}


class NotingSpan(trace.NonRecordingSpan):
    """A span of OpenTelemetry that keeps its attributes."""

    def __init__(self) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.attributes: dict[str, Any] = {}

    def set_attributes(self, attributes: Any) -> None:
        self.attributes.update(attributes)


@both
@pytest.mark.parametrize("on_flag", ["replace", "raise"])
async def test_span_around_the_agent_has_the_verdict_and_no_text(on_flag: str, sync: bool) -> None:
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding(on_flag=on_flag)])
    span = NotingSpan()
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        try:
            await run(agent, sync)
        except ContentFlaggedError:
            assert on_flag == "raise"
    assert span.attributes == CUT


@pytest.mark.parametrize(
    ("policy", "said", "expected"),
    [
        ({}, BENIGN, PASSED),
        ({"release": "audit"}, HARMFUL, {"ada_guard.verdict": "flag", "ada_guard.checks": 7}),
        ({"release": "audit"}, BENIGN, PASSED),
    ],
)
def test_span_says_what_became_of_the_whole_answer(policy: Any, said: str, expected: dict[str, Any]) -> None:
    agent = create_agent(CountingChatModel.told(said), [], middleware=[guarding(**policy)])
    span = NotingSpan()
    with trace.use_span(span):
        agent.invoke(ASKED)
    assert expected.items() <= span.attributes.items()


class NotingClient(Client):
    """A LangSmith client that sends nothing and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(api_url="http://127.0.0.1:9", api_key="none", auto_batch_tracing=False, info={})
        self.created: list[dict[str, Any]] = []

    def create_run(self, *args: Any, **kwargs: Any) -> None:
        self.created.append({"args": args, **kwargs})

    def update_run(self, *args: Any, **kwargs: Any) -> None:
        self.created.append({"args": args, **kwargs})


@both
async def test_langsmith_run_of_the_model_step_has_the_verdict_and_no_run_has_the_text(sync: bool) -> None:
    client = NotingClient()
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding()])
    with tracing_context(enabled=True, client=client, project_name="tests"):
        await run(agent, sync)
    assert UNSAFE not in repr(client.created)
    metadata = [run.get("extra", {}).get("metadata", {}) for run in client.created]
    assert any(CUT.items() <= found.items() for found in metadata)


@both
async def test_run_tree_around_a_middleware_that_is_called_by_hand_has_the_verdict(sync: bool) -> None:
    middleware, client = guarding(), NotingClient()
    request: ModelRequest[Any] = ModelRequest(model=CountingChatModel.told(BENIGN), messages=ASKED["messages"])
    tree = RunTree(name="by hand", ls_client=client)
    with tracing_context(parent=tree, enabled=True, client=client):
        if sync:
            middleware.wrap_model_call(
                request, lambda asked: ModelResponse(result=[asked.model.invoke(asked.messages)])
            )
        else:

            async def handler(asked: ModelRequest[Any]) -> ModelResponse[Any]:
                return ModelResponse(result=[await asked.model.ainvoke(asked.messages)])

            await middleware.awrap_model_call(request, handler)
    assert PASSED.items() <= tree.metadata.items()


# -- words of a middleware in the place of an answer ------------------------------------------------------------------


class Rescuing(AgentMiddleware):
    """Answers with words of its own where the model fails."""

    def __init__(self, words: Callable[[ModelRequest[Any]], Any]) -> None:
        self.words = words

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        try:
            return handler(request)
        except RuntimeError:
            return self.words(request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        try:
            return await handler(request)
        except RuntimeError:
            return self.words(request)


def busy() -> CountingChatModel:
    return CountingChatModel.told([], error=RuntimeError("busy"))


def rescued(words: Any, **policy: Any) -> Any:
    def say(request: ModelRequest[Any]) -> Any:
        del request
        return words

    return create_agent(busy(), [], middleware=[guarding(**policy), Rescuing(say)], checkpointer=InMemorySaver())


CALL = {"name": "write", "args": {"text": UNSAFE}, "id": "call-1", "type": "tool_call"}


@both
@pytest.mark.parametrize(
    "words",
    [
        AIMessage(HARMFUL),
        AIMessage([{"type": "text", "text": HARMFUL}]),
        AIMessage("", tool_calls=[CALL]),
        AIMessage("", additional_kwargs={"reasoning_content": HARMFUL}),
    ],
    ids=["text", "blocks", "tool call", "reasoning"],
)
async def test_harmful_words_that_stand_for_a_failed_answer_are_replaced(words: AIMessage, sync: bool) -> None:
    agent = rescued(words.model_copy(deep=True))
    state = await run(agent, sync)
    assert answers(state) == [DEFAULT_REPLACEMENT]
    assert state["messages"][-1].tool_calls == []
    assert state["messages"][-1].response_metadata["ada_guard"]["verdict"] == "flag"
    assert UNSAFE not in stored(agent.checkpointer)


@both
async def test_words_of_another_model_that_stand_for_a_failed_answer_are_judged(sync: bool) -> None:
    raw = CountingChatModel.told(HARMFUL)
    saver, rescue = InMemorySaver(), Rescuing(lambda request: AIMessage(raw.invoke("again").content))
    agent = create_agent(busy(), [], middleware=[guarding(), rescue], checkpointer=saver)
    assert answers(await run(agent, sync)) == [DEFAULT_REPLACEMENT]
    assert UNSAFE not in stored(saver)


@both
async def test_harmful_words_that_stand_for_a_failed_answer_are_raised_where_the_policy_says_so(sync: bool) -> None:
    agent = rescued(AIMessage(HARMFUL), on_flag="raise")
    with pytest.raises(ContentFlaggedError):
        await run(agent, sync)
    assert answers(agent.get_state(in_thread()).values) == [DEFAULT_REPLACEMENT]
    assert UNSAFE not in stored(agent.checkpointer)


@both
@pytest.mark.parametrize("on_flag", ["replace", "raise"])
async def test_harmless_words_that_stand_for_a_failed_answer_stay_as_they_are(on_flag: str, sync: bool) -> None:
    words = AIMessage("the model is busy", additional_kwargs={"tried": "twice"})
    [_, answer] = (await run(rescued(words, on_flag=on_flag), sync))["messages"]
    assert (answer.content, answer.additional_kwargs) == ("the model is busy", {"tried": "twice"})
    assert "ada_guard" not in answer.response_metadata


class WordyChatModel(CountingChatModel):
    """Says its answer in an error, as some do whose answer could not be parsed."""

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"could not parse: {HARMFUL}")


@both
async def test_failure_that_tells_what_the_model_said_is_judged_before_it_stands_as_the_answer(sync: bool) -> None:
    saver, middleware = InMemorySaver(), [guarding(), retrying()]
    agent = create_agent(WordyChatModel.told(""), [], middleware=middleware, checkpointer=saver)
    assert answers(await run(agent, sync)) == [DEFAULT_REPLACEMENT]
    assert UNSAFE not in stored(saver)


@both
async def test_words_that_stand_for_a_failed_answer_and_cannot_be_judged_are_not_shown(sync: bool) -> None:
    own = AdaGuardMiddleware(Guard(sidecar=BrokenSidecar()))
    agent = create_agent(
        CountingChatModel.told(HARMFUL), [], middleware=[own, retrying()], checkpointer=InMemorySaver()
    )
    with pytest.raises(CheckError, match="the sidecar is gone"):
        await run(agent, sync)
    assert answers(agent.get_state(in_thread()).values) == []


@both
async def test_structured_output_that_stands_for_a_failed_answer_is_refused(sync: bool) -> None:
    words = ModelResponse(result=[AIMessage("done")], structured_response={"title": UNSAFE})
    with pytest.raises(ConfigError, match="could not guard"):
        await run(rescued(words), sync)


# -- a replacement that fails -----------------------------------------------------------------------------------------


def broken_replacement(verdict: Any) -> str:
    raise RuntimeError("no words for w0")


FAILED_REPLACEMENT = "the policy's replacement function failed: RuntimeError"


@both
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("neighbours", sorted(NEIGHBOURS))
async def test_flagged_answer_is_raised_as_such_where_the_replacement_fails(
    neighbours: str, streams: bool, sync: bool
) -> None:
    told = {} if streams else {"disable_streaming": True}
    model, spare = CountingChatModel.told(HARMFUL, **told), CountingChatModel.told(BENIGN)
    middleware = NEIGHBOURS[neighbours](guarding(on_flag="raise", replacement=broken_replacement), spare)
    agent = create_agent(model, [], middleware=middleware, checkpointer=InMemorySaver())
    with pytest.raises(ContentFlaggedError):
        await run(agent, sync)
    assert (model.calls, spare.calls) == (1, 0)
    assert answers(agent.get_state(in_thread()).values) == [DEFAULT_REPLACEMENT]


@both
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("neighbours", sorted(NEIGHBOURS))
async def test_replacement_that_fails_is_raised_once_and_the_answer_not_asked_for_again(
    neighbours: str, streams: bool, sync: bool
) -> None:
    told = {} if streams else {"disable_streaming": True}
    model, spare = CountingChatModel.told(HARMFUL, **told), CountingChatModel.told(BENIGN)
    saver = InMemorySaver()
    middleware = NEIGHBOURS[neighbours](guarding(replacement=broken_replacement), spare)
    agent = create_agent(model, [], middleware=middleware, checkpointer=saver)
    with pytest.raises(AdaGuardError) as caught:
        await run(agent, sync)
    assert (type(caught.value), str(caught.value)) == (AdaGuardError, FAILED_REPLACEMENT)
    assert caught.value.__cause__ is None
    assert (model.calls, spare.calls) == (1, 0)
    [_, answer] = agent.get_state(in_thread()).values["messages"]
    entry = answer.response_metadata["ada_guard"]
    assert answer.content == DEFAULT_REPLACEMENT
    assert (entry["verdict"], entry["depth"], entry["checker"]) == ("flag", 32, "probe")
    assert UNSAFE not in stored(saver)


def test_stream_of_an_answer_whose_replacement_fails_ends_with_the_default_text_and_the_error() -> None:
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[guarding(replacement=broken_replacement)])
    seen: list[Any] = []
    with pytest.raises(AdaGuardError, match=FAILED_REPLACEMENT):
        seen.extend(agent.stream(ASKED, stream_mode="messages"))
    assert "".join(str(chunk.content) for chunk, _ in seen) == SHOWN + DEFAULT_REPLACEMENT
    assert "w0" not in repr(seen[-1])


# -- where the middleware stands --------------------------------------------------------------------------------------


class SecondGuard(AdaGuardMiddleware):
    """LangChain takes one middleware of a name."""


@both
async def test_two_guards_in_one_agent_are_refused_in_one_line(sync: bool) -> None:
    middleware = [guarding(), SecondGuard(guard())]
    with pytest.raises(ConfigError, match=r"^two AdaGuardMiddleware in one agent: one is enough"):
        await run(create_agent(CountingChatModel.told(BENIGN), [], middleware=middleware), sync)


class Grouping(AgentMiddleware):
    """Calls the model in a group of tasks, in a group of tasks."""

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        async with asyncio.TaskGroup(), asyncio.TaskGroup() as group:
            asked = group.create_task(handler(request))  # type: ignore[arg-type]  # it is a coroutine
        return asked.result()


@pytest.mark.parametrize(("on_flag", "error"), [("replace", REFUSAL), ("raise", ContentFlaggedError)])
async def test_cut_structured_output_is_a_refusal_through_a_group_of_tasks(on_flag: str, error: Any) -> None:
    agent, model = structured("provider strategy", BAD, [guarding(on_flag=on_flag), Grouping()])
    with pytest.raises(error):
        await run(agent, sync=False)
    assert model.calls == 1


def test_what_failed_beside_a_cut_in_a_group_of_tasks_is_raised() -> None:
    class FailingBeside(AgentMiddleware):
        def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
            try:
                return handler(request)
            except BaseException as error:  # noqa: BLE001  # as a group of tasks does
                raise BaseExceptionGroup("both", [error, RuntimeError("beside")]) from None

    agent, _ = structured("provider strategy", BAD, [guarding(), FailingBeside()])
    with pytest.raises(ExceptionGroup) as caught:
        agent.invoke(ASKED)
    assert [str(error) for error in caught.value.exceptions] == ["beside"]


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("update", [{"jump_to": "end"}, {"messages": [HumanMessage("go on")]}], ids=["jumps", "asks"])
def test_hook_behind_the_guard_that_jumps_or_asks_passes_its_error_by(update: dict[str, Any], behind: bool) -> None:
    @after_model(can_jump_to=["end"])
    def leave(state: Any, runtime: Any) -> dict[str, Any]:
        return update

    own = guarding(on_flag="raise")
    agent = create_agent(CountingChatModel.told(HARMFUL), [], middleware=[own, leave] if behind else [leave, own])
    if behind:
        assert answers(agent.invoke(ASKED)) == [DEFAULT_REPLACEMENT]
    else:
        with pytest.raises(ContentFlaggedError):
            agent.invoke(ASKED)


@pytest.mark.parametrize(("middleware", "steps"), [([], 1), ([guarding()], 2)])
def test_guard_costs_one_step_of_the_graph_for_each_answer(middleware: list[Any], steps: int) -> None:
    agent = create_agent(CountingChatModel.told(BENIGN), [], middleware=middleware)
    agent.invoke(ASKED, {"recursion_limit": steps + 1})
    with pytest.raises(GraphRecursionError):
        agent.invoke(ASKED, {"recursion_limit": steps})
