"""Who watches a chain sees what passes the guard, and what it found; what happens inside the model, nobody does."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from functools import reduce
from operator import add
from typing import Any, ClassVar

import pytest
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
    get_usage_metadata_callback,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing
from langchain_core.tracers.context import collect_runs
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.config import get_config, get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import get_runtime
from langsmith.run_helpers import get_current_run_tree, get_tracing_context, tracing_context
from pydantic import PrivateAttr

from ada_guard import Guard, Policy
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.testing import ScriptedChatModel
from langchain_ada_guard.unobserved import unobserved

BENIGN = "Fold the paper once, turn it over and fold it again until it looks like a small boat."
HARMFUL = f"Take the first one and the next {UNSAFE} stuff, then the secret rest of all of it follows here."

both = pytest.mark.parametrize("how", ["sync", "async"])


class Nested(BaseChatModel):
    """A model that asks another one through its public face, as routers and wrappers do."""

    other: BaseChatModel

    @property
    def _llm_type(self) -> str:
        return "nested"

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self.other.stream(messages):
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in self.other.astream(messages):
            yield ChatGenerationChunk(message=chunk)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.other.invoke(messages).text))])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage((await self.other.ainvoke(messages)).text))])


class NestedSync(Nested):
    """One whose steps run on a worker thread in async code."""

    _astream = BaseChatModel._astream


class NestedWhole(Nested):
    """One that does not stream."""

    _stream = BaseChatModel._stream
    _astream = BaseChatModel._astream


nested = pytest.mark.parametrize("kind", [Nested, NestedSync, NestedWhole])


def guarded(inner: BaseChatModel, **settings: Any) -> ChatAdaGuard:
    guard = Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=Schedule.every(4)))
    return ChatAdaGuard(inner=inner, guard=guard, **settings)


def harmful(kind: type[Nested]) -> ChatAdaGuard:
    return guarded(kind(other=ScriptedChatModel.saying(HARMFUL)))


class Watching(BaseCallbackHandler):
    """Notes whatever it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.told.append(("token", (token, str(kwargs.get("chunk")))))

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.told.append(("start", None))

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.told.append(("end", str(response)))

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.told.append((name, data))

    def named(self, name: str) -> list[Any]:
        return [what for kind, what in self.told if kind == name]


async def run(model: Any, how: str, verb: str, **config: Any) -> Any:
    if verb == "invoke":
        return model.invoke("?", config) if how == "sync" else await model.ainvoke("?", config)
    return list(model.stream("?", config)) if how == "sync" else [c async for c in model.astream("?", config)]


# -- raw tokens ----------------------------------------------------------------------------------------------------


@both
@nested
@pytest.mark.parametrize("verb", ["invoke", "stream"])
async def test_callbacks_hear_of_one_run_and_of_no_raw_token(how: str, kind: type[Nested], verb: str) -> None:
    watching = Watching()
    await run(RunnableLambda(lambda x: x) | harmful(kind), how, verb, callbacks=[watching])
    assert len(watching.named("start")) == 1
    assert UNSAFE not in str(watching.told)


@nested
async def test_event_streams_hold_no_raw_token(kind: type[Nested]) -> None:
    chain = RunnableLambda(lambda x: x) | harmful(kind)
    events = [event async for event in chain.astream_events("?", version="v2")]
    assert UNSAFE not in str(events)
    assert [event["event"] for event in events].count("on_chat_model_start") == 1
    output = next(event for event in events if event["event"] == "on_chat_model_end")["data"]["output"]
    assert output.text.endswith(DEFAULT_REPLACEMENT)


