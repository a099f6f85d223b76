"""Tells LlamaIndex's observers of a stream as its own decorators do, and stops the stream with its consumer.

Their generators keep the one they go around until it is garbage. It is closed here, so that the LLM behind it stops
when the consumer leaves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

from llama_index.core.llms import LLM

__all__ = ["atold", "told"]

T = TypeVar("T")


def told(
    decorator: Callable[[], Any], llm: LLM, answer: Generator[T, None, None], *args: Any, **kwargs: Any
) -> Generator[T, None, None]:
    """A stream that observers are told of.

    Args:
        decorator: LlamaIndex's own for the method.
        llm: Whose stream it is.
        answer: The stream.
        args: What the method was called with.
        kwargs: Likewise, by name.
    """

    def method(_: LLM, *args: Any, **kwargs: Any) -> Generator[T, None, None]:
        return answer

    stream = decorator()(method)(llm, *args, **kwargs)

    def stopping() -> Generator[T, None, None]:
        try:
            yield from stream
        finally:
            answer.close()

    return stopping()


async def atold(
    decorator: Callable[[], Any], llm: LLM, answer: AsyncGenerator[T, None], *args: Any, **kwargs: Any
) -> AsyncGenerator[T, None]:
    """As `told`, for async code."""

    async def method(_: LLM, *args: Any, **kwargs: Any) -> AsyncGenerator[T, None]:
        return answer

    stream = await decorator()(method)(llm, *args, **kwargs)

    async def stopping() -> AsyncGenerator[T, None]:
        try:
            async for response in stream:
                yield response
        finally:
            try:
                await stream.aclose()
            finally:
                await answer.aclose()

    return stopping()
