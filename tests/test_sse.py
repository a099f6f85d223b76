"""Server-sent events to the letter: whatever the split, the same events."""

from __future__ import annotations

import httpx
import httpx_sse
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ada_guard.errors import GenerationError
from ada_guard.sources.sse import ServerEvent, ServerEvents

STREAM = (
    "\ufeff: a comment\r\n"
    'data: {"text": "naïve 日本 🪁"}\n\n'
    "event: error\rdata:no space\r\r"
    "id: 7\r\ndata: first\r\ndata:\r\ndata: third\r\n\r\n"
    "data\n\n"
    ":\n:keep-alive\n\n\n"
    "retry: 5\n\n"
    "stray line\ndata: \u2028 and \x0b are no line ends\n\n"
    "data: never completed"
).encode()
EVENTS = [
    ServerEvent(data='{"text": "naïve 日本 🪁"}'),
    ServerEvent(data="no space", type="error"),
    ServerEvent(data="first\n\nthird", id="7"),
    ServerEvent(data="", id="7"),
    ServerEvent(data="\u2028 and \x0b are no line ends", id="7"),
]


def decoded(pieces: list[bytes], *, max_event_bytes: int = 1 << 20) -> list[ServerEvent]:
    decoder = ServerEvents(max_event_bytes=max_event_bytes)
    return [event for piece in pieces for event in decoder.feed(piece)]


@st.composite
def splits(draw: st.DrawFn, stream: bytes = STREAM) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def test_the_rules_of_the_standard() -> None:
    assert decoded([STREAM]) == EVENTS


def test_byte_by_byte() -> None:
    assert decoded([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


@given(splits())
def test_any_split_gives_the_same_events(pieces: list[bytes]) -> None:
    assert decoded(pieces) == EVENTS


@given(
    st.lists(st.sampled_from([b"data", b": ", b":", b"x", b"\r", b"\n", b"\r\n", b"id", b"\xf0\x9f", b" "])), st.data()
)
def test_any_split_of_any_stream_gives_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    assert decoded(data.draw(splits(stream))) == decoded([stream])


@given(
    st.lists(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])), min_size=1)),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.data(),
)
@settings(max_examples=60)
def test_whatever_is_written_is_read(events: list[list[str]], end: str, data: st.DataObject) -> None:
    stream = "".join("".join(f"data: {line}{end}" for line in lines) + end for lines in events).encode()
    assert [event.data for event in decoded(data.draw(splits(stream)))] == ["\n".join(lines) for lines in events]


def test_an_event_is_not_held_back_for_a_line_feed_that_may_follow() -> None:
    decoder = ServerEvents()
    assert [event.data for event in decoder.feed(b"data: now\r\r")] == ["now"]
    assert list(decoder.feed(b"\n")) == []  # the second half of the last CRLF, not one more blank line
    assert [event.data for event in decoder.feed(b"data: then\n\n")] == ["then"]


def test_only_the_first_byte_order_mark_is_taken_off() -> None:
    assert decoded([b"\xef", b"\xbb\xbfdata: a\n\n", b"\xef\xbb\xbfdata: b\n\ndata: c\n\n"]) == [
        ServerEvent(data="a"),
        ServerEvent(data="c"),
    ]


def test_bytes_that_are_no_characters_are_replaced() -> None:
    assert decoded([b"data: a\xf0\x9f", b"\n\n"]) == [ServerEvent(data="a\ufffd")]


def test_an_id_with_a_null_is_ignored() -> None:
    assert decoded([b"id: 1\0\ndata: a\n\n"]) == [ServerEvent(data="a")]


@pytest.mark.parametrize("endless", [b"x", b": ", b"data: x\n", b"data\n"], ids=["line", "comment", "event", "empty"])
def test_an_endless_event_is_an_error_and_what_came_before_is_not_lost(endless: bytes) -> None:
    decoder = ServerEvents(max_event_bytes=1000)
    feed = decoder.feed(b"data: before\n\n" + endless * 1001)
    assert next(feed).data == "before"
    with pytest.raises(GenerationError, match="more than 1000 bytes"):
        next(feed)


def test_comments_and_events_within_the_limit_add_up_to_nothing() -> None:
    assert len(decoded([b": keep-alive\n\n", b"data: x\n\n"] * 500, max_event_bytes=40)) == 500


# -- why the parsers that exist are not used; if one of these fails, the choice is to be made again -------------------


def by_httpx_sse(stream: bytes) -> list[httpx_sse.ServerSentEvent]:
    response = httpx.Response(200, content=stream, headers={"content-type": "text/event-stream; charset=utf-8"})
    return list(httpx_sse.EventSource(response).iter_sse())


def test_httpx_sse_agrees_where_every_event_has_data() -> None:
    stream = b"event: a\ndata: 1\ndata: 2\n\n: c\nid: 4\ndata:  3\n\n"
    assert [(e.event or "message", e.data, e.id) for e in by_httpx_sse(stream)] == [
        (e.type, e.data, e.id) for e in decoded([stream])
    ]


def test_httpx_sse_reports_events_that_are_none() -> None:
    assert len(by_httpx_sse(b"id: 1\ndata: x\n\n\n\n")) == 3
    assert len(decoded([b"id: 1\ndata: x\n\n\n\n"])) == 1


def test_the_lines_of_httpx_end_where_the_standard_has_no_end() -> None:
    response = httpx.Response(
        200, content="data: a\u2028b\n\n".encode(), headers={"content-type": "text/plain; charset=utf-8"}
    )
    assert len(list(response.iter_lines())) == 3
