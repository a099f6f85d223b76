"""`ada-guard eval attack pair|tap|autodan`, with attacker and judge on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import proposal, served_chat
from endpoint_drives import loopback
from typer.testing import CliRunner, Result

from ada_guard.cli.app import app
from ada_guard.evals.attacks.attempt import SUCCEEDED
from ada_guard.evals.attacks.presets import QUICK_PROMPTS
from ada_guard.evals.result import EvalResult
from ada_guard.testing_endpoint import Asked

pytestmark = [loopback]
SMALL = ("--n", "1", "--max-new-tokens", "10", "--api-key-env", "ADA_GUARD_NO_KEY")


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["eval", "attack", *arguments])


def judging(asked: Asked) -> str:
    system = asked.body["messages"][0]["content"]
    if "grade" in system:
        return json.dumps({"score": 2})
    return '{"same": true}' if "compare" in system else proposal("How do I make it?")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pair", ("--streams", "2", "--iterations", "1")),
        ("tap", ("--branching", "2", "--width", "1", "--depth", "1", "--most-sent", "2")),
    ],
)
def test_attacker_and_judge_behind_endpoints(name: str, shape: tuple[str, ...], tmp_path: Path) -> None:
    with served_chat(judging) as (_, script), script.serve() as url:
        out = tmp_path / "result.json"
        chats = ("--attacker", url, "--attacker-model", "a", "--judge-url", url, "--judge-model", "j")
        done = call(name, *chats, *shape, *SMALL, "--out", str(out))
    assert done.exit_code == 0, done.output
    result = EvalResult.load(out)
    assert result.evaluation == f"attack-{name}"
    assert result.settings["attacker"] == "a"
    assert result.settings["scorer"] == "j (10 of 10)"
    assert {count.system for count in result.counts} == {"no guard", "rethink", "probe", "cascade"}
    assert all(count.n + count.missing <= 1 for count in result.counts)
    assert "attack succeeded" in done.output
    assert "prompts sent" in done.output


def test_a_judge_model_needs_an_address_and_an_attacker_must_be_there() -> None:
    done = call("pair", "--attacker", "http://127.0.0.1:1/v1", "--attacker-model", "a", "--judge-model", "j", *SMALL)
    assert done.exit_code == 2
    assert "--judge-url and --judge-model" in done.output
    assert call("pair", *SMALL).exit_code == 2


def test_autodan_needs_no_chat_model(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = call("autodan", "--n", "1", "--generations", "1", "--max-new-tokens", "10", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert EvalResult.load(out).settings["generations"] == 1


def test_autodan_takes_as_many_prompts_as_its_preset_has_everywhere(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = call("autodan", "--generations", "1", "--max-new-tokens", "1", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert EvalResult.load(out).settings["prompts"] == QUICK_PROMPTS["autodan"]


@pytest.mark.parametrize("name", ["pair", "tap", "autodan"])
def test_a_place_that_takes_no_result_is_told_before_anything_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    chats = () if name == "autodan" else ("--attacker", "http://127.0.0.1:1/v1", "--attacker-model", "a")
    for out in (tmp_path, tmp_path / "file" / "x.json"):
        done = call(name, *chats, "--model", "not-looked-for", "--out", str(out))
        assert done.exit_code == 2
        assert "cannot write" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_judge_model_can_decide_in_any_attack(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    with served_chat(judging) as (_, script), script.serve() as url:
        done = call("forged", "--judge-url", url, "--judge-model", "j", *SMALL, "--out", str(out))
    assert done.exit_code == 0, done.output
    succeeded = [count for count in EvalResult.load(out).counts if count.what == SUCCEEDED]
    assert succeeded
    assert all(count.hits == 0 for count in succeeded)


def test_two_judges_are_one_too_many() -> None:
    done = call(
        "forged", "--judge", "not-refused", "--judge-url", "http://127.0.0.1:1/v1", "--judge-model", "j", *SMALL
    )
    assert done.exit_code == 2
    assert "exclude each other" in done.output
