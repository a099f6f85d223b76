"""One stream of a chat model on its way through a guard. Holds no guard logic: the guard's events say what passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGenerationChunk

from ada_guard import Done, Event, relay
from ada_guard.errors import AdaGuardError
from langchain_ada_guard.cut import cut_chunk, usage_after
from langchain_ada_guard.failures import is_of_transport, quotes
from langchain_ada_guard.fragments import MessageReader, Place, split
from langchain_ada_guard.unobserved import unobserved
from langchain_ada_guard.words import is_code

__all__ = ["ObservedRelay", "Relay"]


class Relay(relay.Relay[ChatGenerationChunk]):
    """Shows a guard what a model writes, and lets through what the guard's events release.

    From the first piece of a tool call on, everything waits for the end of the answer: LangChain would repair a call
    that is cut in the middle into one that runs.

    Args:
        model_name: Stands in the metadata of a message that was cut, so that its usage can be counted by model.
        raises: Whether the guard raises after a cut, so that nothing takes the place of the answer.
        step: As in `ada_guard.relay.Relay`; unless told otherwise nobody observes the model.
    """

    def __init__(
        self,
        *,
        model_name: str | None = None,
        raises: bool = False,
        step: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        super().__init__(self._seen, step=step or unobserved())
        self._reader = MessageReader()
        self._raises = raises
        self._model_name = model_name
        self._id: str | None = None
        self._blocks = 0
        self._listed = False
        self._stated_input = 0
        self._shown: UsageMetadata | None = None
        self._named = False

    def chunks(self, event: Event) -> Iterator[ChatGenerationChunk]:
        """What passes with an event; after a cut, the chunk that says so."""
        yield from map(self._note, self.passed(event))
        if isinstance(event, Done) and self.cut and not self._raises:
            yield self._last_chunk(event)

    def tells_nothing(self, error: Exception) -> bool:
        """Whether it may be raised as it is: no chunk had come, or no text and it is about reaching the model."""
        silent = not self.begun and not quotes(error)
        return silent or isinstance(error, AdaGuardError) or (not self.has_text and is_of_transport(error))

    def _seen(self, chunk: ChatGenerationChunk) -> relay.Seen[ChatGenerationChunk]:
        self._id = self._id or chunk.message.id
        if isinstance(chunk.message, AIMessageChunk) and chunk.message.usage_metadata:
            self._stated_input += chunk.message.usage_metadata["input_tokens"]
        found = self._reader.read(chunk.message)
        return relay.Seen(
            fragments=found.fragments,
            whole=found.whole,
            split=None if found.place is None else partial(_split, found.place),
            mirrors=not found.fragments and not _is_plain(chunk),
        )

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
            self.events,
            usage_after(self._shown, self._stated_input, done.usage),
            message_id=self._id,
            model_name=None if self._named else self._model_name,
            block=self._blocks if self._listed else None,
        )


class ObservedRelay(Relay):
    """A relay whose source is a step of the chain, with callbacks of its own: nothing is kept from them."""

    def __init__(self, *, raises: bool = False) -> None:
        super().__init__(raises=raises, step=nullcontext)


def _split(
    place: Place, chunk: ChatGenerationChunk, characters: int
) -> tuple[ChatGenerationChunk, ChatGenerationChunk]:
    first, second = split(chunk.message, place, characters)
    return (
        ChatGenerationChunk(message=first),
        ChatGenerationChunk(message=second, generation_info=chunk.generation_info),
    )


def _is_plain(chunk: ChatGenerationChunk) -> bool:
    """Whether a chunk's metadata hold nothing but codes and numbers: no text of a chunk behind it."""
    held = {**chunk.message.response_metadata, **(chunk.generation_info or {})}
    return all(is_code(value) and not isinstance(value, dict | list | tuple) for value in held.values())


def _number(block: str | dict[str, Any]) -> int | None:
    number = block.get("index") if isinstance(block, dict) else None
    return number if isinstance(number, int) else None
