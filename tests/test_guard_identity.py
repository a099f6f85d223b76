"""`Guard.identity` tells guards apart by what could change an answer; `Guard.for_sidecar` guards what others write."""

import copy
import json
from typing import Any

import pytest

from ada_guard import ConfigError, Guard, Policy, ProbeChecker, RethinkChecker
from ada_guard.policy import OwnRefusal, Schedule
from ada_guard.testing import ScriptedGuard, ScriptedSidecar
from ada_guard.verdict import Verdict


def one_text(_: Verdict | None) -> str:
    return "one"


def other_text(_: Verdict | None) -> str:
    return "other"


def test_equal_guards_have_equal_identities_of_plain_json() -> None:
    first, second = (Guard(sidecar=ScriptedSidecar(), policy=Policy(consecutive=2)) for _ in range(2))
    assert first.identity == second.identity
    assert json.loads(json.dumps(first.identity)) == first.identity


def test_everything_that_could_change_an_answer_changes_the_identity() -> None:
    guards = [
        Guard(sidecar=ScriptedSidecar()),
        Guard(sidecar=ScriptedSidecar("other")),
        Guard(sidecar=ScriptedSidecar(), checker=ProbeChecker()),
        Guard(sidecar=ScriptedSidecar(), checker=ProbeChecker(threshold=0.9)),
        Guard(sidecar=ScriptedSidecar(), checker=RethinkChecker()),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=Schedule.every(3))),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(on_flag="halt")),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(on_error="release")),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(release="window", window_tokens=3)),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(release="window", window_tokens=4)),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(check_prompt=True)),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(replacement="No.")),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(replacement=OwnRefusal())),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(replacement=OwnRefusal(then="Ask me something else."))),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(replacement=one_text)),
        Guard(sidecar=ScriptedSidecar(), policy=Policy(replacement=other_text)),
        ScriptedGuard("said"),
    ]
    identities = [json.dumps(guard.identity, sort_keys=True) for guard in guards]
    assert len(set(identities)) == len(guards)


def test_identity_is_known_before_the_sidecar_was_asked_and_does_not_change_when_it_was() -> None:
    guard = Guard(sidecar=ScriptedSidecar())
    before = guard.identity
    guard.connect()
    assert guard.identity == before


def test_remote_sidecars_count_by_where_they_are() -> None:
    first, second = (Guard.for_sidecar(f"http://127.0.0.1:{port}") for port in (1, 2))
    try:
        assert first.identity != second.identity
        assert json.loads(json.dumps(first.identity)) == first.identity
    finally:
        first.close()
        second.close()


def test_a_guard_for_a_sidecar_judges_streams_of_ones_own() -> None:
    guard = Guard.for_sidecar(ScriptedSidecar(), check="probe", policy=Policy(on_flag="halt"))
    assert guard.check([{"role": "user", "content": "?"}], "all is well").passed
    assert not guard.check([{"role": "user", "content": "?"}], "this is UNSAFE").passed
    assert guard.policy.on_flag == "halt"


@pytest.mark.parametrize("wrong", [{"check": "guess"}, {"sidecar": "self"}])
def test_a_guard_for_a_sidecar_that_cannot_work_is_a_config_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Guard.for_sidecar(**{"sidecar": ScriptedSidecar(), **wrong})


def test_a_copy_of_a_guard_is_the_guard() -> None:
    guard = Guard(sidecar=ScriptedSidecar())
    held = copy.deepcopy({"guard": guard, "again": [guard]})
    assert held["guard"] is guard
    assert held["again"] == [guard]
    assert copy.copy(guard) is guard
