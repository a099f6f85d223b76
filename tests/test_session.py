"""The state machine alone, without any model: promises 1, 3 and 5 of the README as properties."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ada_guard import (
    Check,
    ContentFlaggedError,
    Decision,
    Done,
    Event,
    Halt,
    Policy,
    Release,
    Replace,
    Schedule,
    Verdict,
)
from ada_guard.errors import CheckError, ConfigError
from ada_guard.session import Piece, StreamSession

PASS, FLAG, ABSTAIN, ERROR = "pass", "flag", "abstain", "error"

texts = st.lists(st.text(alphabet="ab é漢", max_size=3), max_size=40)
schedules = st.builds(
    lambda interval, early: Schedule(interval_tokens=interval, early_tokens=tuple(sorted(early))),
    st.integers(1, 9),
    st.sets(st.integers(1, 12), max_size=3),
)
outcomes = st.lists(st.sampled_from([PASS, PASS, PASS, FLAG, ABSTAIN, ERROR]), min_size=1, max_size=50)


@dataclass
class Run:
    events: list[Event] = field(default_factory=list)
    passed_depths: list[int] = field(default_factory=list)
    checked_depths: list[int] = field(default_factory=list)
    done: Done | None = None
    session: StreamSession | None = None

    @property
    def released(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Release))


def settle(session: StreamSession, outcome: str) -> None:
    depth = session.due
    assert depth is not None
    if outcome == ERROR:
        session.fail("TimeoutError", checker="scripted", elapsed_ms=1.0)
    else:
        session.resolve(Verdict(decision=Decision(outcome), checker="scripted", depth=depth), elapsed_ms=1.0)


def play(pieces: list[str], policy: Policy, script: list[str], *, prefill_tokens: int = 0, batch: int = 1) -> Run:
    """Runs a session over the pieces; the script's outcomes are used in turn, the last one for ever."""
    session = StreamSession(policy, prefill_tokens=prefill_tokens)
    run = Run(session=session)

    def checks() -> None:
        while session.due is not None:
            depth = session.due
            outcome = script[min(len(run.checked_depths), len(script) - 1)]
            run.checked_depths.append(depth)
            settle(session, outcome)
            if outcome == PASS:
                run.passed_depths.append(depth)
            new = session.drain()
            run.events += new

    checks()
    for start in range(0, len(pieces), batch):
        if session.ended:
            break
        for i, text in enumerate(pieces[start : start + batch], start):
            session.push(Piece(text=text, token_id=i))
        checks()
        run.events += session.drain()
    session.end("stop")
    checks()
    run.events += session.drain()
    run.done = session.done(wall_ms=1.0)
    return run


@given(texts, schedules, outcomes, st.integers(0, 3), st.integers(1, 3))
def test_hold_releases_only_what_a_check_passed(
    pieces: list[str], schedule: Schedule, script: list[str], prefill: int, consecutive: int
) -> None:
    run = play(pieces, Policy(schedule=schedule, consecutive=consecutive), script, prefill_tokens=prefill)
    whole = "".join(pieces)
    assert whole.startswith(run.released)
    passed = max(run.passed_depths, default=prefill) - prefill
    assert run.done is not None
    assert run.done.released_tokens <= passed
    assert len(run.released) <= len("".join(pieces[:passed]))
    assert run.done.unchecked_released_tokens == 0


@given(texts, schedules, outcomes, st.integers(1, 6))
def test_window_releases_at_most_its_bound_of_unchecked_tokens(
    pieces: list[str], schedule: Schedule, script: list[str], window: int
) -> None:
    run = play(pieces, Policy(schedule=schedule, release="window", window_tokens=window), script)
    assert run.done is not None
    passed = max(run.passed_depths, default=0)
    assert run.done.released_tokens <= passed + window
    assert run.done.unchecked_released_tokens <= window


@given(texts, schedules, outcomes)
def test_audit_never_cuts_and_releases_at_once(pieces: list[str], schedule: Schedule, script: list[str]) -> None:
    run = play(pieces, Policy(schedule=schedule, release="audit"), script)
    assert run.released == "".join(pieces)
    assert not any(isinstance(e, Halt | Replace) for e in run.events)
    assert run.done is not None
    assert run.done.finish_reason == "stop"