@both
@nested
async def test_graph_streams_hold_no_raw_token_and_the_state_holds_the_replacement_alone(
    how: str, kind: type[Nested]
) -> None:
    model = harmful(kind)
    graph = StateGraph(MessagesState)
    if how == "sync":
        graph.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
    else:

        async def answer(state: MessagesState) -> Any:
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    app, asked = graph.compile(), {"messages": [("user", "?")]}
    modes = ["messages", "values"]
    told = (
        list(app.stream(asked, stream_mode=modes))
        if how == "sync"
        else [part async for part in app.astream(asked, stream_mode=modes)]
    )
    assert UNSAFE not in str(told)
    assert next(what for mode, what in reversed(told) if mode == "values")["messages"][-1].text == DEFAULT_REPLACEMENT
    shown = "".join(message[0].text for mode, message in told if mode == "messages")
    assert shown.endswith(DEFAULT_REPLACEMENT)
    assert shown.count(DEFAULT_REPLACEMENT) == 1


@both
@nested
async def test_tracers_of_the_context_and_usage_counters_see_the_guarded_run_alone(
    how: str, kind: type[Nested]
) -> None:
    with collect_runs() as runs, get_usage_metadata_callback() as usage:
        await run(guarded(kind(other=ScriptedChatModel.saying(BENIGN))), how, "stream")
        await run(harmful(kind), how, "stream")
    assert len(runs.traced_runs) == 2
    assert UNSAFE not in str([traced.outputs for traced in runs.traced_runs])
    assert isinstance(usage, UsageMetadataCallbackHandler)
    if kind is not NestedWhole:
        assert usage.usage_metadata["scripted"]["input_tokens"] == 5


@both
@nested
async def test_the_tracer_that_langsmith_puts_into_the_context_sees_the_guarded_run_alone(
    how: str, kind: type[Nested]
) -> None:
    tracer: Any = RunCollectorCallbackHandler()
    token = tracing.tracing_v2_callback_var.set(tracer)
    try:
        await run(kind(other=ScriptedChatModel.saying(BENIGN)), how, "stream")
        assert len(tracer.traced_runs) > 1  # unguarded, the run inside is traced
        tracer.traced_runs.clear()
        await run(harmful(kind), how, "stream")
    finally:
        tracing.tracing_v2_callback_var.reset(token)
    assert len(tracer.traced_runs) == 1
    assert UNSAFE not in str(tracer.traced_runs[0].outputs)


def test_a_step_sees_no_observer_and_leaves_them_in_place() -> None:
    config: Any = {"callbacks": [Watching()]}
    token = var_child_runnable_config.set(config)
    try:
        with get_usage_metadata_callback(), tracing_context(enabled=True):
            before = dict(iter(_context()))
            for fails in (False, True):
                try:
                    with unobserved():
                        assert not (var_child_runnable_config.get() or {}).get("callbacks")
                        assert get_current_run_tree() is None
                        if fails:
                            raise KeyError
                except KeyError:
                    assert fails
                assert dict(iter(_context())) == before
    finally:
        var_child_runnable_config.reset(token)


def test_a_stream_hides_from_each_step_what_observes_it_at_that_step() -> None:
    step = unobserved()
    for watching in (None, Watching(), Watching()):
        config: Any = None if watching is None else {"callbacks": [watching], "configurable": {"known": watching}}
        token = var_child_runnable_config.set(config)
        try:
            with tracing_context(enabled=watching is not None), step():
                shown: Any = var_child_runnable_config.get() or {}
                assert not shown.get("callbacks")
                assert shown.get("configurable", {}).get("known") is watching
                assert get_tracing_context()["enabled"] is False
        finally:
            var_child_runnable_config.reset(token)


@pytest.mark.parametrize("enabled", [None, True])
def test_what_a_step_sets_for_its_tracing_does_not_outlast_it(enabled: bool | None) -> None:
    step, left = unobserved(), []
    with tracing_context(enabled=enabled):
        for _ in range(2):
            with step():
                # As a generator inside leaves it that yields within such a block.
                left.append(tracing_context(enabled=True, project_name="theirs", tags=["theirs"]))
                left[-1].__enter__()
            shown = get_tracing_context()
            assert (shown["enabled"], shown["project_name"], shown["tags"]) == (enabled, None, None)


