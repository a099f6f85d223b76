"""In which order the parts of an answer are read where their fragments alternate. Knows no tokens.

The order depends on what the fragments hold, never on how they were split:

- Parts (a run of text, of reasoning, of a refusal; a tool call) come in the order in which they first appear.
- A tool call that is begun is finished before anything that appeared after it: what comes in between waits until
  the call's arguments are a whole JSON object, or until the answer ends.
- Anything else ends when another part appears; the same channel coming again is a new part.

What is read of a tool call's arguments has no escaped characters: it is judged as what it will be when it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ada_guard.delta import Channel, Fragment, ToolCall
from ada_guard.errors import GenerationError
from ada_guard.sidecar.escapes import Unescaping

__all__ = ["Move", "Order", "Part", "merged_call"]

_MOST_WAITING = 256
"""Parts that may wait for a call that is not complete: each fragment is looked for among them."""


@dataclass(slots=True, eq=False)
class Part:
    """A run of one channel, or one tool call.

    Attributes:
        channel: Which.
        call: For a tool call, all that is known of it so far.
        arguments: Of a tool call, as far as they were read, as they came.
        waiting: Text that is not read yet, while another part is.
    """

    channel: Channel
    call: ToolCall | None = None
    arguments: list[str] = field(default_factory=list, repr=False)
    waiting: list[str] = field(default_factory=list, repr=False)
    _object: _ObjectEnd = field(default_factory=lambda: _ObjectEnd(), repr=False)
    _unescaping: Unescaping = field(default_factory=Unescaping, repr=False)

    @property
    def index(self) -> int | None:
        """Of the tool call."""
        return None if self.call is None else self.call.index

    def complete(self) -> bool:
        """Whether nothing is missing: always, but for a tool call whose arguments are no whole object yet."""
        return self.call is None or self._object.reached

    def read(self, text: str) -> str:
        """Takes the next text of a tool call's arguments; returns what is to be judged of it."""
        self.arguments.append(text)
        self._object.read(text)
        return self._unescaping.push(text)

    def rest(self) -> str:
        """What is to be judged at the end: half an escape."""
        return self._unescaping.flush()


@dataclass(slots=True, eq=False)
class _ObjectEnd:
    """Finds the end of a JSON object, each character looked at once. Whether it is a valid one is not its business."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False
    reached: bool = False

    def read(self, text: str) -> None:
        for character in text:
            if self.in_string:
                self.in_string = self.escaped or character != '"'
                self.escaped = character == "\\" and not self.escaped
            elif not character.isspace():
                self.in_string = character == '"'
                self.depth += (character in "{[") - (character in "}]")
                self.reached = self.depth == 0 and character == "}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The next thing to read: some text of a part, or its end. Of a tool call's arguments, the text to be judged."""

    part: Part
    text: str = field(default="", repr=False)
    ends: bool = False


class Order:
    """Puts the fragments of one answer in order."""

    def __init__(self) -> None:
        self.current: Part | None = None
        self._later: deque[Part] = deque()
        self._done: set[int] = set()

    def push(self, fragment: Fragment) -> Iterator[Move]:
        """What can be read because of a fragment.

        Raises:
            GenerationError: It continues a tool call that was complete, and may have been acted on.
        """
        call = (fragment.call or ToolCall(index=0)) if fragment.channel == "tool_call" else None
        if call is None and not fragment.text:
            return
        part = self._part_of(fragment.channel, call)
        if part is None:
            if call is not None and call.index in self._done:
                if fragment.text.strip():
                    raise GenerationError("the endpoint continued a tool call that was complete")
                return
            part = Part(fragment.channel, call)
            self._later.append(part)
            if len(self._later) > _MOST_WAITING:
                raise GenerationError("the endpoint has begun too many tool calls at once")
        elif call is not None:
            part.call = merged_call(part.call, call)
        if part is self.current:
            if fragment.text:
                yield self._read(part, fragment.text)
            return
        part.waiting.append(fragment.text)
        while self._later and (self.current is None or self.current.complete()):
            yield from self._turn()

    def flush(self) -> Iterator[Move]:
        """The rest, once no more will come."""
        while self._later:
            yield from self._turn()
        if self.current is not None:
            yield self._end(self.current)

    def _part_of(self, channel: Channel, call: ToolCall | None) -> Part | None:
        """The part that a fragment continues, if there is one."""
        parts = [*self._later] if self.current is None else [self.current, *self._later]
        if call is not None:
            return next((part for part in parts if part.index == call.index), None)
        return parts[-1] if parts and parts[-1].channel == channel else None

    def _turn(self) -> Iterator[Move]:
        """Goes on to the next part."""
        if self.current is not None:
            yield self._end(self.current)
        part = self.current = self._later.popleft()
        text = "".join(part.waiting)
        part.waiting.clear()
        if text:
            yield self._read(part, text)

    def _read(self, part: Part, text: str) -> Move:
        return Move(part=part, text=text if part.call is None else part.read(text))

    def _end(self, part: Part) -> Move:
        self.current = None
        if part.index is not None:
            self._done.add(part.index)
        return Move(part=part, text=part.rest(), ends=True)


def merged_call(known: ToolCall | None, told: ToolCall) -> ToolCall:
    """What is known of a call with what was told now; sources may leave out what they have said."""
    if known is None:
        return told
    return ToolCall(index=told.index, id=told.id or known.id, name=told.name or known.name)
