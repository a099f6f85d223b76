"""Where a guard can stand in LangChain: what people build today, and where ours stand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from langchain.agents.middleware import AgentMiddleware, AgentState, PIIMiddleware
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import Runnable, RunnableGenerator

from ada_guard import Guard, Policy
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.middleware import AdaGuardMiddleware
from langchain_ada_guard.runnable import RunnableAdaGuard
from leak_matrix.plants import PLANT_AT, Search, Speaker, said, speaker
from leak_matrix.record import texts

__all__ = ["CHECK_EVERY", "OURS", "PASSED", "POSITIONS", "Kind", "Position", "Setup", "scripted_guard"]

CHECK_EVERY = 8
"""Tokens between checks, for every guard in the table."""

PASSED = "".join(said(UNSAFE)[: (PLANT_AT - 1) // CHECK_EVERY * CHECK_EVERY])
"""What has been checked when the harmful word comes, if every word is a token."""
Kind: TypeAlias = Literal["chain", "chat model", "agent"]
"""What a surface needs: anything that answers like a model, a real chat model, or an agent to build."""


@dataclass(slots=True, kw_only=True)
class Setup:
    """A model with a guard in one position, ready to be used."""

    speaker: Speaker
    model: Runnable[Any, Any]
    tool: Search = field(default_factory=Search)
    middleware: list[Any] = field(default_factory=list)
    handlers: list[BaseCallbackHandler] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One column of the table.

    Attributes:
        name: Its heading.
        kinds: Kinds of surfaces where the guard can stand there at all.
        place: Puts the guard there.
        raises: What the guard there may raise where it finds the word.
    """

    name: str
    kinds: frozenset[Kind]
    place: Callable[[Setup], None]
    raises: tuple[type[Exception], ...] = ()

    def setup(self, plant: str, word: str, **settings: Any) -> Setup:
        """A model whose answers hold a word, guarded from here."""
        model = speaker(plant, word, **settings)
        setup = Setup(speaker=model, model=model)
        self.place(setup)
        return setup


def scripted_guard(**policy: Any) -> Guard:
    """A guard that finds the planted word, and checks as often as the others."""
    sidecar = ScriptedSidecar()
    sidecar.identity = "scripted"  # stands in traces, and would be found there: it names the word
    return Guard.for_sidecar(sidecar, policy=Policy(schedule=Schedule.every(CHECK_EVERY), **policy))


def is_unsafe(value: object) -> bool:
    """What the guards of the other positions ask. They look at all of a message, so that only their place counts."""
    return any(UNSAFE in text for text in texts(value))


class FlaggedInCallbackError(Exception):
    """What a handler can do: raise."""


class _CheckedTokens:
    """What a handler has been told, looked at every few tokens and at the end."""

    def __init__(self) -> None:
        self._told: list[object] = []

    def token(self, *told: object) -> None:
        self._told += told
        if len(self._told) % CHECK_EVERY == 0:
            self.end(self._told)

    def end(self, *told: object) -> None:
        if is_unsafe(told):
            raise FlaggedInCallbackError


class CheckingCallback(BaseCallbackHandler):
    """Raises when it is told of the word."""

    raise_error = True

    def __init__(self) -> None:
        self._checked = _CheckedTokens()

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        """A token of `stream`."""
        self._checked.token(chunk or token)

    def on_stream_event(self, event: Any, **kwargs: Any) -> None:
        """An event of ``stream_events(version="v3")``."""
        self._checked.token(event)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        """The whole answer."""
        self._checked.end(response)


class AsyncCheckingCallback(AsyncCallbackHandler):
    """As `CheckingCallback`, with coroutines."""

    raise_error = True

    def __init__(self) -> None:
        self._checked = _CheckedTokens()

    async def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        """A token of `stream`."""
        self._checked.token(chunk or token)

    async def on_stream_event(self, event: Any, **kwargs: Any) -> None:
        """An event of ``astream_events(version="v3")``."""
        self._checked.token(event)

    async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        """The whole answer."""
        self._checked.end(response)


class AfterModelCheck(AgentMiddleware[Any, Any, Any]):
    """Replaces an answer when it is whole."""

    def after_model(self, state: AgentState[Any], runtime: Any) -> dict[str, Any] | None:
        """Looks at the last message."""
        last = state["messages"][-1]
        return {"messages": [AIMessage(content=DEFAULT_REPLACEMENT, id=last.id)]} if is_unsafe(last) else None


def check_behind(chunks: Iterator[Any]) -> Iterator[Any]:
    """A runnable behind the model: it holds chunks back until it has looked at them."""
    held: list[Any] = []
    for chunk in chunks:
        held.append(chunk)
        if len(held) == CHECK_EVERY:
            if is_unsafe(held):
                break
            yield from held
            held = []
    yield from [AIMessageChunk(content=DEFAULT_REPLACEMENT)] if is_unsafe(held) else held


async def acheck_behind(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """As `check_behind`, for async code."""
    held: list[Any] = []
    async for chunk in chunks:
        held.append(chunk)
        if len(held) == CHECK_EVERY:
            if is_unsafe(held):
                break
            for passed in held:
                yield passed
            held = []
    for passed in [AIMessageChunk(content=DEFAULT_REPLACEMENT)] if is_unsafe(held) else held:
        yield passed


def _none(setup: Setup) -> None:
    del setup


def _pii_middleware(setup: Setup) -> None:
    setup.middleware.append(
        PIIMiddleware("harm", detector=UNSAFE, strategy="redact", apply_to_input=False, apply_to_output=True)
    )


def _after_model(setup: Setup) -> None:
    setup.middleware.append(AfterModelCheck())


def _callback(setup: Setup) -> None:
    setup.handlers.append(CheckingCallback())


def _async_callback(setup: Setup) -> None:
    setup.handlers.append(AsyncCheckingCallback())


def _runnable_behind(setup: Setup) -> None:
    setup.model = setup.model | RunnableGenerator(check_behind, acheck_behind)


def _chat_ada_guard(setup: Setup) -> None:
    setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard())


def _ada_guard_middleware(setup: Setup) -> None:
    setup.middleware.append(AdaGuardMiddleware(scripted_guard()))


def _runnable_ada_guard(setup: Setup) -> None:
    setup.model = setup.model | RunnableAdaGuard(scripted_guard())


_ALL: frozenset[Kind] = frozenset({"chain", "chat model", "agent"})
_AGENT: frozenset[Kind] = frozenset({"agent"})
_CHAIN: frozenset[Kind] = frozenset({"chain"})

POSITIONS: list[Position] = [
    Position(name="no guard", kinds=_ALL, place=_none),
    Position(name="PIIMiddleware", kinds=_AGENT, place=_pii_middleware),
    Position(name="after_model hook", kinds=_AGENT, place=_after_model),
    Position(name="callback", kinds=_ALL, place=_callback, raises=(FlaggedInCallbackError,)),
    Position(name="async callback", kinds=_ALL, place=_async_callback, raises=(FlaggedInCallbackError,)),
    Position(name="runnable behind the model", kinds=_CHAIN, place=_runnable_behind),
    Position(name="ChatAdaGuard", kinds=_ALL, place=_chat_ada_guard),
    Position(name="AdaGuardMiddleware", kinds=_AGENT, place=_ada_guard_middleware),
    Position(name="RunnableAdaGuard", kinds=_CHAIN, place=_runnable_ada_guard),
]
OURS = ("ChatAdaGuard", "AdaGuardMiddleware")
"""The positions of ours that promise that nothing unchecked is seen anywhere."""
