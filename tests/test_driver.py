"""The drivers, sync and async, on scripted parts: promises 4, 5, 7 and 8."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ada_guard import (
    AdaGuardError,
    Check,
    CheckError,
    ContentFlaggedError,
    Done,
    Event,
    Halt,
    OwnRefusal,
    Policy,
    ProbeChecker,
    Release,
    Replace,
    RethinkChecker,
    Schedule,
)
from ada_guard.checkers import CascadeChecker
from ada_guard.checking import CheckContext, Checking
from ada_guard.driver import Lane, adrive, drive, guarded
from ada_guard.policy import DEFAULT_REPLACEMENT
from ada_guard.session import StreamSession
from ada_guard.testing import UNSAFE, ScriptedFollowing, ScriptedGuard, ScriptedSource, words

USER = [{"role": "user", "content": "Tell me."}]
SAFE = " ".join(f"word{i}" for i in range(60))
BAD = " ".join([f"word{i}" for i in range(30)] + [UNSAFE] + [f"word{i}" for i in range(30, 60)])
EVERY5 = Policy(schedule=Schedule.every(5))


def run(guard: ScriptedGuard, how: str) -> list[Event]:
    if how == "sync":
        return list(guard.stream(USER))

    async def collect() -> list[Event]:
        return [event async for event in guard.astream(USER)]

    return asyncio.run(collect())


def shape(events: list[Event]) -> list[dict[str, object]]:
    """Events without what the clock says."""
    return [{k: v for k, v in e.to_dict().items() if not k.endswith("_ms")} for e in events]


both = pytest.mark.parametrize("how", ["sync", "async"])


@both
def test_benign_stream_is_released_whole(how: str) -> None:
    events = run(ScriptedGuard(SAFE, policy=EVERY5), how)
    assert "".join(e.text for e in events if isinstance(e, Release)) == SAFE
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "stop"
    assert events[-1].token_ids == tuple(range(60))


@both
def test_unsafe_stream_is_cut_before_the_unsafe_word_and_replaced(how: str) -> None:
    events = run(ScriptedGuard(BAD, policy=EVERY5), how)
    shown = "".join(e.text for e in events if isinstance(e, Release | Replace))
    assert UNSAFE not in shown
    assert shown.startswith("word0 word1")
    assert [(e.depth, e.released_depth) for e in events if isinstance(e, Halt)] == [(35, 30)]
    assert isinstance(events[-1], Done)
    assert events[-1].unchecked_released_tokens == 0
    assert events[-1].finish_reason == "content_filter"


def test_sync_and_async_give_the_same_events() -> None:
    for answer in (SAFE, BAD, ""):
        guard = ScriptedGuard(answer, policy=EVERY5)
        assert shape(run(guard, "sync")) == shape(run(guard, "async"))


@both
def test_a_cut_stops_the_source_before_the_consumer_hears_of_it(how: str) -> None:
    guard = ScriptedGuard(BAD, policy=EVERY5)
    if how == "sync":
        for event in guard.stream(USER):
            if isinstance(event, Halt):
                assert guard.sources[0].closed
    else:

        async def watch() -> None:
            async for event in guard.astream(USER):
                if isinstance(event, Halt):
                    assert guard.sources[0].closed

        asyncio.run(watch())
    assert guard.sources[0].given == 35


def test_a_consumer_that_stops_reading_stops_the_source() -> None:
    guard = ScriptedGuard(SAFE, policy=EVERY5)
    stream = guard.stream(USER)
    next(stream)
    stream.close()
    assert guard.sources[0].closed
    assert guard.sources[0].given == 5


async def test_an_async_consumer_that_stops_reading_stops_the_source() -> None:
    guard = ScriptedGuard(SAFE, policy=EVERY5)
    stream = guard.astream(USER)
    await anext(stream)
    await stream.aclose()
    assert guard.sources[0].closed
    assert guard.sources[0].given == 5


async def test_cancelling_waits_for_the_running_step_and_stops_the_source() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(ScriptedSource):
        running = False

        def next_delta(self):  # type: ignore[no-untyped-def]  # signature of the base
            self.running = True
            entered.set()
            leave.wait(5)
            self.running = False
            return super().next_delta()

    with ThreadPoolExecutor(1) as worker:
        source, following = Slow(SAFE, worker=worker), ScriptedFollowing()
        flow = guarded(source, [Lane(StreamSession(EVERY5), following)], ProbeChecker(threshold=0.5))

        async def consume() -> None:
            async for _ in adrive(flow, source.close):
                pass

        task = asyncio.create_task(consume())
        await asyncio.to_thread(entered.wait)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, leave.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not source.running
        assert source.closed


@both
@pytest.mark.parametrize("fault", [float("nan"), 1.5, RuntimeError("secret text"), TimeoutError("secret text")])
def test_a_failing_check_fails_closed_without_its_text(how: str, fault: object) -> None:
    def harm(depth: int) -> float:
        if depth >= 10:
            if isinstance(fault, Exception):
                raise fault
            assert isinstance(fault, float)
            return fault
        return 0.0

    source, following = ScriptedSource(SAFE), ScriptedFollowing(harm)
    flow = guarded(source, [Lane(StreamSession(EVERY5), following)], ProbeChecker(threshold=0.5))
    if how == "sync":
        events = list(drive(flow, source.close))
    else:

        async def collect() -> list[Event]:
            return [event async for event in adrive(flow, source.close)]

        events = asyncio.run(collect())
    assert [e.decision for e in events if isinstance(e, Check)] == ["pass", "unchecked"]
    assert [e.reason for e in events if isinstance(e, Halt)] == ["error"]
    assert "secret" not in repr([e.to_dict() for e in events])
    assert "".join(e.text for e in events if isinstance(e, Release)) == " ".join(f"word{i}" for i in range(5))


def test_a_broken_checker_of_the_users_own_fails_closed() -> None:
    class Broken(ProbeChecker):
        def check(self, context: CheckContext) -> Checking:
            raise KeyError("secret text")
            yield  # a checker is a generator

    events = list(ScriptedGuard(SAFE, policy=EVERY5, checker=Broken()).stream(USER))
    assert [(e.decision, e.reason) for e in events if isinstance(e, Check)] == [("unchecked", "KeyError")]
    assert not any(isinstance(e, Release) for e in events)


def test_a_failing_source_raises_and_drops_what_was_held_back() -> None:
    source = ScriptedSource("a b c", error=ConnectionError("gone"))
    flow = guarded(source, [Lane(StreamSession(EVERY5), ScriptedFollowing())], ProbeChecker(threshold=0.5))
    seen = []
    with pytest.raises(ConnectionError):
        seen.extend(drive(flow, source.close))
    assert seen == []
    assert source.closed


@both
def test_raise_policy_raises_after_the_events(how: str) -> None:
    guard = ScriptedGuard(BAD, policy=Policy(schedule=Schedule.every(5), on_flag="raise"))
    with pytest.raises(ContentFlaggedError) as caught:
        run(guard, how)
    assert caught.value.verdict.depth == 35
    assert UNSAFE not in str(caught.value)
    assert UNSAFE not in repr(caught.value)


async def test_many_streams_on_one_guard_do_not_see_each_other() -> None:
    guard = ScriptedGuard(BAD, policy=EVERY5)
    expected = shape(list(guard.stream(USER)))

    async def one() -> list[dict[str, object]]:
        return shape([event async for event in guard.astream(USER)])

    tasks = [asyncio.create_task(one()) for _ in range(8)]
    threads = [asyncio.create_task(asyncio.to_thread(lambda: shape(list(guard.stream(USER))))) for _ in range(8)]
    for got in await asyncio.gather(*tasks, *threads):
        assert got == expected


def test_complete_gives_the_replacement_alone_after_a_cut() -> None:
    done = ScriptedGuard(BAD, policy=Policy(schedule=Schedule.every(5), replacement="No.")).complete(USER)
    assert done.text == "No."
    assert done.finish_reason == "content_filter"
    assert done.flagged
    assert done.released.startswith("word0")
    assert UNSAFE not in repr(done)


async def test_acomplete_equals_complete() -> None:
    guard = ScriptedGuard(SAFE, policy=EVERY5)
    assert (await guard.acomplete(USER)).text == guard.complete(USER).text == SAFE


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_session_of_ones_own_gives_the_same_however_the_text_is_split(size: int) -> None:
    guard = ScriptedGuard(policy=EVERY5)
    for text, cut in ((SAFE, False), (BAD, True)):
        session = guard.session(USER)
        events: list[Event] = []
        for start in range(0, len(text), size):
            events += session.push(text[start : start + size])
        events += session.close()
        shown = "".join(e.text for e in events if isinstance(e, Release))
        assert isinstance(events[-1], Done)
        assert session.ended
        if cut:
            assert shown == " ".join(f"word{i}" for i in range(30))
            assert [e.depth for e in events if isinstance(e, Halt)] == [35]
        else:
            assert shown == SAFE
        assert session.push("more") == []
        assert session.close() == []


async def test_session_of_ones_own_works_from_async_code() -> None:
    session = ScriptedGuard(policy=EVERY5).session(USER)
    events = [*await session.apush(BAD), *await session.aclose()]
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "content_filter"


def test_an_abandoned_session_shows_nothing_more() -> None:
    with ScriptedGuard(policy=EVERY5).session(USER) as session:
        session.push("one two three")
    assert session.ended
    assert session.close() == []


def rethink(lookahead: Callable[[int], str], answer: str = SAFE, policy: Policy = EVERY5) -> list[Event]:
    source, following = ScriptedSource(answer), ScriptedFollowing(lookahead=lookahead)
    session = StreamSession(policy)
    return list(drive(guarded(source, [Lane(session, following)], RethinkChecker()), source.close))


def test_rethink_flags_a_refusal_behind_the_header() -> None:
    events = rethink(lambda d: "Sure! I cannot help with that." if d >= 10 else "Sure, next step")
    checks = [e for e in events if isinstance(e, Check)]
    assert [c.decision for c in checks] == ["pass", "flag"]
    assert checks[-1].reason == "refused"


def test_rethink_passes_a_refusal_of_the_models_own() -> None:
    refusal = "I'm sorry, but I can't help with that."
    events = rethink(lambda _: refusal, answer=refusal)
    assert {e.reason for e in events if isinstance(e, Check)} == {"already_refusing"}
    assert "".join(e.text for e in events if isinstance(e, Release)) == refusal


def test_own_refusal_is_the_sentence_of_the_lookahead_and_then_the_fixed_text() -> None:
    policy = Policy(schedule=Schedule.every(5), replacement=OwnRefusal(then="Ask me something else."))
    events = rethink(lambda _: "I cannot help with that. And more text follows.", policy=policy)
    assert [e.text for e in events if isinstance(e, Replace)] == ["I cannot help with that. Ask me something else."]
    fallback = Policy(schedule=Schedule.every(5), replacement=OwnRefusal(fallback="Fixed."))
    assert ScriptedGuard(BAD, policy=fallback).complete(USER).text == "Fixed."


def test_replacement_may_be_a_function_of_the_verdict() -> None:
    policy = Policy(schedule=Schedule.every(5), replacement=lambda v: f"cut at {v.depth}" if v else "failed")
    assert ScriptedGuard(BAD, policy=policy).complete(USER).text == "cut at 35"


@pytest.mark.parametrize(
    ("p", "lookahead", "decision", "asked"),
    [
        (0.95, "Sure", "flag", False),
        (0.5, "I cannot help with that.", "flag", True),
        (0.5, "Sure, the next step", "pass", True),
        (0.05, "I cannot help with that.", "pass", False),
    ],
)
def test_cascade_asks_rethink_only_in_the_middle(p: float, lookahead: str, decision: str, asked: bool) -> None:
    calls: list[int] = []

    def ahead(depth: int) -> str:
        calls.append(depth)
        return lookahead

    source = ScriptedSource("a b c d e")
    flow = guarded(
        source, [Lane(StreamSession(EVERY5), ScriptedFollowing(lambda _: p, ahead))], CascadeChecker(low=0.1, high=0.9)
    )
    check = next(e for e in drive(flow, source.close) if isinstance(e, Check))
    assert check.decision == decision
    assert bool(calls) is asked
    assert check.harm_probability == p


def test_scripted_words_are_the_text() -> None:
    assert "".join(piece.text for piece in words(BAD)) == BAD


def test_elapsed_time_of_checks_is_summed() -> None:
    def slow(_: int) -> float:
        time.sleep(0.002)
        return 0.0

    source = ScriptedSource("a b c d e f")
    events = list(
        drive(
            guarded(source, [Lane(StreamSession(EVERY5), ScriptedFollowing(slow))], ProbeChecker(threshold=0.5)),
            source.close,
        )
    )
    done = events[-1]
    assert isinstance(done, Done)
    assert done.checks == 2
    assert done.check_ms == pytest.approx(sum(e.elapsed_ms for e in events if isinstance(e, Check)))
    assert done.wall_ms >= done.check_ms > 0


def test_a_replacement_function_that_fails_does_not_undo_the_cut() -> None:
    def broken(_: object) -> str:
        raise KeyError("secret text")

    guard = ScriptedGuard(BAD, policy=Policy(schedule=Schedule.every(5), replacement=broken))
    shown: list[Event] = []
    with pytest.raises(AdaGuardError, match="KeyError") as caught:
        shown.extend(guard.stream(USER))
    assert "secret" not in str(caught.value)
    assert [e.text for e in shown if isinstance(e, Replace)] == [DEFAULT_REPLACEMENT]
    assert isinstance(shown[-1], Done)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_session_that_raises_hands_its_events_over_with_the_error(size: int) -> None:
    session = ScriptedGuard(policy=Policy(schedule=Schedule.every(5), on_flag="raise")).session(USER)
    events: list[Event] = []

    def push_all() -> None:
        for start in range(0, len(BAD), size):
            events.extend(session.push(BAD[start : start + size]))

    with pytest.raises(ContentFlaggedError) as caught:
        push_all()
    events += caught.value.events
    assert "".join(e.text for e in events if isinstance(e, Release)) == " ".join(f"word{i}" for i in range(30))
    assert isinstance(events[-1], Done)


class Lost(ScriptedFollowing):
    """Cannot follow from some word on."""

    def push(self, fragments, token_ids=()):  # type: ignore[no-untyped-def]  # signature of the base
        if len(self.pieces) >= 12:
            raise CheckError("the sidecar is lost")
        return (yield from super().push(fragments, token_ids))


@both
def test_a_sidecar_that_cannot_follow_fails_closed_and_is_recorded(how: str) -> None:
    source = ScriptedSource(SAFE)
    flow = guarded(source, [Lane(StreamSession(EVERY5), Lost(), by_ids=True)], ProbeChecker(threshold=0.5))
    if how == "sync":
        events = list(drive(flow, source.close))
    else:

        async def collect() -> list[Event]:
            return [event async for event in adrive(flow, source.close)]

        events = asyncio.run(collect())
    checks = [e for e in events if isinstance(e, Check)]
    assert [(c.decision, c.reason) for c in checks] == [
        ("pass", None),
        ("pass", None),
        ("unchecked", "the sidecar is lost"),
    ]
    assert "".join(e.text for e in events if isinstance(e, Release)) == " ".join(f"word{i}" for i in range(10))
    assert source.closed
    assert isinstance(events[-1], Done)
    assert events[-1].unchecked_released_tokens == 0


def test_a_sidecar_that_cannot_follow_is_an_error_where_unchecked_text_may_pass() -> None:
    source = ScriptedSource(SAFE)
    policy = Policy(schedule=Schedule.every(5), on_error="release")
    flow = guarded(source, [Lane(StreamSession(policy), Lost(), by_ids=True)], ProbeChecker(threshold=0.5))
    with pytest.raises(CheckError, match="lost"):
        list(drive(flow, source.close))
    assert source.closed


def test_time_spent_ahead_on_a_check_belongs_to_it() -> None:
    class Ahead(ScriptedFollowing):
        def ahead_ms(self) -> float:
            return 1000.0

    source = ScriptedSource("a b c d e")
    flow = guarded(source, [Lane(StreamSession(EVERY5), Ahead(), by_ids=True)], ProbeChecker(threshold=0.5))
    check = next(e for e in drive(flow, source.close) if isinstance(e, Check))
    assert check.elapsed_ms >= 1000.0
