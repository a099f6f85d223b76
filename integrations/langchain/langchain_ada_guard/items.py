"""What goes from step to step of a chain, text or messages, as chunks of a chat model, and back. Knows no guard."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from ada_guard import ConfigError
from langchain_ada_guard.cut import cut_of, replacement_only
from langchain_ada_guard.guarded import whole_answer
from langchain_ada_guard.inner import as_chunk

__all__ = ["aitems_as_chunks", "as_chat_chunk", "as_output", "is_whole", "items_as_chunks", "judged", "only", "sum_of"]


def items_as_chunks(first: Any, source: Iterator[Any]) -> Generator[ChatGenerationChunk, None, None]:
    """What the step before gives, as a chat model would; closing stops that step."""
    try:
        if first is not None:
            yield as_chat_chunk(first)
        for item in source:
            yield as_chat_chunk(item)
    finally:
        if callable(close := getattr(source, "close", None)):
            close()


async def aitems_as_chunks(first: Any, source: AsyncIterator[Any]) -> AsyncGenerator[ChatGenerationChunk, None]:
    """As `items_as_chunks`, for async code."""
    try:
        if first is not None:
            yield as_chat_chunk(first)
        async for item in source:
            yield as_chat_chunk(item)
    finally:
        if callable(aclose := getattr(source, "aclose", None)):
            await aclose()


async def only(chunk: ChatGenerationChunk) -> AsyncGenerator[ChatGenerationChunk, None]:
    """A stream of one chunk."""
    yield chunk


def as_chat_chunk(item: Any) -> ChatGenerationChunk:
    """An item as a chunk.

    Raises:
        ConfigError: It is neither text nor a model's message.
    """
    if isinstance(item, str):
        return ChatGenerationChunk(message=AIMessageChunk(content=item))
    if isinstance(item, AIMessageChunk):
        return ChatGenerationChunk(message=item)
    if isinstance(item, AIMessage):
        return as_chunk(ChatGeneration(message=item))
    raise ConfigError(
        f"RunnableAdaGuard was given a {type(item).__name__}: put it behind a chat model, or behind what gives text"
    )


def is_whole(item: Any) -> bool:
    """Whether it is a whole answer: a model that does not stream gives one as its stream."""
    return isinstance(item, AIMessage) and not isinstance(item, AIMessageChunk)


def judged(given: Any, chunks: Sequence[ChatGenerationChunk]) -> Any:
    """A whole answer that passed as it came; in its place, after a cut, the replacement alone."""
    if not any(cut_of(chunk.message) for chunk in chunks):
        return given
    message = whole_answer(chunks).generations[0].message
    return str(message.text) if isinstance(given, str) else message


def as_output(chunk: ChatGenerationChunk, *, as_text: bool) -> Any:
    """A chunk as what came in; None for a text without characters."""
    return (str(chunk.message.content) or None) if as_text else chunk.message


def sum_of(outputs: Sequence[Any]) -> Any:
    """What was shown, for traces; after a cut the replacement alone."""
    if not outputs or isinstance(outputs[0], str):
        return "".join(outputs)
    if not all(isinstance(output, AIMessageChunk) for output in outputs):
        return outputs[0]
    return replacement_only(add_ai_message_chunks(*outputs))
