"""One stream of a chat model on its way through a guard. Holds no guard logic: the guard's events say what passes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGenerationChunk

from ada_guard import Done, Event, Halt, Release
from ada_guard.delta import Delta
from langchain_ada_guard.cut import cut_chunk, usage_after
from langchain_ada_guard.gate import ChunkGate
from langchain_ada_guard.unobserved import unobserved

__all__ = ["Relay"]


class Relay:
    """Shows a guard what a model writes, and lets through what the guard's events release.

    Args:
        model_name: Stands in the metadata of a message that was cut, so that its usage can be counted by model.
        raises: Whether the guard raises after a cut, so that nothing takes the place of the answer.

    Attributes:
        failure: What the model inside raised before it had written anything; whoever drives raises it as it is, for
            retry and fallback to look at. Later errors may carry text of the answer and are named only.
    """

    def __init__(self, *, model_name: str | None = None, raises: bool = False) -> None:
        self.failure: Exception | None = None
        self._raises = raises
        self._model_name = model_name
        self._gate = ChunkGate()
        self._events: list[Event] = []
        self._has_text = False
        self._id: str | None = None
        self._blocks = 0
        self._listed = False
        self._stated_input = 0
        self._shown: UsageMetadata | None = None
        self._named = False

    @property
    def cut(self) -> bool:
        """Whether the guard cut the answer."""
        return any(isinstance(event, Halt) for event in self._events)

    def deltas(self, chunks: Iterator[ChatGenerationChunk]) -> Generator[Delta, None, None]:
        """What a guard is to judge, read from the model no further than it is asked for."""
        try:
            while True:
                with unobserved():
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                if (delta := self._take(chunk)) is not None:
                    yield delta
        except Exception as error:
            self._failed(error)
            raise
        finally:
            if callable(close := getattr(chunks, "close", None)):
                with unobserved():
                    close()

    async def adeltas(self, chunks: AsyncIterator[ChatGenerationChunk]) -> AsyncGenerator[Delta, None]:
        """As `deltas`, for async code."""
        try:
            while True:
                with unobserved():
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                if (delta := self._take(chunk)) is not None:
                    yield delta
        except Exception as error:
            self._failed(error)
            raise
        finally:
            if callable(aclose := getattr(chunks, "aclose", None)):
                with unobserved():
                    await aclose()

    def chunks(self, event: Event) -> Iterator[ChatGenerationChunk]:
        """What passes with an event."""
        if isinstance(event, Release):
            if event.channel != "tool_call":
                yield from map(self._note, self._gate.release(event.channel, len(event.text)))
            return
        self._events.append(event)
        if isinstance(event, Halt):
            self._gate.drop()
        elif isinstance(event, Done) and not self.cut:
            yield from self._gate.finish()
        elif isinstance(event, Done) and not self._raises:
            yield self._last_chunk(event)

    def _take(self, chunk: ChatGenerationChunk) -> Delta | None:
        self._id = self._id or chunk.message.id
        if isinstance(chunk.message, AIMessageChunk) and chunk.message.usage_metadata:
            self._stated_input += chunk.message.usage_metadata["input_tokens"]
        fragments = self._gate.take(chunk)
        self._has_text = self._has_text or bool(fragments)
        return Delta(fragments=fragments) if fragments else None

    def _failed(self, error: Exception) -> None:
        if not self._has_text:
            self.failure = error

    def _note(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        message = chunk.message
        if isinstance(message, AIMessageChunk):
            self._shown = add_usage(self._shown, message.usage_metadata) if message.usage_metadata else self._shown
        if isinstance(message.content, list):
            numbers = [number for block in message.content if (number := _number(block)) is not None]
            self._blocks = max([self._blocks, *(number + 1 for number in numbers)])
            self._listed = True
        self._named = self._named or "model_name" in {**message.response_metadata, **(chunk.generation_info or {})}
        return chunk

    def _last_chunk(self, done: Done) -> ChatGenerationChunk:
        """The chunk that ends a stream that was cut."""
        return cut_chunk(
            self._events,
            usage_after(self._shown, self._stated_input, done.usage),
            message_id=self._id,
            model_name=None if self._named else self._model_name,
            block=self._blocks if self._listed else None,
        )


def _number(block: str | dict[str, Any]) -> int | None:
    number = block.get("index") if isinstance(block, dict) else None
    return number if isinstance(number, int) else None
