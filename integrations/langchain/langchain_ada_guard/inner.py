"""How a model inside a guarded one answers: in which ways it streams, and what its whole answers are as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from ada_guard import ConfigError
from langchain_ada_guard.failures import named
from langchain_ada_guard.unobserved import unobserved

__all__ = [
    "as_chunk",
    "awhole_chunk",
    "awhole_result",
    "choices",
    "streams",
    "wants_streaming",
    "whole_chunk",
    "whole_result",
    "with_generations",
]


def streams(model: BaseChatModel, settings: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a model streams for ``"sync"`` and for ``"async"`` callers, if it was not told not to.

    Args:
        model: The model.
        settings: Those of the call.
    """
    kind, opted_out = type(model), _streaming_disabled(model, settings)
    return {
        "sync": kind._stream is not BaseChatModel._stream and not opted_out,
        "async": kind._astream is not BaseChatModel._astream and not opted_out,
    }


def wants_streaming(model: BaseChatModel) -> bool:
    """Whether a model was told to stream, so that callbacks hear its tokens under `invoke` too."""
    return "streaming" in model.model_fields_set and getattr(model, "streaming", None) is True


def whole_result(
    model: BaseChatModel, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]
) -> ChatResult:
    """The whole answer of a model, below LangChain's callbacks.

    Raises:
        GenerationError: It failed, and its error may quote what it wrote.
    """
    try:
        with unobserved():
            return model._generate(messages, stop=stop, **settings)
    except Exception as error:  # noqa: BLE001  # whatever a provider raises
        failure = named(error)
    raise failure  # out here, where the other error does not hang on it


async def awhole_result(
    model: BaseChatModel, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]
) -> ChatResult:
    """As `whole_result`, for async code."""
    try:
        with unobserved():
            return await model._agenerate(messages, stop=stop, **settings)
    except Exception as error:  # noqa: BLE001  # whatever a provider raises
        failure = named(error)
    raise failure


def whole_chunk(
    model: BaseChatModel, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]
) -> Generator[ChatGenerationChunk, None, None]:
    """The whole answer of a model that does not stream, as a stream."""
    yield as_chunk(whole_result(model, messages, stop, settings).generations[0])


async def awhole_chunk(
    model: BaseChatModel, messages: list[BaseMessage], stop: list[str] | None, settings: Mapping[str, Any]
) -> AsyncGenerator[ChatGenerationChunk, None]:
    """As `whole_chunk`, for async code."""
    yield as_chunk((await awhole_result(model, messages, stop, settings)).generations[0])


def choices(model: BaseChatModel, settings: Mapping[str, Any]) -> int:
    """How many answers a call asks for."""
    return settings.get("n") or getattr(model, "n", None) or 1


def as_chunk(generation: ChatGeneration) -> ChatGenerationChunk:
    """A whole answer as the only chunk of a stream."""
    message: Any = generation.message
    if isinstance(message, ChatMessage) and message.role == "assistant":
        fields = {name: getattr(message, name) for name in BaseMessage.model_fields if name != "type"}
        message = AIMessage(**fields)
    if not isinstance(message, AIMessage):
        raise ConfigError(f"a chat model answered with a {type(message).__name__} where an AIMessage was expected")
    if not isinstance(message, AIMessageChunk):
        fields = {name: getattr(message, name) for name in AIMessage.model_fields if name != "type"}
        message = AIMessageChunk(**fields, chunk_position="last")
    return ChatGenerationChunk(message=message, generation_info=generation.generation_info)


def with_generations(result: ChatResult, generations: list[ChatGeneration]) -> ChatResult:
    """The same result; what a provider says of the whole answer goes with it where any of it was cut."""
    untouched = all(after is before for after, before in zip(generations, result.generations, strict=True))
    return result if untouched else ChatResult(generations=generations)


def _streaming_disabled(model: BaseChatModel, settings: Mapping[str, Any]) -> bool:
    """Whether a model was told not to stream."""
    disabled = model.disable_streaming
    told = "streaming" in model.model_fields_set and getattr(model, "streaming", None) is False
    unwanted = "stream" in settings and not settings["stream"]
    return disabled is True or (disabled == "tool_calling" and bool(settings.get("tools"))) or told or unwanted
