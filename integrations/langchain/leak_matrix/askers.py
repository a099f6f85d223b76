"""Who else asks a model inside an agent, and which guard keeps what that model says from the agent's streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import LLMToolSelectorMiddleware
from langchain_core.messages import AIMessage

from ada_guard.testing import UNSAFE
from langchain_ada_guard import AdaGuardMiddleware, guard_model
from langchain_ada_guard.cut import refusal_error
from leak_matrix.matrix import BrokenCellError
from leak_matrix.plants import Search, speaker
from leak_matrix.positions import scripted_guard
from leak_matrix.record import Record
from leak_matrix.surface import ASK

__all__ = ["ASKERS", "GUARDS", "run_asker"]

ASKERS: dict[str, Callable[[Any], list[Any]]] = {
    "the agent itself": lambda _: [],
    "LLMToolSelectorMiddleware() in front, with the agent's model": lambda _: [LLMToolSelectorMiddleware()],
    "LLMToolSelectorMiddleware(model) in front, with its own": lambda model: [LLMToolSelectorMiddleware(model=model)],
}
"""Who asks -> a model of one's own -> the middlewares in front of the guard."""

GUARDS: dict[str, tuple[bool, bool, bool]] = {
    "no guard": (False, False, False),
    "AdaGuardMiddleware": (True, False, False),
    "and guard_model around the agent's model": (True, True, False),
    "and around every other": (True, True, True),
}
"""Heading -> whether there is the middleware, and `guard_model` around the agent's model and around the other one."""


def run_asker(asker: str, guards: str) -> Record:
    """Streams the messages of an agent, and searches them for the word.

    Raises:
        BrokenCellError: The agent raised what is not expected of it, or showed nothing.
    """
    by_middleware, around_own, around_other = GUARDS[guards]
    record, guard = Record(UNSAFE), scripted_guard()

    def model(guarded: bool) -> Any:
        plain = speaker("text", UNSAFE)
        return guard_model(plain, guard) if guarded else plain

    behind = [AdaGuardMiddleware(guard)] if by_middleware else []
    agent: Any = create_agent(model(around_own), [Search()], middleware=[*ASKERS[asker](model(around_other)), *behind])
    with record.watching():
        for part in agent.stream({"messages": [("user", ASK)]}, stream_mode="messages"):
            record.see("a part", part)
    # The scripted model never selects a tool, and a selection that was cut is none either.
    expected = (ValueError, type(refusal_error(AIMessage("")))) if ASKERS[asker](None) else ()
    if record.error is not None and not isinstance(record.error, expected):
        raise BrokenCellError(f"{asker}, {guards}: raised {type(record.error).__name__}") from record.error
    if not record.seen:
        raise BrokenCellError(f"{asker}, {guards}: showed nothing")
    return record
