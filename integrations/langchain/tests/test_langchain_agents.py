"""Agents with `AdaGuardMiddleware`: every surface a consumer can read, other middlewares beside it, other models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
)
from langchain_core import exceptions
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from ada_guard import ContentFlaggedError, GenerationError, Policy
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, Repeat, Reply, ScriptedEndpoint, ScriptedGuard, ScriptedSidecar
from langchain_ada_guard import StructuredOutputCutError, guard_model
from langchain_ada_guard.endpoint import ChatAdaGuardEndpoint
from langchain_ada_guard.middleware import AdaGuardMiddleware
from langchain_ada_guard.testing import ScriptedChatModel, call_chunks, word_chunks
from leak_matrix.askers import ASKERS, run_asker

HARMFUL = " ".join([*(f"w{i}" for i in range(24)), UNSAFE, *(f"v{i}" for i in range(25))])
"""50 words; with a check every 8 words it is cut at 32, where 24 have been shown."""
CUT_AFTER = 33
"""A word is settled when the next one begins."""
BENIGN = " ".join(f"w{i}" for i in range(30))
REFUSAL: type[Exception] = getattr(exceptions, "ModelRefusalError", StructuredOutputCutError)
ASKED: dict[str, Any] = {"messages": [HumanMessage("a question", id="q1")]}


def guard(**policy: Any) -> ScriptedGuard:
    return ScriptedGuard(policy=Policy(schedule=Schedule.parse("every:8"), **policy))


def guarding(**policy: Any) -> AdaGuardMiddleware:
    return AdaGuardMiddleware(guard(**policy))


def saying(*answers: str | Sequence[AIMessageChunk], **settings: Any) -> ScriptedChatModel:
    """A model that gives one answer after the other, by the number of answers that the conversation holds already."""

    def script(messages: list[BaseMessage]) -> Sequence[AIMessageChunk]:
        turn = sum(isinstance(message, AIMessage) for message in messages)
        answer = answers[min(turn, len(answers) - 1)]
        return word_chunks(answer, id=f"answer-{turn}") if isinstance(answer, str) else answer

    return ScriptedChatModel(script=script, **settings)


def calling(name: str, arguments: str) -> list[AIMessageChunk]:
    return call_chunks(name, arguments, id=f"call-of-{name}", call_id=f"id-of-{name}")


def in_thread(name: str = "1") -> Any:
    # An agent that goes round in circles fails here soon; its own limit is 9,999 steps.
    return {"configurable": {"thread_id": name}, "recursion_limit": 25}


def stored(saver: InMemorySaver) -> str:
    """All that a saver holds: every checkpoint and every pending write, packed and unpacked."""
    unpacked = list(saver.list(None))
    writes = [repr(checkpoint.pending_writes) for checkpoint in unpacked]
    return repr([unpacked, writes, dict(saver.storage), dict(saver.writes), dict(saver.blobs)])


def answers(state: dict[str, Any]) -> list[str]:
    return [str(message.content) for message in state["messages"] if isinstance(message, AIMessage)]


def read_v3(run: Any) -> str:
    return repr(list(run)) + repr(run.output)


def surfaces(agent: Any) -> dict[str, Callable[[], Any]]:
    modes = ["values", "updates", "messages", "custom", "tasks", "debug", "checkpoints"]
    found: dict[str, Callable[[], Any]] = {
        mode: lambda mode=mode: list(agent.stream(ASKED, in_thread(mode), stream_mode=mode)) for mode in modes
    }
    found["invoke"] = lambda: agent.invoke(ASKED, in_thread("invoke"))
    found["together"] = lambda: list(agent.stream(ASKED, in_thread("together"), stream_mode=modes, subgraphs=True))
    found["v2 parts"] = lambda: list(
        agent.stream(ASKED, in_thread("parts"), stream_mode=["messages", "values"], version="v2")
    )
    found["v3 events"] = lambda: read_v3(agent.stream_events(ASKED, in_thread("v3"), version="v3"))
    found["v3 messages"] = lambda: [
        (list(message.text), str(message.output))
        for message in agent.stream_events(ASKED, in_thread("v3m"), version="v3").messages
    ]
    return found


async def collect(stream: Any) -> list[Any]:
    async with aclosing(stream) as items:
        return [item async for item in items]


async def read_async(agent: Any, surface: str) -> Any:
    if surface == "ainvoke":
        return await agent.ainvoke(ASKED, in_thread())
    if surface == "astream_events v2":
        return await collect(agent.astream_events(ASKED, in_thread(), version="v2"))
    if surface == "astream_events v3":
        run = await agent.astream_events(ASKED, in_thread(), version="v3")
        return [[event async for event in run], await run.output()]
    return await collect(agent.astream(ASKED, in_thread(), stream_mode=surface))


SURFACES = sorted(surfaces(None))
ASYNC_SURFACES = [
    "ainvoke",
    "astream_events v2",
    "astream_events v3",
    "values",
    "updates",
    "messages",
    "custom",
    "debug",
]
v3_is_beta = pytest.mark.filterwarnings("ignore:.*v3 streaming protocol.*")


# -- every surface ----------------------------------------------------------------------------------------------------


@v3_is_beta
@pytest.mark.parametrize("on_flag", ["replace", "halt"])
@pytest.mark.parametrize("surface", SURFACES)
def test_no_surface_of_an_agent_shows_what_was_not_passed(surface: str, on_flag: str) -> None:
    model, saver = saying(HARMFUL), InMemorySaver()
    agent = create_agent(model, [], middleware=[guarding(on_flag=on_flag)], checkpointer=saver)
    seen = repr(surfaces(agent)[surface]())
    assert UNSAFE not in seen
    assert UNSAFE not in stored(saver)
    assert "content_filter" in seen
    assert (model.given, model.closed) == (CUT_AFTER, 1)


@v3_is_beta
@pytest.mark.parametrize("surface", ASYNC_SURFACES)
async def test_no_async_surface_of_an_agent_shows_what_was_not_passed(surface: str) -> None:
    model, saver = saying(HARMFUL), InMemorySaver()
    agent = create_agent(model, [], middleware=[guarding()], checkpointer=saver)
    seen = repr(await read_async(agent, surface))
    assert UNSAFE not in seen
    assert UNSAFE not in stored(saver)
    assert "content_filter" in seen
    assert (model.given, model.closed) == (CUT_AFTER, 1)


@pytest.mark.parametrize(("on_flag", "shown_after"), [("replace", DEFAULT_REPLACEMENT), ("halt", "")])
def test_stream_shows_prefix_and_replacement_once_while_state_holds_the_replacement_only(
    on_flag: str, shown_after: str
) -> None:
    agent = create_agent(saying(HARMFUL), [], middleware=[guarding(on_flag=on_flag)], checkpointer=InMemorySaver())
    chunks = [chunk for chunk, _ in agent.stream(ASKED, in_thread(), stream_mode="messages")]
    assert "".join(str(chunk.content) for chunk in chunks) == " ".join(f"w{i}" for i in range(24)) + shown_after
    [answer] = [m for m in agent.get_state(in_thread()).values["messages"] if isinstance(m, AIMessage)]
    assert answer.content == DEFAULT_REPLACEMENT
    assert {chunk.id for chunk in chunks} == {answer.id}


def test_next_turn_of_a_model_sees_the_replacement_only() -> None:
    seen: list[list[BaseMessage]] = []

    def script(messages: list[BaseMessage]) -> Sequence[AIMessageChunk]:
        seen.append(list(messages))
        return word_chunks(HARMFUL if len(seen) == 1 else BENIGN, id=f"answer-{len(seen)}")

    agent = create_agent(ScriptedChatModel(script=script), [], middleware=[guarding()], checkpointer=InMemorySaver())
    agent.invoke(ASKED, in_thread())
    state = agent.invoke({"messages": [HumanMessage("and now?")]}, in_thread())
    assert [str(message.content) for message in seen[1]] == ["a question", DEFAULT_REPLACEMENT, "and now?"]
    assert answers(state) == [DEFAULT_REPLACEMENT, BENIGN]


@v3_is_beta
def test_benign_run_is_that_of_the_unguarded_agent() -> None:
    ran: list[str] = []

    @tool
    def note(text: str) -> str:
        """Writes something down."""
        ran.append(text)
        return "noted"

    def run(middleware: Sequence[Any]) -> tuple[Any, ...]:
        model = saying(calling("note", '{"text": "hello there"}'), BENIGN)
        agent = create_agent(model, [note], middleware=middleware, checkpointer=InMemorySaver())
        streamed = [
            (chunk, meta["langgraph_node"]) for chunk, meta in agent.stream(ASKED, in_thread(), stream_mode="messages")
        ]
        sums: dict[str | None, Any] = {}
        for chunk, _ in streamed:
            if isinstance(chunk, AIMessageChunk):
                sums[chunk.id] = sums[chunk.id] + chunk if chunk.id in sums else chunk
        state = agent.get_state(in_thread()).values
        updates = [
            update
            for update in agent.stream(ASKED, in_thread("2"), stream_mode="updates")
            if "AdaGuardMiddleware.after_model" not in update
        ]
        whole = agent.invoke(ASKED, in_thread("3"))
        return (
            [without_tool_ids(m) for m in state["messages"]],
            sums,
            repr_without_ids(updates),
            answers(whole),
            model.given,
        )

    def without_tool_ids(message: BaseMessage) -> BaseMessage:
        return message.model_copy(update={"id": None}) if isinstance(message, ToolMessage) else message

    def repr_without_ids(updates: list[Any]) -> list[Any]:
        return [
            [without_tool_ids(message) for message in update["messages"]]
            for step in updates
            for update in step.values()
        ]

    assert run([guarding()]) == run([])
    assert ran == ["hello there"] * 6


# -- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("on_flag", ["replace", "halt"])
@pytest.mark.parametrize(
    "arguments",
    [
        '{"text": "' + HARMFUL + '"}',
        '{"text": "' + UNSAFE + '"',
        '{"text": "a", "more": ["b", "' + UNSAFE,
    ],
)
async def test_tool_does_not_run_on_arguments_that_were_cut(arguments: str, on_flag: str, sync: bool) -> None:
    ran: list[str] = []

    @tool
    def write_file(text: str) -> str:
        """Writes a file."""
        ran.append(text)
        return "written"

    saver = InMemorySaver()
    model = saying([*word_chunks("I will write", id="c")[:-1], *call_chunks("write_file", arguments, id="c")])
    agent = create_agent(model, [write_file], middleware=[guarding(on_flag=on_flag)], checkpointer=saver)
    if sync:
        state = agent.invoke(ASKED, in_thread())
    else:
        state = await agent.ainvoke(ASKED, in_thread())
    answer = state["messages"][-1]
    assert ran == []
    assert (answer.tool_calls, answer.invalid_tool_calls, answer.content) == ([], [], DEFAULT_REPLACEMENT)
    assert len(state["messages"]) == 2
    assert UNSAFE not in stored(saver)


def test_tool_whose_call_passed_runs_once() -> None:
    ran: list[str] = []

    @tool
    def write_file(text: str) -> str:
        """Writes a file."""
        ran.append(text)
        return "written"

    model = saying(calling("write_file", '{"text": "bread and water"}'), BENIGN)
    state = create_agent(model, [write_file], middleware=[guarding()]).invoke(ASKED)
    assert ran == ["bread and water"]
    assert answers(state) == ["", BENIGN]


def agent_with_a_tool_that_asks(model: Any, saver: InMemorySaver) -> Any:
    @tool
    def ask_expert(question: str) -> str:
        """Asks another model."""
        return str(model.invoke(question).content)[-40:]

    outer = saying(calling("ask_expert", '{"question": "how"}'), BENIGN)
    return create_agent(outer, [ask_expert], middleware=[guarding()], checkpointer=saver)


def test_model_that_a_tool_calls_by_itself_is_not_guarded_by_the_agent() -> None:
    agent = agent_with_a_tool_that_asks(saying(HARMFUL), InMemorySaver())
    assert UNSAFE in repr(list(agent.stream(ASKED, in_thread(), stream_mode="messages")))


@v3_is_beta
def test_guarded_model_that_a_tool_calls_is_clean_on_every_surface() -> None:
    saver, model = InMemorySaver(), saying(HARMFUL)
    agent = agent_with_a_tool_that_asks(guard_model(model, guard()), saver)
    for name, read in surfaces(agent).items():
        assert UNSAFE not in repr(read()), name
    assert UNSAFE not in stored(saver)
    assert model.given == CUT_AFTER * len(SURFACES)


@v3_is_beta
def test_sub_agent_with_its_own_middleware_is_clean_on_every_surface() -> None:
    inner = create_agent(saying(HARMFUL), [], middleware=[guarding()], name="expert")

    @tool
    def ask_expert(question: str) -> str:
        """Asks another agent."""
        return str(inner.invoke({"messages": [HumanMessage(question)]})["messages"][-1].content)

    saver = InMemorySaver()
    outer = saying(calling("ask_expert", '{"question": "how"}'), BENIGN)
    agent = create_agent(outer, [ask_expert], middleware=[guarding()], checkpointer=saver)
    for name, read in surfaces(agent).items():
        assert UNSAFE not in repr(read()), name
    assert UNSAFE not in stored(saver)
    [said] = [m for m in agent.get_state(in_thread("invoke")).values["messages"] if isinstance(m, ToolMessage)]
    assert said.content == DEFAULT_REPLACEMENT


@v3_is_beta
@pytest.mark.parametrize("surface", ASYNC_SURFACES)
async def test_sub_agent_with_its_own_middleware_is_clean_on_every_async_surface(surface: str) -> None:
    model = saying(HARMFUL)
    inner = create_agent(model, [], middleware=[guarding()], name="expert")

    @tool
    async def ask_expert(question: str) -> str:
        """Asks another agent."""
        return str((await inner.ainvoke({"messages": [HumanMessage(question)]}))["messages"][-1].content)

    saver = InMemorySaver()
    outer = saying(calling("ask_expert", '{"question": "how"}'), BENIGN)
    agent = create_agent(outer, [ask_expert], middleware=[guarding()], checkpointer=saver)
    assert UNSAFE not in repr(await read_async(agent, surface)) + stored(saver)
    assert model.given == CUT_AFTER


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("sync", [True, False])
async def test_model_on_an_endpoint_keeps_its_guard_and_stops_its_server(sync: bool) -> None:
    ran: list[str] = []

    @tool
    def note(text: str) -> str:
        """Writes something down."""
        ran.append(text)
        return "noted"

    cut_off = Reply(items=[*(f" w{i}" for i in range(24)), f" {UNSAFE}", Repeat((" more",))])
    shared, saver = guard(), InMemorySaver()
    script = ScriptedEndpoint(cut_off)
    with script.serve() as base_url:
        model = ChatAdaGuardEndpoint.for_endpoint(
            base_url,
            model="scripted",
            sidecar=ScriptedSidecar(),
            policy=Policy(schedule=Schedule.parse("every:8"), on_flag="raise", replacement="its own words"),
            api_key_env=None,
            verify=False,  # nothing here speaks TLS
        )
        retry = ModelRetryMiddleware(initial_delay=0)
        agent = create_agent(model, [note], middleware=[AdaGuardMiddleware(shared), retry], checkpointer=saver)
        with pytest.raises(ContentFlaggedError):
            await (asyncio.to_thread(agent.invoke, ASKED, in_thread()) if sync else agent.ainvoke(ASKED, in_thread()))
        model.guard.close()
    assert len(script.asked) == 1
    assert answers(agent.get_state(in_thread()).values) == ["its own words"]
    assert ran == []
    assert UNSAFE not in stored(saver)


# -- other middlewares ------------------------------------------------------------------------------------------------


def selecting_agent(guarded: Any, said: Any, **settings: Any) -> Any:
    """One whose tools are chosen, in front of the guard, by the model of the agent itself."""

    @tool
    def bake(what: str) -> str:
        """Bakes something."""
        return what

    @tool
    def fry(what: str) -> str:
        """Fries something."""
        return what

    def script(messages: list[BaseMessage]) -> Sequence[AIMessageChunk]:
        return said if "select" in str(messages[0].content).lower() else word_chunks(BENIGN, id="answer")

    model = guarded(ScriptedChatModel(script=script))
    return create_agent(model, [bake, fry], middleware=[LLMToolSelectorMiddleware(), guarding()], **settings)


def read_until_refused(agent: Any) -> list[Any]:
    seen: list[Any] = []
    modes = ["messages", "values", "updates", "custom"]
    with pytest.raises((REFUSAL, ValueError)):
        seen.extend(agent.stream(ASKED, in_thread(), stream_mode=modes))
    return seen


def test_middleware_in_front_that_asks_the_agents_model_streams_what_nobody_has_checked() -> None:
    seen = read_until_refused(selecting_agent(lambda model: model, word_chunks(HARMFUL)))
    assert UNSAFE in repr(seen)


def test_middleware_in_front_that_asks_the_agents_model_is_guarded_with_it() -> None:
    saver = InMemorySaver()
    agent = selecting_agent(lambda model: guard_model(model, guard()), word_chunks(HARMFUL), checkpointer=saver)
    assert UNSAFE not in repr(read_until_refused(agent)) + stored(saver)


@pytest.mark.parametrize("asker", sorted(ASKERS))
def test_stream_is_clean_whoever_asks_where_every_model_is_guarded(asker: str) -> None:
    assert run_asker(asker, "and around every other").found == []
    assert run_asker(asker, "no guard").found


def test_middleware_in_front_selects_as_ever_with_a_guarded_model() -> None:
    selection = call_chunks("ToolSelectionResponse", '{"tools": ["bake"]}')
    agent = selecting_agent(lambda model: guard_model(model, guard()), selection)
    assert answers(agent.invoke(ASKED)) == [BENIGN]


@pytest.mark.parametrize("guard_last", [True, False])
def test_summaries_come_from_a_model_of_their_own_and_are_guarded_with_it(guard_last: bool) -> None:
    def run(summary_model: Any) -> tuple[str, dict[str, Any]]:
        summarising = SummarizationMiddleware(summary_model, trigger=("messages", 2), keep=("messages", 1))
        middleware = [summarising, guarding()] if guard_last else [guarding(), summarising]
        agent = create_agent(saying(BENIGN), [], middleware=middleware, checkpointer=InMemorySaver())
        agent.invoke(ASKED, in_thread())
        asked = {"messages": [HumanMessage("and now?")]}
        seen = repr(list(agent.stream(asked, in_thread(), stream_mode=["messages", "updates", "custom"])))
        return seen, agent.get_state(in_thread()).values

    seen, state = run(guard_model(saying(HARMFUL), guard()))
    assert UNSAFE not in seen
    assert DEFAULT_REPLACEMENT in str(state["messages"][0].content)
    assert answers(state) == [BENIGN]
    # The summary's model is not the agent's: without a guard of its own nobody has judged what it writes.
    seen, state = run(saying(HARMFUL))
    assert UNSAFE in str(state["messages"][0].content)


@pytest.mark.parametrize("guard_last", [True, False])
@pytest.mark.parametrize(("arguments", "runs"), [('{"text": "bread"}', 1), ('{"text": "' + UNSAFE + '"}', 0)])
def test_human_is_only_asked_for_calls_that_passed(arguments: str, runs: int, guard_last: bool) -> None:
    ran: list[str] = []

    @tool
    def write_file(text: str) -> str:
        """Writes a file."""
        ran.append(text)
        return "written"

    human: Any = HumanInTheLoopMiddleware(interrupt_on={"write_file": True})
    middleware = [human, guarding()] if guard_last else [guarding(), human]
    saver = InMemorySaver()
    model = saying(calling("write_file", arguments), BENIGN)
    agent = create_agent(model, [write_file], middleware=middleware, checkpointer=saver)
    state = agent.invoke(ASKED, in_thread())
    assert ("__interrupt__" in state) == bool(runs)
    assert ran == []
    if runs:
        state = agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), in_thread())
        assert answers(state)[-1] == BENIGN
    else:
        assert answers(state) == [DEFAULT_REPLACEMENT]
    assert len(ran) == runs
    assert UNSAFE not in stored(saver)


@v3_is_beta
@pytest.mark.parametrize("guard_last", [True, False])
def test_personal_data_middleware_works_beside_the_guard(guard_last: bool) -> None:
    pii: Any = PIIMiddleware("email", apply_to_output=True)
    middleware = [pii, guarding()] if guard_last else [guarding(), pii]
    harmful = create_agent(
        saying("write to a@b.example " + HARMFUL), [], middleware=middleware, checkpointer=InMemorySaver()
    )
    for name, read in surfaces(harmful).items():
        assert UNSAFE not in repr(read()), name
    benign = create_agent(saying("write to a@b.example " + BENIGN), [], middleware=middleware)
    assert answers(benign.invoke(ASKED)) == ["write to [REDACTED_EMAIL] " + BENIGN]


# -- many at once, and broken off -------------------------------------------------------------------------------------


def by_question(messages: list[BaseMessage]) -> Sequence[AIMessageChunk]:
    return word_chunks(HARMFUL if "harm" in str(messages[-1].content) else BENIGN, id=str(messages[-1].id))


def expected(kind: str) -> str:
    return DEFAULT_REPLACEMENT if kind == "harm" else BENIGN


def test_threads_on_one_middleware_do_not_see_each_other() -> None:
    shared = guarding()
    agents = [
        create_agent(ScriptedChatModel(script=by_question), [], middleware=[shared], checkpointer=InMemorySaver())
        for _ in range(2)
    ]
    results: dict[str, tuple[str, str]] = {}

    def run(number: int) -> None:
        kind = "harm" if number % 2 else "good"
        asked = {"messages": [HumanMessage(kind, id=f"{number}")]}
        agent, config = agents[number % 3 % 2], in_thread(f"{number}")
        custom = list(agent.stream(asked, config, stream_mode="custom"))
        results[f"{kind}-{number}"] = (
            answers(agent.get_state(config).values)[0],
            custom[-1]["ada_guard"]["finish_reason"],
        )

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    for name, (answer, reason) in results.items():
        kind = name.split("-")[0]
        assert (answer, reason) == (expected(kind), "content_filter" if kind == "harm" else "stop")


async def test_tasks_on_one_middleware_do_not_see_each_other() -> None:
    agent = create_agent(
        ScriptedChatModel(script=by_question), [], middleware=[guarding()], checkpointer=InMemorySaver()
    )

    async def run(number: int) -> tuple[str, str, str]:
        kind = "harm" if number % 2 else "good"
        config = in_thread(f"{number}")
        custom = []
        asked = {"messages": [HumanMessage(kind, id=f"{number}")]}
        async for item in agent.astream(asked, config, stream_mode="custom"):
            custom.append(item)
            await asyncio.sleep(0)
        return kind, answers(agent.get_state(config).values)[0], custom[-1]["ada_guard"]["finish_reason"]

    for kind, answer, reason in await asyncio.gather(*map(run, range(12))):
        assert (answer, reason) == (expected(kind), "content_filter" if kind == "harm" else "stop")


class PatientChatModel(ScriptedChatModel):
    """One that lets others work between two chunks, as a model behind a socket does."""

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(super()._astream(*args, **kwargs)) as chunks:  # type: ignore[type-var]  # a generator
            async for chunk in chunks:
                await asyncio.sleep(0)
                yield chunk


ENDLESS = " ".join(f"w{i}" for i in range(4000))


async def test_generation_stops_when_an_async_consumer_leaves() -> None:
    model = PatientChatModel.saying(ENDLESS)
    agent = create_agent(model, [], middleware=[guarding()])
    async with aclosing(agent.astream(ASKED, stream_mode="messages")) as stream:
        await anext(stream)
    assert model.closed == 1
    assert model.given < 50


async def test_generation_stops_when_a_consumer_of_events_leaves() -> None:
    model = PatientChatModel.saying(ENDLESS)
    agent = create_agent(model, [], middleware=[guarding()])
    async with aclosing(agent.astream_events(ASKED, version="v2")) as events:
        async for event in events:
            if event["event"] == "on_chat_model_stream":
                break
    assert model.closed == 1
    assert model.given < 50


@v3_is_beta
async def test_generation_stops_when_a_v3_run_is_aborted() -> None:
    model = PatientChatModel.saying(ENDLESS)
    run = await create_agent(model, [], middleware=[guarding()]).astream_events(ASKED, version="v3")
    async for event in run:
        if event["method"] == "messages":
            break
    await run.abort()
    assert model.closed == 1
    assert model.given < 50


@pytest.mark.parametrize("middleware", [[], [guarding()]])
def test_sync_consumer_that_leaves_waits_for_the_model_as_without_a_guard(middleware: list[Any]) -> None:
    # LangGraph runs the model's step in a thread and waits for it: nothing tells the model that nobody listens.
    model = saying(BENIGN)
    stream = create_agent(model, [], middleware=middleware).stream(ASKED, stream_mode="messages")
    next(stream)
    stream.close()
    assert (model.given, model.closed) == (31, 1)


# -- failures ---------------------------------------------------------------------------------------------------------


class ProviderError(Exception):
    pass


@pytest.mark.parametrize("on_flag", ["replace", "raise"])
def test_model_that_fails_before_any_text_fails_as_without_a_guard(on_flag: str) -> None:
    model = saying([], error=ProviderError("busy"))
    with pytest.raises(ProviderError, match="busy"):
        create_agent(model, [], middleware=[guarding(on_flag=on_flag)]).invoke(ASKED)


@pytest.mark.parametrize("text", [BENIGN, " ".join(["safe"] * 8 + [UNSAFE])])
def test_model_that_fails_in_mid_stream_shows_checked_text_and_no_more(text: str) -> None:
    model, saver = saying(text, error=ProviderError(text)), InMemorySaver()
    agent = create_agent(model, [], middleware=[guarding()], checkpointer=saver)
    seen: list[Any] = []
    with pytest.raises(GenerationError) as caught:
        seen.extend(agent.stream(ASKED, in_thread(), stream_mode="messages"))
    assert len(seen) in (8, 24)
    assert UNSAFE not in repr(seen) + repr(caught.value) + stored(saver)
    assert caught.value.__cause__ is None


def test_guard_that_fails_in_mid_stream_releases_no_more() -> None:
    class Broken(ScriptedGuard):
        def stream_from(self, *args: Any, **kwargs: Any) -> Any:
            for number, event in enumerate(super().stream_from(*args, **kwargs)):
                if number == 3:
                    raise RuntimeError("the guard is broken")
                yield event

    model, saver = saying(HARMFUL), InMemorySaver()
    broken = AdaGuardMiddleware(Broken(policy=Policy(schedule=Schedule.parse("every:8"))))
    agent = create_agent(model, [], middleware=[broken], checkpointer=saver)
    seen: list[Any] = []
    with pytest.raises(RuntimeError, match="the guard is broken"):
        seen.extend(agent.stream(ASKED, in_thread(), stream_mode="messages"))
    assert UNSAFE not in repr(seen) + stored(saver)
    assert len(seen) == 8
    assert model.closed == 1
