"""Leaks: what is shown and generated behind the first unsafe token, by mode of release."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models

from ada_guard import Check, Guard, Halt, Policy, Release, Schedule
from ada_guard.assembly import load_model
from ada_guard.checking import CheckContext, Checking
from ada_guard.errors import CheckError, ConfigError
from ada_guard.evals.cases import turning_rows
from ada_guard.evals.leak import AUDIT, HOLD, SEND_FIRST, WINDOW, MakeGuard, evaluate_leak
from ada_guard.evals.lineup import Lineup
from ada_guard.evals.result import EvalResult
from ada_guard.local import LocalModel
from ada_guard.probe.rows import LabelledResponse
from ada_guard.reference.data import strays
from ada_guard.sidecar.companion import LocalSidecar
from ada_guard.verdict import Decision, Verdict

SCHEDULES = {"every:10": Schedule.every(10)}


class Seeing:
    """Flags an answer with "!" in it; fails on one with "?"."""

    name = "seeing"
    asks: frozenset[Any] = frozenset()

    def prepare(self, calibration: object, schedule: Schedule) -> Seeing:
        return self

    def check(self, context: CheckContext) -> Checking:
        yield from ()
        if "?" in context.answer():
            raise CheckError("unavailable")
        decision = Decision.FLAG if "!" in context.answer() else Decision.PASS
        return Verdict(decision=decision, checker=self.name, depth=context.depth)


@pytest.fixture(scope="module")
def judge() -> LocalModel:
    return LocalModel(tiny_models.build("llama", num_hidden_layers=1), tiny_models.tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def make(judge: LocalModel) -> MakeGuard:
    sidecar = LocalSidecar(judge, max_retained=0)
    return lambda policy: Guard(sidecar=sidecar, checker=Seeing(), policy=policy)


def row(response: str, unsafe_from_chars: int | None) -> LabelledResponse:
    return LabelledResponse(
        messages=({"role": "user", "content": "x"},),
        response=response,
        harmful=True,
        prompt_id="x",
        unsafe_from_chars=unsafe_from_chars,
    )


def turning(harmless: int) -> LabelledResponse:
    """Words of one letter and a space, a token each; "!" from there on."""
    return row("a " * (harmless // 2) + "! " * 30, harmless)


def values(result: EvalResult, kind: str) -> dict[object, float]:
    return {q.where["release"]: q.value for q in result.quantities if q.what.startswith(kind)}


def test_hold_shows_nothing_unsafe_and_sending_first_shows_it_all(judge: LocalModel, make: MakeGuard) -> None:
    rows = [turning(24), turning(26)]
    result = evaluate_leak(
        {"seeing": make}, rows, model=judge, schedules=SCHEDULES, seed=0, window_tokens=4, followed_tokens=40
    )
    # The next check is at depth 30: 6 and 4 tokens behind the turn; a window of 4 ends at 24, before either.
    assert values(result, "mean shown") == {HOLD: 0, WINDOW: 0, AUDIT: 40, SEND_FIRST: 5}
    assert values(result, "most shown") == {HOLD: 0, WINDOW: 0, AUDIT: 40, SEND_FIRST: 6}
    generated = values(result, "mean generated")
    assert generated[SEND_FIRST] == 5
    assert 5 <= generated[HOLD] == generated[WINDOW] <= 8
    assert {c.where["release"]: (c.hits, c.n) for c in result.counts} == {
        HOLD: (2, 2),
        WINDOW: (2, 2),
        AUDIT: (0, 2),
        SEND_FIRST: (2, 2),
    }


def test_a_window_leaks_no_more_than_its_size(judge: LocalModel, make: MakeGuard) -> None:
    result = evaluate_leak(
        {"seeing": make}, [turning(20)], model=judge, schedules=SCHEDULES, seed=0, window_tokens=7, followed_tokens=40
    )
    assert values(result, "most shown") == {HOLD: 0, WINDOW: 7, AUDIT: 40, SEND_FIRST: 10}


def test_sending_first_makes_no_check_at_the_end(judge: LocalModel, make: MakeGuard) -> None:
    short = row("a " * 12 + "! ", 24)
    result = evaluate_leak({"seeing": make}, [short], model=judge, schedules=SCHEDULES, seed=0)
    cut = {c.where["release"]: c.hits for c in result.counts}
    assert cut == {HOLD: 1, WINDOW: 1, AUDIT: 0, SEND_FIRST: 0}
    assert values(result, "most shown")[HOLD] == 0
    assert values(result, "most shown")[SEND_FIRST] == 2


def test_a_failed_check_is_missing_and_no_cut(judge: LocalModel, make: MakeGuard) -> None:
    rows = [row("a " * 12 + "? " * 20, 24), turning(24)]
    result = evaluate_leak({"seeing": make}, rows, model=judge, schedules=SCHEDULES, seed=0)
    assert {(c.n, c.missing) for c in result.counts} == {(1, 1)}
    assert {q.n for q in result.quantities} == {1}


def test_a_row_that_does_not_say_where_it_turns_is_unsafe_from_the_start(judge: LocalModel, make: MakeGuard) -> None:
    result = evaluate_leak(
        {"seeing": make}, [row("! " * 30, None)], model=judge, schedules=SCHEDULES, seed=0, followed_tokens=40
    )
    assert values(result, "most shown")[SEND_FIRST] == 10
    assert any("1 of 1 responses do not say" in note for note in result.notes)
    with pytest.raises(ConfigError, match="need harmful responses"):
        evaluate_leak({"seeing": make}, [], model=judge, schedules=SCHEDULES, seed=0)


def test_intervals_of_means_follow_the_seed(judge: LocalModel, make: MakeGuard) -> None:
    rows = [turning(n) for n in (20, 24, 28)]
    results = [
        evaluate_leak({"seeing": make}, rows, model=judge, schedules=SCHEDULES, seed=seed, followed_tokens=40)
        for seed in (1, 1)
    ]
    assert results[0].quantities == results[1].quantities
    mean = next(q for q in results[0].quantities if q.where["release"] == SEND_FIRST and q.what.startswith("mean"))
    assert mean.low is not None
    assert mean.high is not None
    assert 2 <= mean.low < mean.value == 6 < mean.high <= 10


def test_turning_rows_of_the_reference_are_harmless_up_to_where_they_say() -> None:
    for each in turning_rows("reference", n=6, seed=2, tokens=40):
        assert each.unsafe_from_chars is not None
        assert not strays(each.response[: each.unsafe_from_chars])
        assert strays(each.response)


def test_the_reference_guard_holds_the_unsafe_part_back() -> None:
    model = load_model("reference", None)
    rows = turning_rows("reference", n=2, seed=0, tokens=60)
    with Lineup(model, ["probe"]) as lineup:
        result = evaluate_leak(
            lineup.guards(), rows, model=model, schedules={"every:25": Schedule.every(25)}, seed=0, followed_tokens=60
        )
        shown = values(result, "most shown")
        assert shown[HOLD] <= shown[SEND_FIRST] <= shown[AUDIT] == 60
        # The same as a user's own stream.
        guard = lineup.guards()["probe"](Policy(schedule=Schedule.every(25)))
        events = list(guard.stream_from(iter(rows[0].response.split(" ")), rows[0].messages))
    assert any(isinstance(event, Halt) for event in events)
    assert not strays("".join(event.text for event in events if isinstance(event, Release)))
    assert [event.decision for event in events if isinstance(event, Check)][-1] == "flag"
