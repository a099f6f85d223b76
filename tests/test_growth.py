"""The work for a token does not grow with the answer: operations and memory are counted at two depths, never time."""

from __future__ import annotations

import statistics
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny_models import trained_tokenizer

from ada_guard import Decision, Fragment, Guard, Policy, Release, Schedule, ToolCall, Verdict
from ada_guard.relay import Relay, Seen
from ada_guard.session import Piece, StreamSession
from ada_guard.sidecar.answer import AnswerTokens
from ada_guard.sidecar.settled import SettledTokens
from ada_guard.sidecar.transcript import Transcript
from ada_guard.spec import ModelSpec
from ada_guard.testing import ScriptedFollowing, ScriptedSidecar

TOKENS = 10_000
EARLY, LATE = range(1_000, 1_100), range(TOKENS - 100, TOKENS)
WORD = " word"
Step = Callable[[], object]


class Passing(ScriptedSidecar):
    """Finds nothing, and looks at no text."""

    def open(self, conversation: Any, **settings: Any) -> Any:
        del conversation, settings
        yield from ()
        return ScriptedFollowing()


def session(schedule: Schedule, **policy: Any) -> Step:
    state, verdict = (
        StreamSession(Policy(schedule=schedule, **policy)),
        Verdict(decision=Decision.PASS, checker="probe", depth=1),
    )

    def step() -> None:
        state.push(Piece(text=WORD, token_id=7))
        while state.due is not None:
            state.resolve(verdict, elapsed_ms=0.0)
        state.drain()

    return step


def guarded() -> Step:
    guard = Guard(sidecar=Passing(), policy=Policy(schedule=Schedule.every(1)))
    events = guard.stream_from((WORD for _ in range(2 * TOKENS)), [{"role": "user", "content": "hello"}])
    return lambda: (next(events), next(events))


def pushed() -> Step:
    guard = Guard(sidecar=Passing(), policy=Policy(schedule=Schedule.every(1)))
    stream = guard.session([{"role": "user", "content": "hello"}])
    return lambda: stream.push(WORD)


def transcript(*, with_ids: bool) -> Step:
    """A stream that a server follows: sent when a check may be due, all but the last word settled."""
    said = Transcript(Schedule())
    ids = [7] if with_ids else []

    def step() -> None:
        said.add([Fragment(text=WORD)], ids)
        if said.is_time():
            said.due_next()
            said.parts(said.sent, said.end)
            unsettled = said._owed_bytes // len(WORD)
            said.settle([Piece(text=WORD, token_id=7)] * (unsettled - 1), from_start=False)
            said.sent = said.end

    return step


def calling() -> Step:
    """A long tool call, whose tokens settle one by one and whose text with the last of them."""
    said = Transcript(Schedule())

    def step() -> None:
        said.add([Fragment(text=WORD, channel="tool_call", call=ToolCall(index=0))])
        if said.is_time():
            said.parts(said.sent, said.end)
            said.settle([Piece(token_id=7)] * (said.end - said.sent), from_start=False)
            said.sent = said.end

    return step


def abandoned(*, with_ids: bool, with_call: bool) -> Step:
    """A stream whose server is lost, and whose policy goes on without."""
    said = Transcript(Schedule())
    if with_call:
        said.add([Fragment(text='{"a": ', channel="tool_call")])

    def step() -> None:
        said.add([Fragment(text=WORD)], [7] if with_ids else [])
        said.stand_ins()

    return step


def relayed() -> Step:
    relay: Relay[str] = Relay(lambda item: Seen(fragments=(Fragment(text=item),)))

    def step() -> None:
        relay.take(WORD)
        list(relay.passed(Release(text=WORD, depth=1)))

    return step


def settled() -> Step:
    tokens = SettledTokens(trained_tokenizer("gpt-2"))
    return lambda: tokens.push(WORD)


def answered(*, with_ids: bool) -> Step:
    tokenizer = trained_tokenizer("gpt-2")
    tokens = AnswerTokens(tokenizer, ModelSpec.derive(tokenizer))
    ids = tokenizer.encode(WORD, add_special_tokens=False)
    return lambda: tokens.push([Fragment(text=WORD)], ids if with_ids else ())


CASES: dict[str, Callable[[], Step]] = {
    "session": lambda: session(Schedule.every(1)),
    "session, window": lambda: session(Schedule(), release="window", window_tokens=8),
    "session, audit": lambda: session(Schedule(), release="audit"),
    "guarded stream": guarded,
    "pushed session": pushed,
    "transcript": lambda: transcript(with_ids=False),
    "transcript with ids": lambda: transcript(with_ids=True),
    "transcript of a tool call": calling,
    "transcript without a server": lambda: abandoned(with_ids=False, with_call=False),
    "transcript with ids, without a server": lambda: abandoned(with_ids=True, with_call=False),
    "transcript in a tool call, without a server": lambda: abandoned(with_ids=False, with_call=True),
    "relay": relayed,
    "settled tokens": settled,
    "answer": lambda: answered(with_ids=False),
    "answer by ids": lambda: answered(with_ids=True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_work_for_a_token_does_not_grow_with_the_answer(case: str) -> None:
    step = CASES[case]()
    found: dict[int, tuple[int, int]] = {}
    for depth in range(TOKENS):
        if depth in EARLY or depth in LATE:
            found[depth] = counted(step)
        else:
            step()
    for what, slack in ((0, 2), (1, 2_048)):
        early, late = (statistics.fmean(middle(found[depth][what] for depth in depths)) for depths in (EARLY, LATE))
        assert late <= early * 1.1 + slack


def counted(step: Step) -> tuple[int, int]:
    """Calls made in a step, and bytes that it needed at most."""
    calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return calls, peak


def middle(values: Iterator[int]) -> list[int]:
    """Without the largest tenth: lists that grow by one are moved now and then, which costs nothing on average."""
    ordered = sorted(values)
    return ordered[: len(ordered) * 9 // 10]
