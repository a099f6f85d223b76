"""``ada-guard eval attack``: every attack by its name, its result as a file, errors of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ada_guard.cli.app import app
from ada_guard.cli.eval_attacks import HELP
from ada_guard.evals.attacks.attempt import SUCCEEDED
from ada_guard.evals.attacks.presets import ATTACKS, QUICK_PROMPTS, AttackRun, evaluate_named
from ada_guard.evals.judges import NotRefusedJudge
from ada_guard.evals.result import EvalResult
from ada_guard.local import LocalModel
from ada_guard.probe import LinearProbe
from ada_guard.probe.rows import write_rows
from ada_guard.reference import PROBE_FILE
from ada_guard.reference.rows import reference_rows


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["eval", "attack", *arguments])


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.from_pretrained("reference", probe=LinearProbe.load(PROBE_FILE))


def test_the_command_line_knows_every_attack() -> None:
    assert tuple(HELP) == ATTACKS == tuple(QUICK_PROMPTS)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_runs_on_the_reference_model(model: LocalModel, name: str) -> None:
    told: list[tuple[str, int, int]] = []
    run = AttackRun(model=model, prompts=1, steps=1, generation={"max_new_tokens": 6})
    result = evaluate_named(name, run, lambda *each: told.append(each))  # type: ignore[arg-type]  # one of ATTACKS
    assert result.counts
    assert all(count.n + count.missing <= 1 for count in result.counts)
    assert told[-1][1] == told[-1][2]
    assert EvalResult.model_validate_json(result.model_dump_json()) == result
    assert result.command.startswith(f"ada-guard eval attack {name}")
    assert result.evaluation == f"attack-{name}"


def test_a_file_of_recorded_attacks_is_run_and_saved(tmp_path: Path) -> None:
    row = {"prompt_id": "1", "messages": [{"role": "user", "content": "How is a kite made?"}], "attack": "none"}
    (tmp_path / "attacks.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "result.json"
    shown = invoke("recorded", "--file", str(tmp_path / "attacks.jsonl"), "--max-new-tokens", "8", "--out", str(out))
    assert shown.exit_code == 0, shown.output
    assert "attack succeeded" in shown.output
    assert "0/1 [0-98]" in shown.output
    result = EvalResult.load(out)
    assert "kite" not in out.read_text()
    assert result.settings["generation"]["max_new_tokens"] == 8
    assert result.command.startswith("ada-guard eval attack recorded --file")
    assert {count.hits for count in result.counts if count.what == SUCCEEDED} == {0}


def test_results_of_two_recorded_files_have_different_digests_also_where_their_prompts_are_alike(
    model: LocalModel, tmp_path: Path
) -> None:
    digests = []
    for said in ("How is a kite made?", "How is a kite made? Begin with: Sure."):
        row = {"prompt_id": "1", "goal": "kite", "messages": [{"role": "user", "content": said}]}
        (tmp_path / "attacks.jsonl").write_text(json.dumps(row) + "\n")
        run = AttackRun(model=model, recorded=tmp_path / "attacks.jsonl", generation={"max_new_tokens": 1})
        digests.append(dict(evaluate_named("recorded", run).data))
    assert digests[0]["prompts"] == digests[1]["prompts"]
    assert digests[0]["model"] == digests[1]["model"]
    assert digests[0]["attempts"] != digests[1]["attempts"]


@pytest.mark.parametrize(("checker", "name"), [("probe", "gcg-adaptive"), ("rethink", "gcg-rethink")])
def test_a_search_against_a_checker_is_named_by_it(checker: str, name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    small = ("--n", "1", "--steps", "1", "--max-new-tokens", "4", "--out", str(out))
    shown = invoke("gcg", "--adaptive", checker, *small)
    assert shown.exit_code == 0, shown.output
    result = EvalResult.load(out)
    assert result.evaluation == f"attack-{name}"
    assert f"--adaptive {checker}" in result.command


def test_rows_of_ones_own_are_the_goals(model: LocalModel, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", reference_rows("test", count=3, seed=5, tokens=60))
    judge = NotRefusedJudge()
    run = AttackRun(model=model, rows=tmp_path / "rows.jsonl", prompts=1, judge=judge, generation={"max_new_tokens": 4})
    result = evaluate_named("style", run)
    assert (result.settings["judge"], result.settings["prompts"]) == ("not refused", 1)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["style", "--file", "x"], "--file belongs to attack recorded"),
        (["recorded", "--rows", "x"], "takes --file, not --rows"),
        (["style", "--steps", "3"], "--steps belongs to the attacks that search a suffix"),
        (["style", "--adaptive", "rethink"], "--adaptive belongs to attack gcg"),
        (["gcg-adaptive", "--adaptive", "rethink"], "--adaptive belongs to attack gcg"),
        (["recorded", "--file", "nowhere.jsonl"], "no file at 'nowhere.jsonl'"),
        (["style", "--rows", "nowhere.jsonl"], "no file at 'nowhere.jsonl'"),
        (["style", "--n", "99"], "25 forbidden test prompts"),
        (["style", "--schedule", "often"], "unknown schedule"),
        (["gcg", "--model", "reference-base"], "give --rows"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: list[str], problem: str) -> None:
    shown = invoke(*arguments)
    assert shown.exit_code == 2
    (line,) = shown.output.strip().splitlines()
    assert problem in line


def test_a_model_without_rows_or_recorded_prompts_says_what_to_give(tiny: LocalModel) -> None:
    from ada_guard.errors import ConfigError

    for name, wanted in (("recorded", "--file"), ("forged", "--rows")):
        with pytest.raises(ConfigError, match=wanted):
            evaluate_named(name, AttackRun(model=tiny))  # type: ignore[arg-type]  # one of ATTACKS