@given(texts, schedules, outcomes, st.integers(1, 40))
def test_chunking_does_not_matter_to_the_session(
    pieces: list[str], schedule: Schedule, script: list[str], batch: int
) -> None:
    policy = Policy(schedule=schedule)
    one, many = play(pieces, policy, script), play(pieces, policy, script, batch=batch)
    assert one.checked_depths == many.checked_depths
    assert one.released == many.released
    assert [type(e) for e in one.events] == [type(e) for e in many.events]


@given(texts.filter(bool), schedules)
def test_tail_after_last_interval_is_checked_before_close(pieces: list[str], schedule: Schedule) -> None:
    run = play(pieces, Policy(schedule=schedule), [PASS])
    assert run.checked_depths[-1] == len(pieces)
    assert run.released == "".join(pieces)


@given(texts.filter(bool), schedules, st.sampled_from([ERROR, ABSTAIN]))
def test_a_check_that_settles_nothing_fails_closed_and_is_recorded_as_unchecked(
    pieces: list[str], schedule: Schedule, outcome: str
) -> None:
    run = play(pieces, Policy(schedule=schedule), [outcome])
    assert run.released == ""
    assert [e.decision for e in run.events if isinstance(e, Check)] == ["unchecked"]
    assert [e.reason for e in run.events if isinstance(e, Halt)] == ["error"]
    assert run.done is not None
    assert run.done.finish_reason == "content_filter"


@given(texts.filter(bool), schedules)
def test_fail_open_releases_but_counts_the_tokens_as_unchecked(pieces: list[str], schedule: Schedule) -> None:
    run = play(pieces, Policy(schedule=schedule, on_error="release"), [ERROR])
    assert run.released == "".join(pieces)
    assert {e.decision for e in run.events if isinstance(e, Check)} == {"unchecked"}
    assert run.done is not None
    assert run.done.unchecked_released_tokens == len(pieces)


def test_fail_open_does_not_release_what_an_unconfirmed_flag_holds_back() -> None:
    policy = Policy(schedule=Schedule.every(1), consecutive=2, on_error="release")
    run = play(["a", "b", "c"], policy, [PASS, FLAG, ERROR])
    assert run.released == "a"
    assert run.done is not None
    assert run.done.finish_reason == "content_filter"


def test_an_unconfirmed_flag_holds_back_until_a_pass_clears_it() -> None:
    policy = Policy(schedule=Schedule.every(1), consecutive=2)
    session = StreamSession(policy)
    session.push(Piece(text="a"))
    settle(session, FLAG)
    assert not any(isinstance(e, Release) for e in session.drain())
    session.push(Piece(text="b"))
    settle(session, PASS)
    assert [e.text for e in session.drain() if isinstance(e, Release)] == ["ab"]


def test_an_unconfirmed_flag_counts_as_a_flag_at_the_end() -> None:
    run = play(["a", "b"], Policy(schedule=Schedule.every(1), consecutive=2), [PASS, FLAG])
    assert run.released == "a"
    assert [e.reason for e in run.events if isinstance(e, Halt)] == ["flag"]


def test_an_unconfirmed_flag_stops_a_window_too() -> None:
    policy = Policy(schedule=Schedule.every(2), release="window", window_tokens=5, consecutive=3)
    run = play(["a", "b", "c", "d"], policy, [FLAG])
    assert run.released == "ab"


def test_a_prefill_is_checked_before_the_first_token_and_never_released() -> None:
    session = StreamSession(Policy(), prefill_tokens=12, prefill_text="prefill")
    assert session.due == 12
    assert session.answer() == "prefill"
    settle(session, FLAG)
    assert [type(e) for e in session.drain()] == [Check, Halt, Replace]
    assert session.done(wall_ms=1).released_tokens == 0


def test_check_prompt_checks_before_the_first_token_without_a_prefill() -> None:
    assert StreamSession(Policy(check_prompt=True)).due == 0
    assert StreamSession(Policy()).due is None


def test_an_empty_answer_ends_without_a_check() -> None:
    run = play([], Policy(), [FLAG])
    assert run.checked_depths == []
    assert run.done is not None
    assert run.done.finish_reason == "stop"


