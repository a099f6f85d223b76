"""Server-sent events from bytes, by the rules of the WHATWG HTML standard. Knows no socket and no JSON.

Written here, because what there is does not hold (``tests/test_sse.py`` keeps the proof): httpx's own lines also end at
U+2028 and U+000B, which may stand inside a JSON string; ``httpx_sse`` reports events without data once an id was seen,
holds one back that ends in a CR, and bounds nothing.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ada_guard.errors import GenerationError

__all__ = ["ServerEvent", "ServerEvents"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event of a stream.

    Attributes:
        data: Its data lines, joined by line feeds.
        type: ``"message"`` unless the server named another.
        id: The last id that the server has sent, with this event or before it.
    """

    data: str = field(repr=False)
    type: str = field(default="message", repr=False)
    id: str = field(default="", repr=False)


class ServerEvents:
    """Decodes one stream, fed in pieces that may end anywhere, also inside a character or between CR and LF.

    Args:
        max_event_bytes: Longest event, and longest line of any kind, in bytes.
    """

    def __init__(self, *, max_event_bytes: int = 1 << 20) -> None:
        self._max_event_bytes = max_event_bytes
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._event_bytes = 0
        self._at_start = True
        self._after_cr = False
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """The events that `data` completes; to be exhausted before the next call.

        What is left when the stream ends is an incomplete event, which the standard says to drop.

        Raises:
            GenerationError: A line or an event is longer than `max_event_bytes`. The events before it came first.
        """
        if not data:
            return
        if self._after_cr:
            # The line was complete with its CR; waiting for a possible LF would hold an event back.
            self._after_cr = False
            data = data.removeprefix(b"\n")
        for part in data.splitlines(keepends=True):  # of bytes: at LF, CR and CRLF only
            content = part.rstrip(b"\r\n")
            self._line.append(content)
            self._line_bytes += len(content)
            if self._line_bytes + self._event_bytes > self._max_event_bytes:
                raise GenerationError(
                    f"the endpoint sent an event of more than {self._max_event_bytes} bytes: not the expected stream, "
                    "or max_event_bytes is too small"
                )
            if len(content) < len(part):
                line = b"".join(self._line)
                self._line.clear()
                event = self._take(line)
                self._line_bytes = 0
                if event is not None:
                    yield event
        self._after_cr = data.endswith(b"\r")

    def _take(self, line: bytes) -> ServerEvent | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._event_bytes += len(line)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        # Left out: comments (an empty name), unknown names, and "retry", as a generation cannot be taken up again.
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, type_ = self._data, self._type
        self._data, self._type, self._event_bytes = [], "", 0
        return ServerEvent(data="\n".join(data), type=type_ or "message", id=self._id) if data else None
