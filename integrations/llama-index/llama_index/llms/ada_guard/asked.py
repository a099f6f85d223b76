"""Engines within which guarded LLMs judge their answers against what the user asked. Knows no guard.

The question must be known whenever an LLM is called. LlamaIndex's own threads and tasks start with a copy of the
context in which an engine was asked; a streamed answer, of which the LLM may be asked as late as the first word is
read, takes the question with it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from functools import wraps
from typing import Any, TypeVar

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.schema import QueryBundle

from llama_index.llms.ada_guard.judged import judged_against, question_asked

__all__ = ["judging_the_question"]

E = TypeVar("E", bound=BaseQueryEngine | BaseChatEngine)

# Engines around another one call the methods behind `query` and `aquery` directly.
_ASKED = ("query", "_query", "retrieve", "synthesize", "chat", "stream_chat")
_ASKED_ASYNC = ("aquery", "_aquery", "aretrieve", "asynthesize", "achat", "astream_chat")
_QUESTION = ("str_or_query_bundle", "query_bundle", "message")
"""What the parameter is called that holds the question; it is the first one."""


def judging_the_question(engine: E) -> E:
    """Makes an engine judge its answers against the question it is asked, short of one asked further out.

    Args:
        engine: Changed in place; its class becomes a subclass of the same name.
    """
    kind: Any = type(engine)
    names = {"__slots__": (), **{name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}}
    asked = type(kind)(kind.__name__, (kind,), names)
    # Put on the class, not on the object: there they would go on working for the original in copies of it. And not
    # into the class when it is made: LlamaIndex would put its decorators around them a second time.
    for name in _ASKED:
        if hasattr(kind, name):
            setattr(asked, name, _asked(getattr(kind, name)))
    for name in _ASKED_ASYNC:
        if hasattr(kind, name):
            setattr(asked, name, _asked_async(getattr(kind, name)))
    if hasattr(kind, "with_retriever"):
        asked.with_retriever = _made(kind.with_retriever)
    object.__setattr__(engine, "__class__", asked)
    return engine


def _asked(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def asked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with judged_against(question := _question(args, kwargs)):
            return _taking_along(method(self, *args, **kwargs), question)

    return asked


def _asked_async(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def asked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with judged_against(question := _question(args, kwargs)):
            return _taking_along(await method(self, *args, **kwargs), question)

    return asked


def _made(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def made(self: Any, *args: Any, **kwargs: Any) -> Any:
        return judging_the_question(method(self, *args, **kwargs))

    return made


def _question(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The question further out, if there is one: what an engine inside is asked, an LLM may have written."""
    outer = question_asked()
    if outer is not None:
        return outer
    asked = args[0] if args else next((kwargs[name] for name in _QUESTION if name in kwargs), None)
    question: str | None = asked.query_str if isinstance(asked, QueryBundle) else asked
    return question


def _taking_along(response: Any, question: str | None) -> Any:
    if isinstance(response, StreamingResponse):
        response.response_gen = _steps(response.response_gen, question)
    elif isinstance(response, AsyncStreamingResponse):
        response.response_gen = _asteps(response.response_gen, question)
    return response


def _steps(texts: Iterator[str], question: str | None) -> Generator[str, None, None]:
    try:
        while True:
            with judged_against(question):
                text = next(texts, _END)
            if isinstance(text, _End):
                return
            yield text
    finally:
        if callable(close := getattr(texts, "close", None)):
            close()


async def _asteps(texts: AsyncIterator[str], question: str | None) -> AsyncGenerator[str, None]:
    try:
        while True:
            with judged_against(question):
                text = await anext(texts, _END)
            if isinstance(text, _End):
                return
            yield text
    finally:
        if callable(aclose := getattr(texts, "aclose", None)):
            await aclose()


class _End:
    """Comes after the last text."""


_END = _End()
