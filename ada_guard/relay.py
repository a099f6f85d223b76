"""Another library's stream on its way through a guard: its items are held back and let through as they came.

For integrations whose streams consist of objects, not of text. Knows no library and no guard: what passes is counted in
characters, as the guard's events release them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from ada_guard.delta import Channel, Delta, Fragment
from ada_guard.events import Check, Done, Event, Halt, Release, Replace

__all__ = ["Relay", "Seen", "Split", "cut_entry"]

T = TypeVar("T")

Split: TypeAlias = Callable[[T, int], tuple[T, T]]
"""Item, characters -> an item with so many characters of its text and nothing else, and one with the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Generic[T]):
    """What an item holds for the guard.

    Attributes:
        fragments: In the order in which they are to be read.
        whole: Whether it, and all that follows, may only pass with the end of the answer: it belongs to a tool call,
            which must not run if the answer is cut, or holds something that nobody knows.
        split: Splits the item where a release ends in the middle of its text. None: it passes with the last of it.
        mirrors: Of an item without text: whether it may repeat the text of the next one, so that it must wait for the
            last of that.
    """

    fragments: tuple[Fragment, ...] = ()
    whole: bool = False
    split: Split[T] | None = None
    mirrors: bool = False


@dataclass(slots=True)
class _Held(Generic[T]):
    item: T
    seen: Seen[T]
    owed: dict[Channel, int]
    """Characters that must be released before it passes, by channel."""


class Relay(Generic[T]):
    """Shows a guard what a stream's items say, and lets through what the guard's events release.

    An item passes when all its text is released; whatever else it holds, such as log probabilities, passes with the
    last of its text. An item without text passes with the next one that has some, or with the end.

    Args:
        read: Item -> what the guard must see of it. Called once for each item, in order.
        step: Entered around every step of the stream, for a library that must be told something meanwhile.

    Attributes:
        events: The guard's events that have come, those with text aside from replacements left out.
        begun: Whether an item has come.
        has_text: Whether one with text has.
        failure: What the stream raised, where it cannot carry text of the answer (`tells_nothing`). Whoever drives the
            guard raises it as it is, for retries to look at; of any other error only the type is named.
    """

    def __init__(
        self, read: Callable[[T], Seen[T]], *, step: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.events: list[Event] = []
        self.failure: Exception | None = None
        self._read = read
        self._step = step
        self._held: deque[_Held[T]] = deque()
        self._credit: defaultdict[Channel, int] = defaultdict(int)
        self.begun = self.has_text = False

    @property
    def cut(self) -> bool:
        """Whether the guard cut the answer."""
        return any(isinstance(event, Halt) for event in self.events)

    def deltas(self, items: Iterator[T]) -> Generator[Delta, None, None]:
        """What a guard is to judge; the stream is read no further than it is asked for, and closed at the end."""
        try:
            while True:
                with self._step():
                    item = next(items, None)
                if item is None:
                    return
                if fragments := self.take(item):
                    yield Delta(fragments=fragments)
        except Exception as error:
            self._failed(error)
            raise
        finally:
            if callable(close := getattr(items, "close", None)):
                with self._step():
                    close()

    async def adeltas(self, items: AsyncIterator[T]) -> AsyncGenerator[Delta, None]:
        """As `deltas`, for async code."""
        try:
            while True:
                with self._step():
                    item = await anext(items, None)
                if item is None:
                    return
                if fragments := self.take(item):
                    yield Delta(fragments=fragments)
        except Exception as error:
            self._failed(error)
            raise
        finally:
            if callable(aclose := getattr(items, "aclose", None)):
                with self._step():
                    await aclose()

    def passed(self, event: Event) -> Iterator[T]:
        """The items that pass with an event of the guard."""
        if isinstance(event, Release):
            if event.channel != "tool_call":
                yield from self._release(event.channel, len(event.text))
            return
        self.events.append(event)
        if isinstance(event, Halt):
            self._held.clear()
        elif isinstance(event, Done) and not self.cut:
            while self._held:
                yield self._held.popleft().item

    def take(self, item: T) -> tuple[Fragment, ...]:
        """Holds the next item back; returns what the guard must see of it."""
        self.begun = True
        seen = self._read(item)
        owed: dict[Channel, int] = {}
        for fragment in seen.fragments:
            owed[fragment.channel] = owed.get(fragment.channel, 0) + len(fragment.text)
        self._held.append(_Held(item, seen, owed))
        self.has_text = self.has_text or bool(seen.fragments)
        return seen.fragments

    def tells_nothing(self, error: Exception) -> bool:
        """Whether an error of the stream cannot carry text of the answer: none has come yet. To be overridden."""
        del error
        return not self.has_text

    def _failed(self, error: Exception) -> None:
        if self.tells_nothing(error):
            self.failure = error

    def _release(self, channel: Channel, characters: int) -> Iterator[T]:
        self._credit[channel] += characters
        empty: list[_Held[T]] = []
        while self._held and not self._held[0].seen.whole:
            held = self._held[0]
            if not held.seen.fragments:
                empty.append(self._held.popleft())
                continue
            if not all(self._credit[channel] >= owed for channel, owed in held.owed.items()):
                yield from self._beginning(held, empty)
                break
            for paid, owed in held.owed.items():
                self._credit[paid] -= owed
            self._held.popleft()
            yield from (waiting.item for waiting in empty)
            empty.clear()
            yield held.item
        self._held.extendleft(reversed(empty))

    def _beginning(self, held: _Held[T], empty: list[_Held[T]]) -> Iterator[T]:
        """An item as far as it is released, and the ones without text before it."""
        if held.seen.split is None or len(held.owed) != 1 or any(waiting.seen.mirrors for waiting in empty):
            return
        [(channel, owed)] = held.owed.items()
        characters = self._credit[channel]
        if not characters:
            return
        first, held.item = held.seen.split(held.item, characters)
        held.owed[channel] = owed - characters
        self._credit[channel] = 0
        yield from (waiting.item for waiting in empty)
        empty.clear()
        yield first


def cut_entry(events: Sequence[Event]) -> dict[str, Any]:
    """What a host's message may say of a cut, from the events of its stream: plain JSON types, no text.

    ``verdict`` is ``"flag"``, or ``"unchecked"`` where a check could not be made. ``replacement_chars`` is how many
    characters of the answer's end are the replacement.
    """
    checks = [event for event in events if isinstance(event, Check)]
    halt = next(event for event in events if isinstance(event, Halt))
    entry: dict[str, Any] = {
        "verdict": "flag" if halt.reason == "flag" else "unchecked",
        "depth": halt.depth,
        "released_depth": halt.released_depth,
        "checks": len(checks),
        "replacement_chars": sum(len(event.text) for event in events if isinstance(event, Replace)),
    }
    for check in checks[-1:]:
        entry |= {
            "checker": check.checker,
            "reason": check.reason,
            "harm_probability": check.harm_probability,
            "threshold": check.threshold,
            "partial_view": check.partial_view,
        }
    return entry