def _context() -> Iterator[tuple[Any, Any]]:
    from contextvars import copy_context

    # What langsmith never set and what it set back to its default are the same to whoever asks.
    return ((var, value) for var, value in copy_context().items() if value is not None)


HOOKED: ContextVar[Any] = ContextVar("hooked", default=None)


class Hooked(BaseCallbackHandler):
    """A handler that an environment variable asks for."""

    seen: ClassVar[list[str]] = []

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.seen.append(str(response))


@both
@nested
async def test_handlers_that_the_environment_asks_for_see_the_guarded_run_alone(
    how: str, kind: type[Nested], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_configure_hooks", [*tracing._configure_hooks])
    tracing.register_configure_hook(HOOKED, inheritable=True, handle_class=Hooked, env_var="ADA_GUARD_TEST_HOOK")
    monkeypatch.setenv("ADA_GUARD_TEST_HOOK", "true")
    monkeypatch.setattr(Hooked, "seen", [])
    await run(harmful(kind), how, "invoke")
    assert len(Hooked.seen) == 1
    assert UNSAFE not in Hooked.seen[0]
    assert HOOKED.get() is None


class Asking(ScriptedChatModel):
    """A model that asks LangGraph where it runs, and writes to its stream."""

    _asked: list[Any] = PrivateAttr(default_factory=list)

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in super()._stream(*args, **kwargs):
            self._asked.append((get_config()["configurable"]["thread_id"], get_runtime().context))
            get_stream_writer()({"raw": chunk.text})
            yield chunk


class Inside(Nested):
    """A model that runs a graph with another model in it."""

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        answer = graph_of(self.other).invoke({"messages": messages})["messages"][-1]
        yield ChatGenerationChunk(message=AIMessageChunk(answer.text, id="inside"))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        answer = (await graph_of(self.other).ainvoke({"messages": messages}))["messages"][-1]
        yield ChatGenerationChunk(message=AIMessageChunk(answer.text, id="inside"))


def graph_of(model: BaseChatModel) -> Any:
    def node(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def anode(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", RunnableLambda(node, anode))
    graph.add_edge(START, "model")
    return graph.compile()


EVERY_MODE: Any = ["messages", "updates", "values", "custom", "tasks", "checkpoints", "debug"]


async def shown_by(graph: Any, how: str) -> list[Any]:
    asked: Any = {"messages": [("user", "?")]}
    config: Any = {"configurable": {"thread_id": "7"}}
    how_to: Any = {"stream_mode": EVERY_MODE, "subgraphs": True, "context": {"user": "u"}}
    if how == "sync":
        return list(graph.stream(asked, config, **how_to))
    return [part async for part in graph.astream(asked, config, **how_to)]


@both
async def test_a_model_may_ask_langgraph_where_it_runs_and_writes_nothing_to_its_stream(how: str) -> None:
    inner = Asking.saying(HARMFUL)
    shown = await shown_by(graph_of(guarded(inner)), how)
    assert set(map(str, inner._asked)) == {"('7', {'user': 'u'})"}
    assert UNSAFE not in str(shown)
    assert "raw" not in str(shown)
    assert "'raw'" in str(await shown_by(graph_of(Asking.saying(HARMFUL)), how))


@both
@pytest.mark.parametrize("kind", [Nested, NestedSync, NestedWhole, Inside])
async def test_no_mode_of_a_graph_shows_what_is_called_inside_a_model(how: str, kind: type[Nested]) -> None:
    shown = await shown_by(graph_of(harmful(kind)), how)
    assert DEFAULT_REPLACEMENT in str(shown)
    assert UNSAFE not in str(shown)
    shown = await shown_by(graph_of(guarded(kind(other=Asking.saying(HARMFUL)))), how)
    assert UNSAFE not in str(shown)
    assert "raw" not in str(shown)


@both
async def test_between_two_chunks_the_consumer_has_its_own_context(how: str) -> None:
    seen: list[Any] = []

    def look(chunk: AIMessageChunk) -> AIMessageChunk:
        seen.append((var_child_runnable_config.get() or {}).get("tags"))
        return chunk

    async def inside(_: Any) -> str:
        stream = harmful(Nested).stream("?") if how == "sync" else None
        if stream is not None:
            return reduce(add, [look(chunk) for chunk in stream]).text
        return reduce(add, [look(chunk) async for chunk in harmful(Nested).astream("?")]).text

    await RunnableLambda(inside).ainvoke("?", {"tags": ["mine"]})
    assert seen
    assert set(map(tuple, seen)) == {("mine",)}


# -- what the guard found ------------------------------------------------------------------------------------------


def said(watching: Watching) -> list[str]:
    return [data["event"] for data in watching.named("ada_guard")]


@both
@pytest.mark.parametrize("verb", ["invoke", "stream"])
async def test_callbacks_of_a_chain_hear_what_the_guard_found_once_and_without_text(how: str, verb: str) -> None:
    watching = Watching()
    chain = RunnableLambda(lambda x: x) | guarded(ScriptedChatModel.saying(HARMFUL), callbacks=[watching])
    await run(chain, how, verb, callbacks=[watching])
    assert said(watching) == ["check", "check", "halt", "done"]
    data = str(watching.named("ada_guard"))
    assert not any(word in data for word in ("Take", UNSAFE, "sorry", "token_ids"))


@both
async def test_handlers_given_to_the_constructor_hear_it_without_a_chain(how: str) -> None:
    watching = Watching()
    await run(guarded(ScriptedChatModel.saying(BENIGN), callbacks=[watching]), how, "stream")
    assert said(watching)[-1] == "done"
    assert set(said(watching)) == {"check", "done"}


async def test_event_streams_show_custom_events_of_the_guard() -> None:
    chain = RunnableLambda(lambda x: x) | guarded(ScriptedChatModel.saying(HARMFUL))
    events = [event async for event in chain.astream_events("?", version="v2")]
    found = [event for event in events if event["event"] == "on_custom_event"]
    assert {event["name"] for event in found} == {"ada_guard"}
    assert [event["data"]["event"] for event in found] == ["check", "check", "halt", "done"]


@both
async def test_callbacks_of_a_graph_hear_what_the_guard_found(how: str) -> None:
    model, watching = guarded(ScriptedChatModel.saying(HARMFUL)), Watching()
    graph = StateGraph(MessagesState)
    graph.add_node("answer", (lambda state: state["messages"]) | model | (lambda answer: {"messages": [answer]}))
    graph.add_edge(START, "answer")
    app, asked = graph.compile(), {"messages": [("user", "?")]}
    config: Any = {"callbacks": [watching]}
    if how == "sync":
        app.invoke(asked, config)
    else:
        await app.ainvoke(asked, config)
    assert said(watching) == ["check", "check", "halt", "done"]


@both
async def test_callbacks_of_a_single_invoke_hear_it(how: str) -> None:
    watching = Watching()
    await run(guarded(ScriptedChatModel.saying(HARMFUL)), how, "invoke", callbacks=[watching])
    assert said(watching) == ["check", "check", "halt", "done"]


class Raising(Watching):
    """Fails at every event."""

    def on_custom_event(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("a handler's own trouble")


@both
async def test_a_handler_that_fails_does_not_disturb_the_stream(how: str) -> None:
    chain = RunnableLambda(lambda x: x) | guarded(ScriptedChatModel.saying(BENIGN))
    assert reduce(add, await run(chain, how, "stream", callbacks=[Raising()])).text == BENIGN


async def test_async_handlers_are_awaited() -> None:
    heard: list[str] = []

    class Slow(AsyncCallbackHandler):
        async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            await asyncio.sleep(0)
            heard.append(data["event"])

    await run(guarded(ScriptedChatModel.saying(HARMFUL), callbacks=[Slow()]), "async", "stream")
    assert heard == ["check", "check", "halt", "done"]
