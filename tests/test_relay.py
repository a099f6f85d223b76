"""Items of another library's stream pass as far as the guard's events release them, and in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ada_guard.delta import Channel, Fragment, ToolCall
from ada_guard.events import Check, Done, Event, Halt, Release, Replace
from ada_guard.relay import Relay, Seen, cut_entry


@dataclass(frozen=True)
class Item:
    """What a host streams: some text, and something that rides along."""

    number: int
    parts: tuple[tuple[Channel, str], ...] = ()
    whole: bool = False
    splits: bool = False
    rides: str = "metadata"


def read(item: Item) -> Seen[Item]:
    call = ToolCall(index=0)
    fragments = tuple(
        Fragment(text=text, channel=channel, call=call if channel == "tool_call" else None)
        for channel, text in item.parts
    )
    return Seen(fragments=fragments, whole=item.whole, split=split if item.splits and len(item.parts) == 1 else None)


def split(item: Item, characters: int) -> tuple[Item, Item]:
    [(channel, text)] = item.parts
    return replace(item, parts=((channel, text[:characters]),), rides=""), replace(
        item, parts=((channel, text[characters:]),)
    )


def done() -> Done:
    return Done(
        finish_reason="stop",
        generated_tokens=0,
        released_tokens=0,
        unchecked_released_tokens=0,
        checks=0,
        check_ms=0.0,
        wall_ms=0.0,
        token_ids=(),
    )


HALT = Halt(depth=8, reason="flag", released_depth=0)

channels: st.SearchStrategy[Channel] = st.sampled_from(["text", "reasoning"])
texts = st.text(alphabet="ab", min_size=1, max_size=6)
parts = st.lists(st.tuples(channels, texts), max_size=2, unique_by=lambda part: part[0])
plain = st.builds(Item, number=st.just(0), parts=parts.map(tuple), splits=st.booleans())
calls = st.builds(Item, number=st.just(0), parts=st.just((("tool_call", "{}"),)), whole=st.just(True))
streams = st.lists(plain | plain | plain | calls, max_size=12).map(
    lambda items: [replace(item, number=number) for number, item in enumerate(items)]
)
sizes = st.lists(st.integers(min_value=1, max_value=7), min_size=1, max_size=30)


def releases(items: list[Item], wanted: list[int]) -> Iterator[tuple[int, Release]]:
    """All text of the items in their order, in releases of the sizes wanted, and how many items must have come."""
    at = 0
    for number, item in enumerate(items, start=1):
        for channel, text in item.parts:
            while text:
                size = wanted[at % len(wanted)]
                yield number, Release(text=text[:size], depth=at, channel=channel)
                at, text = at + 1, text[size:]


def text_of(items: list[Item]) -> Counter[Channel]:
    said: Counter[Channel] = Counter()
    for item in items:
        for channel, text in item.parts:
            said[channel] += len(text)
    return said


@settings(deadline=None)
@given(streams, sizes, st.booleans())
def test_nothing_passes_beyond_what_is_released(items: list[Item], wanted: list[int], ahead: bool) -> None:
    relay, passed, released, taken = Relay(read), [], Counter[Channel](), 0
    for number, release in releases(items, wanted):
        while taken < (len(items) if ahead else number):
            relay.take(items[taken])
            taken += 1
        released[release.channel] += len(release.text)
        passed += relay.passed(release)
        shown = text_of(passed)
        assert all(shown[channel] <= released[channel] for channel in shown)
        assert [item.number for item in passed] == sorted(item.number for item in passed)
        assert not any(item.whole for item in passed)
        first_whole = next((item.number for item in items if item.whole), len(items))
        assert all(item.number < first_whole for item in passed)
    for item in items[taken:]:
        relay.take(item)
    passed += relay.passed(done())
    assert text_of(passed) == text_of(items)
    assert [item for item in passed if item.rides] == [
        replace(item, parts=last.parts) for item in items for last in [last_of(passed, item.number)]
    ]


def last_of(passed: list[Item], number: int) -> Item:
    return [item for item in passed if item.number == number][-1]


@settings(deadline=None)
@given(streams, sizes)
def test_the_parts_of_an_item_add_up(items: list[Item], wanted: list[int]) -> None:
    relay, passed = Relay(read), []
    for item in items:
        relay.take(item)
    for _, release in releases(items, wanted):
        passed += relay.passed(release)
    passed += relay.passed(done())
    for item in items:
        shown = [part for piece in passed if piece.number == item.number for part in piece.parts]
        joined = {channel: "".join(text for other, text in shown if other == channel) for channel, _ in item.parts}
        assert joined == dict(item.parts)


@settings(deadline=None)
@given(streams, sizes, st.integers(min_value=0, max_value=40))
def test_nothing_passes_after_a_cut(items: list[Item], wanted: list[int], cut_at: int) -> None:
    relay = Relay(read)
    for item in items:
        relay.take(item)
    passed = [
        item for at, (_, release) in enumerate(releases(items, wanted)) if at < cut_at for item in relay.passed(release)
    ]
    assert list(relay.passed(HALT)) == []
    assert list(relay.passed(Replace(text="sorry"))) == []
    assert list(relay.passed(done())) == []
    assert relay.cut
    assert len({item.number for item in passed if item.rides}) <= len(items)


def test_an_item_without_text_waits_for_the_next_one_with_text() -> None:
    empty, said = Item(0), Item(1, parts=(("text", "ab"),))
    relay = Relay(read)
    assert relay.take(empty) == ()
    relay.take(said)
    assert list(relay.passed(Release(text="a", depth=1))) == []
    assert list(relay.passed(Release(text="b", depth=2))) == [empty, said]


def test_a_release_of_a_tool_call_lets_nothing_through() -> None:
    relay = Relay(read)
    relay.take(Item(0, parts=(("tool_call", "{}"),), whole=True))
    assert list(relay.passed(Release(text="{}", depth=1, channel="tool_call"))) == []
    assert [item.number for item in relay.passed(done())] == [0]


def test_a_stream_is_closed_with_the_deltas() -> None:
    closed: list[str] = []

    def stream() -> Iterator[Item]:
        try:
            yield Item(0, parts=(("text", "a"),))
            yield Item(1, parts=(("text", "b"),))
        finally:
            closed.append("closed")

    deltas = Relay(read).deltas(stream())
    next(deltas)
    deltas.close()
    assert closed == ["closed"]


async def test_an_async_stream_is_closed_with_the_deltas() -> None:
    closed: list[str] = []

    async def stream() -> AsyncIterator[Item]:
        try:
            yield Item(0, parts=(("text", "a"),))
            yield Item(1, parts=(("text", "b"),))
        finally:
            closed.append("closed")

    deltas = Relay(read).adeltas(stream())
    await anext(deltas)
    await deltas.aclose()
    assert closed == ["closed"]


@pytest.mark.parametrize("texts", [0, 1])
def test_a_failure_is_kept_only_while_there_is_no_text(texts: int) -> None:
    def stream() -> Iterator[Item]:
        yield Item(0)
        yield from [Item(1, parts=(("text", "a"),))] * texts
        raise ValueError("a")

    relay = Relay(read)
    with pytest.raises(ValueError, match="a"):
        list(relay.deltas(stream()))
    assert (relay.failure is None) == bool(texts)


def test_every_step_of_the_stream_is_inside_and_nothing_else_is() -> None:
    inside: list[str] = []

    @contextmanager
    def step() -> Iterator[None]:
        inside.append("in")
        yield
        inside.append("out")

    def stream() -> Iterator[Item]:
        assert inside[-1] == "in"
        yield Item(0, parts=(("text", "a"),))
        assert inside[-1] == "in"

    for _ in Relay(read, step=step).deltas(stream()):
        assert inside[-1] == "out"
    assert inside[-1] == "out"


def test_a_cut_is_told_without_text() -> None:
    check = Check(
        depth=8,
        decision="flag",
        checker="probe",
        harm_probability=0.9,
        threshold=0.5,
        reason=None,
        lookahead_tokens=0,
        elapsed_ms=1.0,
    )
    events: list[Event] = [check, HALT, Replace(text="sorry")]
    entry = cut_entry(events)
    assert entry["verdict"] == "flag"
    assert entry["replacement_chars"] == 5
    assert "sorry" not in str(entry)
    assert cut_entry([Halt(depth=0, reason="error", released_depth=0)])["verdict"] == "unchecked"
