"""An automatic schedule: within its budget, as dense as that allows, chosen once and then the same for all streams."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes import probe_for, probed
from test_cli import HARMLESS, call

from ada_guard import CascadeChecker, Check, Guard, Policy, ProbeChecker, RethinkChecker, Schedule
from ada_guard.checking import Ask, AskLookahead, AskProbe
from ada_guard.cli.eval_options import parsed_schedules
from ada_guard.errors import ConfigError, ProbeWarning
from ada_guard.local import LocalModel, cost
from ada_guard.local.cost import CheckCost, measure
from ada_guard.local.lower_blocks import keep_lower_blocks
from ada_guard.policy import SPARSEST_TOKENS, AutoSchedule
from ada_guard.sidecar.companion import LocalSidecar
from ada_guard.testing import ScriptedGuard, ScriptedSidecar

USER = [{"role": "user", "content": "How do I bake bread?"}]
AUTO = Policy(schedule=Schedule.auto(0.05))
budgets = st.floats(0.001, 1.0)
costs = st.floats(0.001, 1e5)
checks = st.floats(-10.0, 1e6)


# -- the choice -----------------------------------------------------------------------------------------------------


@given(budgets, costs, checks)
def test_the_interval_is_within_the_budget_and_the_next_smaller_one_is_not(
    budget: float, step_ms: float, check_ms: float
) -> None:
    interval = Schedule.auto(budget).chosen(step_ms=step_ms, check_ms=check_ms).interval_tokens
    allowed = budget * step_ms * (1 + 1e-9)
    assert 1 <= interval <= SPARSEST_TOKENS
    assert interval == SPARSEST_TOKENS or check_ms / interval <= allowed
    assert interval == 1 or check_ms / (interval - 1) > allowed * (1 - 1e-6)


@given(budgets, costs, checks)
def test_early_checks_delay_an_answer_by_three_steps_at_the_most(
    budget: float, step_ms: float, check_ms: float
) -> None:
    chosen = Schedule.auto(budget).chosen(step_ms=step_ms, check_ms=check_ms)
    assert all(depth < chosen.interval_tokens for depth in chosen.early_tokens)
    assert len(chosen.early_tokens) * check_ms <= 3 * step_ms


@given(budgets, budgets, costs, checks)
def test_a_larger_budget_never_checks_less_often(one: float, other: float, step_ms: float, check_ms: float) -> None:
    small, large = sorted((one, other))
    sparse, dense = (Schedule.auto(each).chosen(step_ms=step_ms, check_ms=check_ms) for each in (small, large))
    assert dense.interval_tokens <= sparse.interval_tokens


@given(budgets, costs, checks)
def test_what_is_chosen_depends_on_the_costs_alone_and_can_be_asked_for_again(
    budget: float, step_ms: float, check_ms: float
) -> None:
    chosen = Schedule.auto(budget).chosen(step_ms=step_ms, check_ms=check_ms)
    assert chosen == Schedule.auto(budget).chosen(step_ms=step_ms, check_ms=check_ms)
    assert type(chosen) is Schedule
    assert Schedule.parse(chosen.spelling) == chosen


@pytest.mark.parametrize(
    ("check_ms", "spelling"),
    [(0.0, "every:1"), (5.0, "every:1"), (19.0, "every:4"), (40.0, "5/8"), (80.0, "5,10,15/16"), (600.0, "every:100")],
)
def test_what_a_budget_of_a_twentieth_buys_at_a_step_of_100_ms(check_ms: float, spelling: str) -> None:
    assert Schedule.auto(0.05).chosen(step_ms=100.0, check_ms=check_ms).spelling == spelling


@pytest.mark.parametrize(("step_ms", "check_ms"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_costs_that_cannot_be_are_refused(step_ms: float, check_ms: float) -> None:
    with pytest.raises(ConfigError):
        Schedule.auto().chosen(step_ms=step_ms, check_ms=check_ms)


# -- its spelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "overhead"), [("auto", 0.05), ("auto:5%", 0.05), ("auto:0.5%", 0.005)])
def test_a_budget_is_read_from_a_text(text: str, overhead: float) -> None:
    assert Schedule.parse(text) == Schedule.auto(overhead)
    assert Schedule.parse(Schedule.parse(text).spelling) == Schedule.auto(overhead)


@pytest.mark.parametrize("text", ["auto:", "auto:5", "auto:0%", "auto:101%", "auto:-5%", "auto:x%"])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Schedule.parse(text)


@pytest.mark.parametrize("text", ["default", "25-then-100", "every:7"])
def test_other_schedules_are_spelled_as_they_are_read(text: str) -> None:
    assert Schedule.parse(Schedule.parse(text).spelling) == Schedule.parse(text)


def test_before_the_choice_there_are_no_depths() -> None:
    for asked in (lambda: AUTO.schedule.is_due(1), lambda: AUTO.schedule.smallest_gap_tokens):
        with pytest.raises(ConfigError, match="write an interval"):
            asked()


# -- the measurement ------------------------------------------------------------------------------------------------


def ticking(step_ms: float, check_ms: float) -> Callable[[], float]:
    """A clock under which steps without and with a check, in turn, take a given time."""
    lasted = itertools.chain.from_iterable([0.0, step_ms, 0.0, step_ms + check_ms] for _ in itertools.count())
    times = itertools.accumulate(lasted)
    return lambda: next(times) / 1000


@pytest.mark.parametrize("check_pass", ["fused", "separate"])
@pytest.mark.parametrize("asks", [{AskProbe}, {AskLookahead}, {AskProbe, AskLookahead}], ids=str)
def test_a_check_costs_what_it_adds_to_a_step(
    tiny: LocalModel, asks: set[type[Ask]], check_pass: cost.CheckPass
) -> None:
    found = measure(probed(tiny), frozenset(asks), check_pass=check_pass, clock=ticking(100.0, 19.0))
    assert found.step_ms == pytest.approx(100.0)
    assert found.check_ms == pytest.approx(19.0)


def test_a_model_without_a_probe_is_measured_by_lookahead(tiny: LocalModel) -> None:
    assert measure(tiny, frozenset({AskProbe}), clock=ticking(10.0, 60.0)).check_ms == pytest.approx(60.0)


def test_measuring_takes_no_random_numbers_and_leaves_nothing_on_the_model(tiny: LocalModel) -> None:
    before = torch.get_rng_state()
    measure(probed(tiny), frozenset({AskProbe, AskLookahead}), clock=ticking(10.0, 60.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.model.modules())


def test_a_real_clock_gives_a_step_that_takes_time(tiny: LocalModel) -> None:
    assert measure(probed(tiny), frozenset({AskProbe})).step_ms > 0


# -- guards ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def costing(monkeypatch: pytest.MonkeyPatch) -> list[CheckCost]:
    """Costs that take the place of measured ones, in turn."""
    left = [CheckCost(step_ms=100.0, check_ms=19.0), CheckCost(step_ms=100.0, check_ms=90.0)]

    def measured(*_: object, **__: object) -> CheckCost:
        return left.pop(0)

    monkeypatch.setattr(cost, "measure", measured)
    return left


def depths(guard: Guard) -> list[int]:
    events = guard.stream(USER, max_new_tokens=13, temperature=0)
    return [event.depth for event in events if isinstance(event, Check)]


def test_all_streams_of_a_guard_have_the_depths_that_were_chosen_when_it_was_built(
    tiny: LocalModel, costing: list[CheckCost], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ada_guard"):
        guard = Guard(probed(tiny), checker=ProbeChecker(threshold=1.0), policy=AUTO)
    assert guard.policy == replace(AUTO, schedule=Schedule.every(4))
    assert [record.getMessage() for record in caplog.records] == [
        "auto:5%: schedule every:4; a check adds 19.0 ms to a step of 100.0 ms"
    ]
    assert depths(guard) == depths(guard) == [4, 8, 12, 13]
    assert len(costing) == 1


def test_a_companion_is_measured_at_the_first_use_and_never_again(tiny: LocalModel, costing: list[CheckCost]) -> None:
    guard = Guard(sidecar=probed(tiny), checker=ProbeChecker(threshold=1.0), policy=AUTO)
    assert guard.policy == AUTO

    async def both() -> None:
        await asyncio.gather(guard.aconnect(), guard.aconnect())

    asyncio.run(both())
    assert guard.policy.schedule == Schedule.every(4)
    found = [
        [event.depth for event in guard.stream_from(pieces, USER) if isinstance(event, Check)]
        for pieces in (["one two three"], list("one two three"))
    ]
    assert found[0] == found[1]
    assert found[0][:2] == [4, 8]
    guard.close()


def calibrated(model: LocalModel, *intervals: int) -> LocalModel:
    """The model with a probe that has a threshold of 0.9, 0.8, ... for each interval."""
    probe = probe_for(model)
    thresholds = {interval: 0.9 - turn / 10 for turn, interval in enumerate(intervals)}
    card = probe.card.model_copy(update={"thresholds": thresholds, "low_thresholds": dict.fromkeys(intervals, 0.1)})
    return LocalModel(model.model, model.tokenizer, probe=replace(probe, card=card), name=model.name)


def test_a_threshold_is_the_one_calibrated_for_the_chosen_interval(tiny: LocalModel, costing: list[CheckCost]) -> None:
    guard = Guard(calibrated(tiny, 3, 25), policy=AUTO)
    assert isinstance(guard.checker, ProbeChecker)
    assert guard.checker.threshold == 0.9


def test_an_interval_denser_than_the_calibration_is_warned_of(tiny: LocalModel, costing: list[CheckCost]) -> None:
    with pytest.warns(ProbeWarning, match="every 4 tokens, the probe was calibrated for every 25"):
        Guard(calibrated(tiny, 25), policy=AUTO)


@pytest.mark.parametrize("checker", [RethinkChecker(), CascadeChecker(low=0.0, high=1.0)])
def test_a_budget_that_no_interval_keeps_is_warned_of(
    tiny: LocalModel, costing: list[CheckCost], checker: RethinkChecker | CascadeChecker
) -> None:
    costing[0] = CheckCost(step_ms=100.0, check_ms=900.0)
    with pytest.warns(UserWarning, match=r"every 100 tokens.*more than the 5\.0%"):
        guard = Guard(probed(tiny), checker=checker, policy=AUTO)
    assert guard.policy.schedule == Schedule.every(SPARSEST_TOKENS)


def test_what_cannot_be_measured_is_refused_before_anything_is_asked(tiny: LocalModel) -> None:
    with pytest.raises(ConfigError, match="in this process"):
        Guard(sidecar=ScriptedSidecar(), policy=AUTO)
    with pytest.raises(ConfigError, match="in this process"):
        ScriptedGuard("one", policy=AUTO)


def test_a_model_that_is_loaded_in_part_cannot_be_measured(tiny: LocalModel) -> None:
    probe = probe_for(tiny)
    net = copy.deepcopy(tiny.model)
    keep_lower_blocks(net, probe.hook_point)
    with pytest.raises(ConfigError, match="whole model"):
        Guard(sidecar=LocalModel(net, tiny.tokenizer, probe=probe), policy=AUTO)


def test_a_sidecar_in_this_process_is_measured_by_its_model(tiny: LocalModel, costing: list[CheckCost]) -> None:
    guard = Guard(sidecar=LocalSidecar(probed(tiny)), policy=AUTO)
    guard.connect()
    assert guard.policy.schedule == Schedule.every(4)
    guard.close()


def test_evaluations_take_depths_that_hold_on_every_machine() -> None:
    with pytest.raises(ConfigError, match="on every machine"):
        parsed_schedules("default,auto:5%")


def test_a_measured_guard_says_what_an_unguarded_model_says(tiny: LocalModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how much a check costs here depends on the machine
        guard = Guard(probed(tiny), checker=ProbeChecker(threshold=1.0), policy=AUTO)
    assert not isinstance(guard.policy.schedule, AutoSchedule)
    plain = "".join(event.text for event in guard.unguarded(USER, max_new_tokens=20, seed=1) if hasattr(event, "text"))
    assert guard.complete(USER, max_new_tokens=20, seed=1).text == plain


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_the_command_says_which_schedule_was_chosen(extra: list[str], costing: list[CheckCost]) -> None:
    result = call(*HARMLESS, "--schedule", "auto:5%", *extra)
    assert result.exit_code == 0, result.stderr
    assert "schedule auto:5% is every:4 on this model and machine" in result.stderr
