"""The surfaces of agents and graphs: streams in every mode, events, states and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.pregel import Pregel

from langchain_ada_guard.cut import METADATA_KEY
from leak_matrix.observer_surfaces import recorder
from leak_matrix.positions import Setup
from leak_matrix.record import Record
from leak_matrix.surface import ASK, AsyncUse, Surface, Use, config_of, takes_v3, without_beta_warnings

__all__ = ["AGENT_SURFACES"]

_ASKED = {"messages": [("user", ASK)]}
_MODES = ["values", "updates", "messages", "custom", "debug"]


def _agent(setup: Setup, **settings: Any) -> Any:
    model: Any = setup.model
    return create_agent(model, [setup.tool], middleware=setup.middleware, **settings)


def _graph(setup: Setup) -> Any:
    """A graph with a node that calls the model, as many write it."""
    graph = StateGraph(MessagesState)

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [setup.model.invoke(state["messages"])]}

    async def aanswer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await setup.model.ainvoke(state["messages"])]}

    graph.add_node("answer", RunnableLambda(answer, aanswer))
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile()


def _messages(state: Any) -> list[BaseMessage]:
    return [message for message in state["messages"] if message.type != "human"]


def _invoke(setup: Setup, record: Record) -> None:
    record.end(*_messages(_agent(setup).invoke(_ASKED, config_of(setup))))


async def _ainvoke(setup: Setup, record: Record) -> None:
    record.end(*_messages(await _agent(setup).ainvoke(_ASKED, config_of(setup))))


def _streamed(make: Any, mode: str) -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        parts = []
        for part in make(setup).stream(_ASKED, config_of(setup), stream_mode=mode):
            record.see("a part", part)
            parts.append(part)
        record.end(*_outcome(mode, parts))

    async def ause(setup: Setup, record: Record) -> None:
        parts = []
        async for part in make(setup).astream(_ASKED, config_of(setup), stream_mode=mode):
            record.see("a part", part)
            parts.append(part)
        record.end(*_outcome(mode, parts))

    return use, ause


def _outcome(mode: str, parts: list[Any]) -> Iterator[Any]:
    """What a stream came to, without what differs from run to run."""
    if mode == "values":
        yield from _messages(parts[-1])
    elif mode == "updates":
        yield from (
            message for part in parts for update in part.values() for message in (update or {}).get("messages", [])
        )
    elif mode == "messages":
        answers: dict[Any, Any] = {}
        for message, metadata in parts:
            key = (metadata["langgraph_step"], message.type)
            answers[key] = answers[key] + message if key in answers else message
        yield from answers.values()
    elif mode == "debug":
        steps = [(part["type"], part["payload"].get("name")) for part in parts]
        yield [step for step in steps if step[1] in ("model", "tools")]  # a middleware has steps of its own
    else:
        yield [part for part in parts if METADATA_KEY not in part]  # our own reports, without text


async def _events_v2(setup: Setup, record: Record) -> None:
    said, ends = "", []
    async for event in _agent(setup).astream_events(_ASKED, config_of(setup), version="v2"):
        record.see(event["event"], event)
        if event["event"] == "on_chat_model_stream":
            said += str(event["data"]["chunk"].text)
        if event["event"] == "on_chat_model_end":
            ends.append(event["data"]["output"])
    record.end(said, *ends)


@without_beta_warnings
def _events_v3(setup: Setup, record: Record) -> None:
    run = _agent(setup).stream_events(_ASKED, config_of(setup), version="v3")
    for event in run:
        record.see(event["method"], event)
    record.end(*_messages(run.output))


@without_beta_warnings
async def _aevents_v3(setup: Setup, record: Record) -> None:
    run = await _agent(setup).astream_events(_ASKED, config_of(setup), version="v3")
    async for event in run:
        record.see(event["method"], event)
    record.end(*_messages(await run.output()))


@without_beta_warnings
def _messages_v3(setup: Setup, record: Record) -> None:
    run = _agent(setup).stream_events(_ASKED, config_of(setup), version="v3")
    for stream in run.messages:
        for piece in stream.text:
            record.see("text", piece)
        record.see("reasoning", str(stream.reasoning))
        record.see("tool calls", stream.tool_calls.get())
        record.see("a message", stream.output)
    record.end(*_messages(run.output))


@without_beta_warnings
async def _amessages_v3(setup: Setup, record: Record) -> None:
    run = await _agent(setup).astream_events(_ASKED, config_of(setup), version="v3")
    async for stream in run.messages:
        async for piece in stream.text:
            record.see("text", piece)
        record.see("reasoning", await stream.reasoning)
        record.see("tool calls", await stream.tool_calls)
        record.see("a message", await stream.output)
    record.end(*_messages(await run.output()))


def _callbacks(setup: Setup, record: Record) -> None:
    record.end(*_messages(_agent(setup).invoke(_ASKED, config_of(setup, recorder(record)))))


async def _acallbacks(setup: Setup, record: Record) -> None:
    handlers = [recorder(record), recorder(record, coroutines=True)]
    record.end(*_messages(await _agent(setup).ainvoke(_ASKED, config_of(setup, *handlers))))


def _checkpoints(setup: Setup, record: Record) -> None:
    saver = InMemorySaver()
    config = config_of(setup) | {"configurable": {"thread_id": "1"}}
    for _ in _agent(setup, checkpointer=saver).stream(_ASKED, config, stream_mode="messages"):
        pass
    _look_into_saver(saver, config, record)


async def _acheckpoints(setup: Setup, record: Record) -> None:
    saver = InMemorySaver()
    config = config_of(setup) | {"configurable": {"thread_id": "1"}}
    async for _ in _agent(setup, checkpointer=saver).astream(_ASKED, config, stream_mode="messages"):
        pass
    _look_into_saver(saver, config, record)


def _look_into_saver(saver: InMemorySaver, config: Any, record: Record) -> None:
    record.see("stored bytes", saver.storage, saver.writes, saver.blobs)
    checkpoints = list(saver.list(config))
    for checkpoint in checkpoints:
        record.see("a checkpoint", checkpoint.checkpoint, checkpoint.metadata)
        record.see("a pending write", checkpoint.pending_writes)
    record.end(*_messages(checkpoints[0].checkpoint["channel_values"]))


def _mode(name: str, kind: Any, make: Any, mode: str) -> Surface:
    use, ause = _streamed(make, mode)
    return Surface(name=name, kind=kind, use=use, ause=ause, has_words=mode != "custom")


AGENT_SURFACES: list[Surface] = [
    Surface(name="agent.invoke", kind="agent", use=_invoke, ause=_ainvoke),
    *(_mode(f"agent.stream {mode}", "agent", _agent, mode) for mode in _MODES),
    Surface(name="agent.astream_events v2", kind="agent", use=None, ause=_events_v2),
    *(
        [
            Surface(name="agent.stream_events v3", kind="agent", use=_events_v3, ause=_aevents_v3),
            Surface(name="agent.stream_events v3 .messages", kind="agent", use=_messages_v3, ause=_amessages_v3),
        ]
        if takes_v3(Pregel)
        else []
    ),
    Surface(name="agent callbacks", kind="agent", use=_callbacks, ause=_acallbacks),
    Surface(name="agent checkpoints", kind="agent", use=_checkpoints, ause=_acheckpoints),
    _mode("graph node, messages", "chain", _graph, "messages"),
    _mode("graph node, values", "chain", _graph, "values"),
]
