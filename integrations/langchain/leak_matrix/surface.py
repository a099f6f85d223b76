"""What a surface of LangChain is, and how it is called. Knows none of them."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core._api import LangChainBetaWarning
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from leak_matrix.positions import Kind, Setup
from leak_matrix.record import Record

__all__ = ["ASK", "AsyncUse", "Surface", "Use", "chain_of", "config_of", "takes_v3", "without_beta_warnings"]

ASK = "Tell me."
Use: TypeAlias = Callable[[Setup, Record], None]
AsyncUse: TypeAlias = Callable[[Setup, Record], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """One row of the table.

    Attributes:
        name: Its heading.
        kind: What it needs.
        use: Uses it and records what it hands out; None where it exists in async code only.
        ause: As `use`, for async code; None where it exists in sync code only.
        settings: Settings of the model for it.
        has_words: Whether words of an answer belong there at all.
    """

    name: str
    kind: Kind
    use: Use | None
    ause: AsyncUse | None
    settings: Callable[[], dict[str, Any]] = dict
    has_words: bool = True


def config_of(setup: Setup, *handlers: Any) -> Any:
    """The configuration of one call: the guard's handlers, if it has any, then those of the surface."""
    return {"callbacks": [*setup.handlers, *handlers]}


def takes_v3(kind: type) -> bool:
    """Whether something has the third version of event streams: it is a beta, and may go or change."""
    return hasattr(kind, "stream_events") and "v3" in str(inspect.signature(kind.stream_events))


def without_beta_warnings(use: Any) -> Any:
    """The third version of event streams is announced as a beta at every call."""
    if inspect.iscoroutinefunction(use):

        @functools.wraps(use)
        async def aquiet(setup: Setup, record: Record) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LangChainBetaWarning)
                await use(setup, record)

        return aquiet

    @functools.wraps(use)
    def quiet(setup: Setup, record: Record) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LangChainBetaWarning)
            use(setup, record)

    return quiet


def chain_of(setup: Setup) -> Runnable[Any, Any]:
    """A chain with the model in it."""
    return ChatPromptTemplate.from_messages([("user", "{ask}")]) | setup.model | StrOutputParser()
