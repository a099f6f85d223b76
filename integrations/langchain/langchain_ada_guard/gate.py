"""What a chat model wrote, held back until a guard releases it. Knows no guard and no model: it counts characters."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from langchain_core.outputs import ChatGenerationChunk

from ada_guard.delta import Channel, Fragment
from langchain_ada_guard.fragments import MessageReader, Seen, split

__all__ = ["ChunkGate"]


@dataclass(slots=True)
class _Held:
    chunk: ChatGenerationChunk
    seen: Seen
    owed: dict[Channel, int]
    """Characters that must be released before it passes, by channel."""


class ChunkGate:
    """Holds chunks back, and lets them through as they came, in order.

    A chunk passes when all its text is released; one that holds only text is split where a release ends. Whatever else
    a chunk holds, such as log probabilities, passes with the last of its text. A chunk without text passes with the
    next one that has some. From the first piece of a tool call on, everything waits for the end of the answer: a call
    that is cut in the middle would be repaired into one that runs.
    """

    def __init__(self) -> None:
        self._reader = MessageReader()
        self._held: deque[_Held] = deque()
        self._credit: defaultdict[Channel, int] = defaultdict(int)

    def take(self, chunk: ChatGenerationChunk) -> tuple[Fragment, ...]:
        """Holds the next chunk back; returns what the guard must see of it."""
        seen = self._reader.read(chunk.message)
        owed: dict[Channel, int] = {}
        for fragment in seen.fragments:
            owed[fragment.channel] = owed.get(fragment.channel, 0) + len(fragment.text)
        self._held.append(_Held(chunk, seen, owed))
        return seen.fragments

    def release(self, channel: Channel, characters: int) -> Iterator[ChatGenerationChunk]:
        """What passes now that so many further characters of a channel are released."""
        self._credit[channel] += characters
        empty: list[ChatGenerationChunk] = []
        while self._held and not self._held[0].seen.whole:
            held = self._held[0]
            if not held.seen.fragments:
                empty.append(self._held.popleft().chunk)
                continue
            due = [self._credit[channel] >= owed for channel, owed in held.owed.items()]
            if not all(due):
                part = self._part(held)
                if part is None:
                    break
                yield from empty
                yield part
                return
            for paid, owed in held.owed.items():
                self._credit[paid] -= owed
            self._held.popleft()
            yield from empty
            empty.clear()
            yield held.chunk
        self._held.extendleft(_Held(chunk, Seen(), {}) for chunk in reversed(empty))

    def finish(self) -> Iterator[ChatGenerationChunk]:
        """Everything else: the answer has ended, and all of it is released."""
        while self._held:
            yield self._held.popleft().chunk

    def drop(self) -> None:
        """Forgets what is held back: the answer was cut."""
        self._held.clear()

    def _part(self, held: _Held) -> ChatGenerationChunk | None:
        """The beginning of a chunk, as far as it is released."""
        place = held.seen.place
        if place is None:
            return None
        [(channel, owed)] = held.owed.items()
        characters = self._credit[channel]
        if not characters:
            return None
        first, second = split(held.chunk.message, place, characters)
        info = held.chunk.generation_info
        held.chunk = ChatGenerationChunk(message=second, generation_info=info)
        held.owed = {channel: owed - characters}
        self._credit[channel] = 0
        return ChatGenerationChunk(message=first)
