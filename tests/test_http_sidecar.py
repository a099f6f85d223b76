"""The client of a sidecar server gives what a sidecar in this process gives, and what that costs."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import (
    BAD,
    SAFE,
    USER,
    Served,
    Sidecar,
    apushed,
    loopback,
    pushed,
    released,
    served,
    shape,
    split,
)
from sidecar_clients import CHECKERS, Counting, client, close_clients, failed_closed

from ada_guard import (
    AdaGuardError,
    Check,
    CheckError,
    Done,
    Fragment,
    Guard,
    Policy,
    RethinkChecker,
    Schedule,
    ToolCall,
)
from ada_guard.checking import AskLookahead, AskProbe
from ada_guard.sidecar.companion import LocalSidecar
from ada_guard.sidecar.protocol import Conversation
from ada_guard.steps import Sleep, Steps, arun, run
from ada_guard.testing import UNSAFE

pytestmark = loopback
SECRET = "zorblewort"


@pytest.fixture(autouse=True)
def _connections_are_closed() -> Iterator[None]:
    yield
    close_clients()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as each:
        yield each


# -- it is the same ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("text", [SAFE, BAD], ids=["benign", "harmful"])
@pytest.mark.parametrize("schedule", ["default", "every:1", "every:7"])
def test_events_are_those_of_a_sidecar_in_this_process(server: Served, checker: str, text: str, schedule: str) -> None:
    policy = Policy(schedule=Schedule.parse(schedule))
    parts = split(text, seed=len(checker))
    there = Guard(sidecar=client(server.url), checker=CHECKERS[checker], policy=policy)
    here = Guard(sidecar=Sidecar(), checker=CHECKERS[checker], policy=policy)
    assert shape(pushed(there, parts)) == shape(pushed(here, parts))


@given(st.text(st.characters(codec="utf-8"), max_size=200), st.integers(0, 10**6), st.integers(1, 8), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_split_anyhow(server: Served, text: str, seed: int, interval: int, coalesce: bool) -> None:
    policy = Policy(schedule=Schedule.every(interval))
    there = Guard(sidecar=client(server.url, coalesce=coalesce), policy=policy)
    parts = split(text, seed)
    assert shape(pushed(there, parts)) == shape(pushed(Guard(sidecar=Sidecar(), policy=policy), parts))


@pytest.mark.parametrize("text", [SAFE, BAD], ids=["benign", "harmful"])
async def test_async_gives_the_same_events(server: Served, text: str) -> None:
    there, parts = Guard(sidecar=client(server.url)), split(text, seed=1)
    events = await apushed(there, parts)
    assert shape(events) == shape(pushed(Guard(sidecar=Sidecar()), parts))
    await there.aclose()


@pytest.mark.parametrize("text", [SAFE, BAD], ids=["benign", "harmful"])
def test_a_finished_answer(server: Served, text: str) -> None:
    there = Guard(sidecar=client(server.url))
    assert there.check(USER, text) == Guard(sidecar=Sidecar()).check(USER, text)


def test_a_prefill_is_checked_first_and_never_released(server: Served) -> None:
    there = Guard(sidecar=client(server.url))
    prefilled = [*USER, {"role": "assistant", "content": f"Sure, {UNSAFE}"}]
    events = pushed(there, ["and so on"], prefilled)
    assert [(e.depth, e.decision) for e in events if isinstance(e, Check)] == [(2, "flag")]
    assert released(events) == ""


def test_half_a_character_waits_for_the_other_half(server: Served) -> None:
    high, low = "\ud83e", "\ude81"
    there = Guard(sidecar=client(server.url))
    assert released(pushed(there, ["a kite ", high, low, " flies"])) == "a kite 🪁 flies"
    assert released(pushed(there, ["a kite ", high])) == "a kite \ufffd"
    assert released(pushed(there, [f"{low} a", f"{high} b"])) == "\ufffd a\ufffd b"


# -- what it costs -------------------------------------------------------------------------------------------------


def test_a_check_costs_about_one_round_trip(server: Served) -> None:
    transport = Counting()
    there = Guard(sidecar=client(server.url, client=httpx.Client(transport=transport)))
    answer = " ".join(f"word{i % 10}" for i in range(300))
    events = pushed(there, [f"{word} " for word in answer.split()])
    checks = sum(isinstance(event, Check) for event in events)
    assert checks == 16
    assert transport.counts["advance"] <= 1.5 * checks
    assert transport.counts["sessions"] == transport.counts["info"] == transport.counts["delete"] == 1


def test_a_check_at_every_token_is_no_round_trip_for_each(server: Served) -> None:
    transport = Counting()
    policy = Policy(schedule=Schedule.every(1))
    there = Guard(sidecar=client(server.url, client=httpx.Client(transport=transport)), policy=policy)
    events = pushed(there, split(SAFE, seed=0, most=60))
    assert sum(isinstance(event, Check) for event in events) == 60
    assert transport.counts["advance"] <= 25


def test_text_is_sent_once(server: Served) -> None:
    transport = Counting()
    there = Guard(sidecar=client(server.url, client=httpx.Client(transport=transport)))
    pushed(there, split(SAFE, seed=3))
    assert b"".join(transport.bodies).count(b"word31") == 1


def test_pictures_stay_here(server: Served) -> None:
    transport = Counting()
    there = Guard(sidecar=client(server.url, client=httpx.Client(transport=transport)))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    pushed(there, ["ok"], [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}])
    assert max(map(len, transport.bodies)) < 1000
    assert b"image_url" in b"".join(transport.bodies)


# -- many, and what remains ----------------------------------------------------------------------------------------


async def test_streams_do_not_see_each_other(server: Served) -> None:
    there = Guard(sidecar=client(server.url))
    texts = [SAFE if i % 2 else BAD for i in range(12)]
    outcomes = await asyncio.gather(*(apushed(there, split(text, seed=i)) for i, text in enumerate(texts)))
    for i, (text, events) in enumerate(zip(texts, outcomes, strict=True)):
        assert shape(events) == shape(pushed(Guard(sidecar=Sidecar()), split(text, seed=i)))
    await there.aclose()
    assert len(server.service.sessions) == 0


async def _until(true: Callable[[], object]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


async def test_cancelling_a_push_takes_its_check_back() -> None:
    from concurrent.futures import Future

    from ada_guard.steps import Wait

    future: Future[None] = Future()

    def before(depth: int) -> Steps[None]:
        del depth
        yield Wait(future)

    with served(Sidecar(before=before)) as server:
        there = Guard(sidecar=client(server.url))
        session = await there.asession(USER)
        pushing = asyncio.ensure_future(session.apush(SAFE))
        await _until(lambda: server.service.sessions._waiting)
        await asyncio.sleep(0.05)
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
        await _until(future.cancelled)
        await session.aabandon()
        await there.aclose()
        assert len(server.service.sessions) == 0


def test_a_closed_stream_leaves_no_text_here_and_no_session_there(server: Served) -> None:
    there = Guard(sidecar=client(server.url))
    session = there.session([{"role": "user", "content": f"about {SECRET}"}])
    session.push(f"{SECRET} one two three four five six seven")
    following = session._following
    session.abandon()
    assert len(server.service.sessions) == 0
    gc.collect()
    held = [each for each in gc.get_referents(following, *gc.get_referents(following)) if isinstance(each, str)]
    assert not [text for text in held if SECRET in text]


def test_nothing_of_it_is_logged_or_shown(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        there = Guard(sidecar=client(server.url, api_key="key-" + SECRET), checker=RethinkChecker())
        session = there.session([{"role": "user", "content": SECRET}])
        events = session.push(f"{SECRET} " * 10)
        following: Any = session._following
        shown = [repr(thing) for thing in (events, following, vars(following), vars(following._transcript))]
        session.abandon()
        assert not [record for record in caplog.records if SECRET in record.getMessage()]
    for text in shown[:2]:
        assert SECRET not in text


def test_the_client_needs_no_torch_and_no_server() -> None:
    code = (
        "import sys, ada_guard.sidecar.client; "
        "heavy = {'torch', 'transformers', 'fastapi', 'uvicorn', 'prometheus_client', 'httpx'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


class Flat(Sidecar):
    """Knows one channel only, and gives everything back in it."""

    def open(self, *args: Any, **settings: Any) -> Any:
        following = yield from super().open(*args, **settings)
        push = following.push
        following.push = lambda fragments, ids=(): push([Fragment(text=each.text) for each in fragments], ids)
        return following


def test_fragments_of_other_channels_cannot_be_lost() -> None:
    with served(Flat()) as server:
        there = Guard(sidecar=client(server.url))
        events = pushed(there, [Fragment(text=f"thought{i} ", channel="reasoning") for i in range(20)])
        failed_closed(events, "other text", "")
        there.close()


async def test_async_and_sync_share_one_sidecar(server: Served) -> None:
    sidecar = client(server.url)
    there = Guard(sidecar=sidecar)
    assert await asyncio.to_thread(lambda: released(pushed(there, [SAFE]))) == SAFE
    assert released(await apushed(there, [SAFE])) == SAFE
    await arun(sidecar.close())


# -- token ids, tool calls, reasoning ------------------------------------------------------------------------------


def test_with_token_ids_a_check_is_one_round_trip(server: Served) -> None:
    transport = Counting()
    policy = Policy(schedule=Schedule.every(5))
    there = Guard(sidecar=client(server.url, client=httpx.Client(transport=transport)), policy=policy)
    following: Any = run(
        there.sidecar.open(Conversation(messages=USER), asks=frozenset({AskProbe}), schedule=policy.schedule)
    )
    pieces = []
    for i in range(40):
        pieces += run(following.push([Fragment(text=f"word{i} ")], [i]))
    pieces += run(following.flush())
    assert [piece.token_id for piece in pieces] == list(range(40))
    assert transport.counts["advance"] == 9  # one for each check, one for the end
    run(following.close())


@pytest.fixture(scope="module")
def tiny_here(tiny: Any) -> Iterator[LocalSidecar]:
    sidecar = LocalSidecar(tiny)
    yield sidecar
    run(sidecar.close())


@pytest.fixture(scope="module")
def tiny_server(tiny: Any) -> Iterator[Served]:
    with served(LocalSidecar(tiny)) as each:
        yield each


FRAGMENTS = st.lists(
    st.one_of(
        st.builds(lambda text: Fragment(text=text), st.text(st.characters(codec="utf-8"), max_size=12)),
        st.builds(lambda text: Fragment(text=text, channel="reasoning"), st.text("abc .\n", max_size=12)),
        st.builds(
            lambda text, index, name: Fragment(
                text=text, channel="tool_call", call=ToolCall(index=index, id=name and f"id{index}", name=name)
            ),
            st.text('{}":a, ', max_size=8),
            st.integers(0, 2),
            st.sampled_from([None, "look_up"]),
        ),
    ),
    max_size=14,
)


@given(FRAGMENTS, st.integers(1, 6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_fragments_are_settled_as_in_this_process(
    tiny_server: Served, tiny_here: LocalSidecar, fragments: list[Fragment], interval: int
) -> None:
    outcomes = []
    for sidecar in (tiny_here, client(tiny_server.url)):
        opening = sidecar.open(
            Conversation(messages=USER), asks=frozenset({AskLookahead}), schedule=Schedule.every(interval)
        )
        following: Any = run(opening)
        pieces: list[Any] = []
        failure = None
        try:
            for fragment in fragments:
                pieces += run(following.push([fragment]))
            pieces += run(following.flush())
        except AdaGuardError as error:
            failure = type(error)
        outcomes.append((None if failure else [_plain(piece) for piece in pieces], failure))
        run(following.close())
    assert outcomes[0] == outcomes[1]


def _plain(piece: Any) -> tuple[Any, ...]:
    return piece.token_id, piece.is_token, piece.text, piece.others


def test_text_is_shown_at_once_where_the_policy_does_and_nothing_waits(server: Served) -> None:
    for policy in (Policy(release="audit"), Policy(release="window", window_tokens=8)):
        shown = []
        for sidecar in (Sidecar(), client(server.url, coalesce=False)):
            with Guard(sidecar=sidecar, policy=policy).session(USER) as session:
                shown.append([released(session.push(part)) for part in split(BAD, seed=4)])
        assert shown[0] == shown[1]


def test_a_window_is_never_passed_whatever_waits(server: Served) -> None:
    policy = Policy(release="window", window_tokens=8)
    events = pushed(Guard(sidecar=client(server.url), policy=policy), split(BAD, seed=4))
    assert [event.unchecked_released_tokens <= 8 for event in events if isinstance(event, Done)] == [True]
    assert shape(events) == shape(pushed(Guard(sidecar=Sidecar(), policy=policy), split(BAD, seed=4)))


def test_every_server_is_asked_through_no_proxy_but_those_that_are_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with served() as server:
        assert released(pushed(Guard(sidecar=client(server.url)), [SAFE])) == SAFE
    with pytest.raises(CheckError, match="cannot be reached"):
        run(client("http://sidecar.test", retries=0).connect())


def test_text_is_sent_also_where_the_token_ids_have_ended(server: Served) -> None:
    transport = Counting()
    schedule = Schedule.every(5)
    opening = client(server.url, client=httpx.Client(transport=transport)).open(
        Conversation(messages=USER), asks=frozenset({AskProbe}), schedule=schedule
    )
    following: Any = run(opening)
    for i in range(10):
        run(following.push([Fragment(text=f"word{i} ")], [i]))
    for i in range(10, 110):
        run(following.push([Fragment(text=f"word{i} ")]))
    assert transport.counts["advance"] > 5
    run(following.close())


def test_an_empty_answer(server: Served) -> None:
    there, here = Guard(sidecar=client(server.url)), Guard(sidecar=Sidecar())
    for parts in ([], [""], [" "], ["", "\n"]):
        assert shape(pushed(there, parts)) == shape(pushed(here, parts))


async def test_streams_that_leave_at_any_moment_leave_nothing_behind() -> None:
    def before(depth: int) -> Steps[None]:
        yield Sleep(0.002 * (depth % 5))

    with served(Sidecar(before=before), idle_s=1.0) as server:
        there = Guard(sidecar=client(server.url))
        rng = random.Random(1)

        async def leaving(seed: int) -> None:
            task = asyncio.ensure_future(apushed(there, split(SAFE if seed % 3 else BAD, seed)))
            await asyncio.wait({task}, timeout=rng.uniform(0.0, 0.4))
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                assert released(task.result()) == (SAFE if seed % 3 else released(task.result()))
                assert UNSAFE not in released(task.result())

        await asyncio.gather(*(leaving(seed) for seed in range(40)))
        sessions = server.service.sessions
        await _until(lambda: not sessions._waiting and not sessions._others)
        # A session that was created, or closed, while its client left is left to idleness.
        assert len(sessions) < 20
        await _until(lambda: not len(sessions))
        await there.aclose()


def test_a_raw_prompt(tiny_server: Served, tiny_here: LocalSidecar) -> None:
    parts = split("one two three four five six seven.", seed=2)
    there = Guard(sidecar=client(tiny_server.url))
    mine = pushed(Guard(sidecar=tiny_here), parts, "Once upon a time")
    assert shape(pushed(there, parts, "Once upon a time")) == shape(mine)
