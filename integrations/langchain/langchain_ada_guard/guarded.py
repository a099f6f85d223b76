"""What all guarded chat models have in common: events of a guard go in, LangChain's chunks and messages come out."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, Protocol

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import Field, InstanceOf

from ada_guard import ConfigError, Event, Guard
from ada_guard.errors import GenerationError
from langchain_ada_guard.caching import LastingAnswers, cache_in_use, without_prefix
from langchain_ada_guard.report import Reporter

__all__ = ["GuardedChat", "Passage", "require_guard", "whole_answer"]


class Passage(Protocol):
    """One answer on its way from a guard's events to LangChain's chunks."""

    @property
    def cut(self) -> bool:
        """Whether the guard cut the answer."""
        ...

    @property
    def failure(self) -> Exception | None:
        """What the source raised before it had written anything, to be raised as it is."""
        ...

    def chunks(self, event: Event) -> Iterator[ChatGenerationChunk]:
        """What passes with an event."""
        ...


class GuardedChat(BaseChatModel):
    """A chat model whose answers come through a guard. Subclasses say where the events come from."""

    guard: InstanceOf[Guard] = Field(exclude=True, repr=False)
    """Who judges, when, and what happens then."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        # No validator of pydantic's: its error would show the fields.
        require_guard(fields.get("guard"), type(self).__name__)
        super().__init__(*args, **fields)

    @abstractmethod
    def _passage(self) -> Passage:
        """What turns the events of one answer into chunks."""

    @abstractmethod
    def _events(
        self, passage: Any, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> Generator[Event, None, None]:
        """The events of a guarded answer; closing them stops the generation."""

    @abstractmethod
    def _aevents(
        self, passage: Any, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """As `_events`, for async code."""

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"ada_guard": self.guard.identity}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's cache: an answer of another guard, or of none, must not be found under it."""
        return f"{super()._get_llm_string(stop, **kwargs)} {json.dumps(self.guard.identity, sort_keys=True)}"

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        passage, reporter = self._passage(), Reporter(self.callbacks, run_manager)
        try:
            with closing(self._events(passage, messages, stop, kwargs)) as events:
                for event in events:
                    reporter.tell(event)
                    yield from passage.chunks(event)
        except GenerationError:
            if passage.failure is None:
                raise
        if passage.failure is not None:
            raise passage.failure

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        passage, reporter = self._passage(), Reporter(self.callbacks, run_manager)
        try:
            async with aclosing(self._aevents(passage, messages, stop, kwargs)) as events:
                async for event in events:
                    await reporter.atell(event)
                    for chunk in passage.chunks(event):
                        yield chunk
        except GenerationError:
            if passage.failure is None:
                raise
        if passage.failure is not None:
            raise passage.failure

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """As LangChain does it; where somebody watches the run it adds up the chunks by itself, shown text and all."""
        model = self._caching()
        return _kept(super(GuardedChat, model)._generate_with_cache(messages, stop, run_manager, **kwargs))

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """As `_generate_with_cache`, for async code."""
        model = self._caching()
        return _kept(await super(GuardedChat, model)._agenerate_with_cache(messages, stop, run_manager, **kwargs))

    def _caching(self) -> GuardedChat:
        """This model; where there is a cache, with one that keeps what lasts."""
        cache = cache_in_use(self.cache)
        return self if cache is None else self.model_copy(update={"cache": LastingAnswers(cache)})

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with closing(self._stream(messages, stop, run_manager, **kwargs)) as chunks:  # type: ignore[type-var]  # it is a generator
            return whole_answer(list(chunks))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with aclosing(self._astream(messages, stop, run_manager, **kwargs)) as chunks:  # type: ignore[type-var]  # likewise
            return whole_answer([chunk async for chunk in chunks])


def require_guard(guard: Any, whose: str) -> Guard:
    """The guard itself.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(guard, Guard):
        given = "none was given" if guard is None else f"not a {type(guard).__name__}"
        raise ConfigError(f"{whose} takes a Guard, {given}: Guard.for_sidecar makes one of a sidecar")
    return guard


def whole_answer(chunks: Sequence[ChatGenerationChunk]) -> ChatResult:
    """The chunks of an answer put together; after a cut the replacement alone."""
    return _kept(generate_from_stream(iter(chunks)))


def _kept(result: ChatResult) -> ChatResult:
    generations: list[Any] = [without_prefix(generation) for generation in result.generations]
    untouched = all(after is before for after, before in zip(generations, result.generations, strict=True))
    return result if untouched else ChatResult(generations=generations)