def test_a_cut_forgets_the_unsafe_text() -> None:
    session = StreamSession(Policy(schedule=Schedule.every(2)))
    for text in ("UNSAFE", "UNSAFE", "UNSAFE"):
        session.push(Piece(text=text, token_id=7))
    settle(session, FLAG)
    kept = {name: value for name, value in vars(session).items() if name != "_events"}
    assert "UNSAFE" not in repr(kept)
    assert session.answer() == ""
    assert session.done(wall_ms=1).generated_tokens == 3


def test_pushes_after_a_cut_are_ignored() -> None:
    session = StreamSession(Policy(schedule=Schedule.every(1)))
    session.push(Piece(text="a"))
    settle(session, FLAG)
    session.drain()
    session.push(Piece(text="b"))
    session.end("stop")
    assert session.drain() == []
    assert session.done(wall_ms=1).finish_reason == "content_filter"


def test_raise_hands_out_the_verdict_and_after_an_error_never_looks_like_a_hit() -> None:
    policy = Policy(schedule=Schedule.every(1), on_flag="raise")
    for outcome, kind in ((FLAG, ContentFlaggedError), (ERROR, CheckError)):
        session = StreamSession(policy)
        session.push(Piece(text="a"))
        settle(session, outcome)
        assert type(session.error) is kind
        assert not any(isinstance(e, Replace) for e in session.drain())


def test_text_that_settles_without_a_token_is_seen_by_a_check_at_the_end() -> None:
    session = StreamSession(Policy(schedule=Schedule.every(1)))
    session.push(Piece(text="", token_id=1))
    settle(session, PASS)
    session.push(Piece(text="é", is_token=False))
    assert session.drain()[-1] == Check(
        depth=1, decision="pass", checker="scripted", harm_probability=None, threshold=None, reason=None,
        lookahead_tokens=0, elapsed_ms=1.0,
    )  # fmt: skip
    session.end("length")
    assert session.drain() == []
    assert session.due == 1
    settle(session, PASS)
    assert [e.text for e in session.drain() if isinstance(e, Release)] == ["é"]


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("default", [5, 10, 15, 25, 50, 75]),
        ("every:30", [30, 60]),
        ("25-then-100", [25, 50, 75, 100, 200]),
        ("2,3/40", [2, 3, 40, 80]),
    ],
)
def test_named_schedules(text: str, due: list[int]) -> None:
    schedule = Schedule.parse(text)
    assert [d for d in range(1, due[-1] + 1) if schedule.is_due(d)] == due
    gaps = [b - a for a, b in zip([0, *due], due, strict=False)]
    assert schedule.smallest_gap_tokens == min(gaps)


@given(schedules)
def test_the_smallest_gap_is_no_wider_than_any_real_gap(schedule: Schedule) -> None:
    due = [d for d in range(1, 200) if schedule.is_due(d)]
    assert schedule.smallest_gap_tokens <= min(b - a for a, b in zip([0, *due], due, strict=False))


@given(
    st.builds(
        lambda interval, early, later, start: Schedule(
            interval_tokens=interval,
            early_tokens=tuple(sorted(early)),
            later_interval_tokens=later,
            later_from_tokens=start,
        ),
        st.integers(1, 9),
        st.sets(st.integers(1, 60), max_size=4),
        st.none() | st.integers(1, 15),
        st.integers(0, 40),
    ),
    st.integers(0, 80),
)
def test_the_next_depth_that_is_due_is_the_first_one_behind(schedule: Schedule, behind: int) -> None:
    assert schedule.next_due(behind) == next(d for d in range(behind + 1, 200) if schedule.is_due(d))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Schedule.every(0),
        lambda: Schedule(early_tokens=(5, 3)),
        lambda: Schedule.parse("often"),
        lambda: Policy(release="window"),
        lambda: Policy(window_tokens=3),
        lambda: Policy(consecutive=0),
        lambda: Policy(release="maybe"),  # type: ignore[arg-type]  # what a user would mistype
        lambda: Policy(replacement=3),  # type: ignore[arg-type]  # likewise
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(bad: object) -> None:
    with pytest.raises(ConfigError):
        bad()  # type: ignore[operator]  # each is a callable


def test_text_before_any_token_is_not_released_without_a_check() -> None:
    session = StreamSession(Policy())
    session.push(Piece(text="x", is_token=False))
    session.end("stop")
    assert session.due == 0
    settle(session, FLAG)
    assert not any(isinstance(e, Release) for e in session.drain())
