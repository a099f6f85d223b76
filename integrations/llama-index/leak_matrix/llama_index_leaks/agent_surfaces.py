"""The surfaces of agents: their events, their answer, their memory and their state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from llama_index.core.agent.workflow import AgentOutput, AgentStream, AgentWorkflow, FunctionAgent, ReActAgent, ToolCall
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.workflow import Context

from llama_index_leaks.plants import IN_TEXT, PLANTS
from llama_index_leaks.positions import Setup
from llama_index_leaks.record import Record
from llama_index_leaks.surface import ASK, AsyncUse, Surface

__all__ = ["AGENT_SURFACES"]


def _function_agent(setup: Setup, *, streaming: bool) -> Any:
    return FunctionAgent(name="agent", tools=[setup.tool], llm=setup.llm, streaming=streaming)


def _react_agent(setup: Setup, *, streaming: bool) -> Any:
    return ReActAgent(name="agent", tools=[setup.tool], llm=setup.llm, streaming=streaming)


def _workflow(setup: Setup, *, streaming: bool) -> Any:
    return AgentWorkflow(agents=[_function_agent(setup, streaming=streaming)])


def _run(make: Callable[..., Any], *, streaming: bool) -> AsyncUse:
    async def ause(setup: Setup, record: Record) -> None:
        agent = make(setup, streaming=streaming)
        context: Any = Context(agent)
        memory = ChatMemoryBuffer.from_defaults(token_limit=100_000, tokenizer_fn=str.split)
        handler = agent.run(user_msg=ASK, memory=memory, ctx=context)
        said: list[Any] = []
        async for event in setup.app.astream(handler.stream_events()):
            record.see(type(event).__name__, event)
            said += _said(event)
        output = await handler
        record.see("the final output", setup.app.whole(output))
        record.end(str(setup.app.whole(output)), *said)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Skipping serialization")  # of the memory, which is read below
            record.see("the context", context.to_dict())
        for message in memory.get_all():
            record.see("memory", message)
            record.outcomes.append(message.model_dump())

    return ause


def _said(event: Any) -> list[Any]:
    """What an event says, without what differs from run to run."""
    if isinstance(event, AgentStream):
        return [event.delta, event.response, event.thinking_delta]
    if isinstance(event, AgentOutput):
        return [event.response.model_dump()]
    return [event.tool_name, event.tool_kwargs] if isinstance(event, ToolCall) else []


def _surface(name: str, make: Callable[..., Any], shows: frozenset[str] | None) -> list[Surface]:
    return [
        Surface(name=f"{name}: events, memory", kind="agent", use=None, ause=_run(make, streaming=True), shows=shows),
        Surface(
            name=f"{name}, not streaming",
            kind="agent",
            use=None,
            ause=_run(make, streaming=False),
            shows=None if shows is None else shows,
        ),
    ]


_FUNCTIONS = frozenset(PLANTS) - {"thinking delta"}

AGENT_SURFACES: list[Surface] = [
    *_surface("FunctionAgent", _function_agent, _FUNCTIONS),
    *_surface("ReActAgent", _react_agent, IN_TEXT),
    *_surface("AgentWorkflow", _workflow, _FUNCTIONS),
]
