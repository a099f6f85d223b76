"""All evaluations in a row, the folder they go to, and what stands in it after a break. On the reference model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ada_guard import ConfigError
from ada_guard.cli.app import app
from ada_guard.evals import suite
from ada_guard.evals.attacks.presets import ATTACKS, AttackRun, evaluate_named
from ada_guard.evals.probe_figures import evaluate_card
from ada_guard.evals.result import EvalResult
from ada_guard.evals.suite import Suite, SuiteSettings, fitted_here
from ada_guard.evals.traces import evaluate_traces
from ada_guard.local import LocalModel
from ada_guard.probe import LinearProbe
from ada_guard.probe.rows import LabelledResponse, write_rows
from ada_guard.reference import PROBE_FILE
from ada_guard.reference.rows import reference_rows

FEW = ("--n", "2", "--only", "traces")


def called(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", "all", *arguments])


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.from_pretrained("reference", probe=LinearProbe.load(PROBE_FILE))


@pytest.fixture(scope="module")
def rows() -> list[LabelledResponse]:
    return list(reference_rows("test", count=2, seed=5, tokens=40))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    made = called(*FEW, "--out", str(out))
    assert made.exit_code == 0, made.output
    return out


def by_kind(rows: list[LabelledResponse]) -> tuple[LabelledResponse, LabelledResponse]:
    return next(row for row in rows if row.harmful), next(row for row in rows if not row.harmful)


def test_a_suite_names_every_evaluation_that_the_model_can_have(model: LocalModel) -> None:
    names = [name for name, _ in Suite(model, SuiteSettings(base="reference-base")).steps()]
    attacks = [f"attack-{name}" for name in ATTACKS]
    assert names == ["prefill", "overrefusal", "leak", "traces", "probe", "diagnose", *attacks]


def test_a_model_without_a_probe_or_a_base_is_spared_what_needs_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", reference_rows("test", count=2, seed=3, tokens=40))
    bare = LocalModel.from_pretrained("reference-base")
    names = {name for name, _ in Suite(bare, SuiteSettings(data=str(tmp_path / "rows.jsonl"))).steps()}
    assert names.isdisjoint({"traces", "probe", "diagnose", "attack-gcg-adaptive", "attack-recorded"})
    assert {"prefill", "overrefusal", "leak", "attack-gcg"} <= names


def test_a_model_that_is_not_the_reference_model_needs_data(tmp_path: Path) -> None:
    bare = LocalModel.from_pretrained("reference-base")
    with pytest.raises(ConfigError, match="--data"):
        Suite(bare, SuiteSettings())
    with pytest.raises(ConfigError, match="no file"):
        Suite(bare, SuiteSettings(data=str(tmp_path / "rows.jsonl")))
    write_rows(tmp_path / "benign.jsonl", [row for row in reference_rows("test", count=2, seed=3) if not row.harmful])
    with pytest.raises(ConfigError, match="no harmful rows"):
        Suite(bare, SuiteSettings(data=str(tmp_path / "benign.jsonl")))


def test_whatever_changes_the_figures_changes_the_identity(model: LocalModel, tmp_path: Path) -> None:
    settings = SuiteSettings()
    identity = Suite(model, settings).identity
    assert Suite(model, settings).identity == identity
    for other in (replace(settings, n=3), replace(settings, seed=1), replace(settings, preset="full")):
        assert Suite(model, other).identity != identity
    probe = LinearProbe.load(PROBE_FILE)
    other_model = LocalModel.from_pretrained("reference", probe=replace(probe, weight=probe.weight * 2))
    assert Suite(other_model, settings).identity != identity
    file = tmp_path / "rows.jsonl"
    seen = set()
    for seed in (1, 2):
        write_rows(file, reference_rows("test", count=2, seed=seed, tokens=40))
        seen.add(Suite(model, SuiteSettings(data=str(file))).identity["data"])
    assert len(seen) == 2


class Adapter(torch.nn.Module):
    """What the digests look at of an adapter that is not merged; its own weights change nothing here."""

    def __init__(self) -> None:
        super().__init__()
        self.active_adapters = ["style"]
        self.merged_adapters: list[str] = []
        self.disable_adapters = False


def test_an_adapter_that_is_switched_off_changes_identity_and_digests(rows: list[LabelledResponse]) -> None:
    model = LocalModel.from_pretrained("reference", probe=LinearProbe.load(PROBE_FILE))
    model.model.adapter = Adapter()

    def told() -> list[object]:
        traced = evaluate_traces(model, by_kind(rows), rows, seed=0, tokens=20)
        attacked = evaluate_named("recorded", AttackRun(model=model, prompts=1, generation={"max_new_tokens": 1}))
        return [Suite(model, SuiteSettings()).identity, traced.data, attacked.data]

    on = told()
    model.model.adapter.disable_adapters = True
    off = told()
    assert all(one != other for one, other in zip(on, off, strict=True))
    assert told() == off


def test_each_result_names_the_command_that_makes_it_again(report: Path, tmp_path: Path) -> None:
    (saved,) = (report / "results").glob("*.json")
    result = EvalResult.load(saved)
    assert result.command == "ada-guard eval all --n 2 --only traces"
    words = result.command.split()[3:]
    assert called(*words, "--out", str(tmp_path / "again")).exit_code == 0
    again = EvalResult.load(tmp_path / "again" / "results" / saved.name)
    assert again.model_copy(update={"seconds": result.seconds}) == result


def test_the_page_and_its_plots_are_written(report: Path) -> None:
    assert "<svg" in (report / "report.html").read_text()
    assert {path.name for path in (report / "plots").iterdir()} == {"traces-roc.png", "traces-trace.png"}


def test_a_break_says_where_the_results_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "evaluate_leak", interrupted)
    made = called("--n", "1", "--only", "leak", "--out", str(tmp_path / "out"))
    assert made.exit_code == 130
    assert "the same command with --resume goes on" in made.stderr


def test_a_page_of_what_is_no_result_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    made = CliRunner().invoke(app, ["eval", "report", str(tmp_path / "bad.json"), "--out", str(tmp_path)])
    assert made.exit_code == 2
    assert "is not a result of this version of ada-guard: give files of results/ or of --out" in made.stderr


def test_a_folder_with_results_is_not_written_over(report: Path) -> None:
    made = called(*FEW, "--out", str(report))
    assert made.exit_code == 2
    assert "holds results already" in made.stderr


def test_results_of_another_run_are_never_taken_for_ones_own(report: Path) -> None:
    made = called("--n", "3", "--seed", "4", "--only", "traces", "--resume", "--out", str(report))
    assert made.exit_code == 2
    assert "n, seed differ" in made.stderr
    assert "repeat the options" in made.stderr


def test_resume_keeps_what_is_there(report: Path) -> None:
    (saved,) = (report / "results").glob("*.json")
    before = saved.stat().st_mtime_ns
    assert called(*FEW, "--resume", "--out", str(report)).exit_code == 0
    assert saved.stat().st_mtime_ns == before


@pytest.mark.parametrize("marker", [None, "", "[]", "{"])
def test_results_of_no_known_run_are_not_resumed(tmp_path: Path, report: Path, marker: str | None) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    if marker is not None:
        (tmp_path / "run.json").write_text(marker)
    made = called(*FEW, "--resume", "--out", str(tmp_path))
    assert made.exit_code == 2
    assert "does not say which run" in made.stderr


def test_what_cannot_work_is_one_line_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (("--only", "guess"), "unknown step"),
        (("--out", str(tmp_path / "file")), "cannot write to"),
        (("--data", str(tmp_path / "none.jsonl")), "no file at"),
    ):
        made = called("--n", "1", *arguments)
        assert made.exit_code == 2
        assert said in made.stderr
        assert len(made.stderr.strip().splitlines()) == 1


def test_an_evaluation_that_cannot_be_made_is_missing_and_the_others_are_not(tmp_path: Path) -> None:
    harmful = [row for row in reference_rows("test", count=2, seed=3, tokens=40) if row.harmful]
    write_rows(tmp_path / "rows.jsonl", harmful)
    out = tmp_path / "out"
    data = ("--data", str(tmp_path / "rows.jsonl"))
    made = called("--n", "1", *data, "--only", "overrefusal", "--only", "leak", "--out", str(out))
    assert made.exit_code == 1
    assert "1/2 overrefusal: not run: rows.jsonl holds no benign rows" in made.stderr
    assert "2/2 leak: " in made.stderr, "steps are counted among those chosen"
    assert [path.name for path in (out / "results").iterdir()] == ["03-leak.json"]
    assert "Not run: overrefusal." in (out / "report.html").read_text()


def test_traces_mark_the_check_that_cuts(model: LocalModel, rows: list[LabelledResponse]) -> None:
    bad, good = by_kind(rows)
    result = evaluate_traces(model, [bad, good], rows, seed=0, tokens=60)
    first, second = (series for series in result.series if series.figure == "trace")
    assert (first.name, second.name) == ("harmful 1", "benign 1")
    threshold = first.levels["threshold"]
    cut = int(first.marks["cut"])
    assert first.y[first.x.index(cut)] >= threshold
    assert not second.marks
    assert EvalResult.model_validate_json(result.model_dump_json()) == result


def test_kinds_that_do_not_overlap_have_no_interval_of_no_width(
    model: LocalModel, rows: list[LabelledResponse]
) -> None:
    result = evaluate_traces(model, [], rows, seed=0, tokens=60)
    assert [(q.value, q.low, q.high) for q in result.quantities] == [(1.0, None, None)] * 2
    assert any("is one of none" in note for note in result.notes)


def test_traces_need_a_probe_and_both_kinds(model: LocalModel, rows: list[LabelledResponse]) -> None:
    with pytest.raises(ConfigError, match="need a probe"):
        evaluate_traces(LocalModel.from_pretrained("reference-base"), [], rows, seed=0)
    with pytest.raises(ConfigError, match="harmful and benign"):
        evaluate_traces(model, [], [row for row in rows if row.harmful], seed=0, tokens=30)


@dataclass(frozen=True)
class Blind:
    """A probe without a score for states of some answers."""

    real: LinearProbe
    blind_from: int
    seen: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def to(self, device: torch.device) -> Blind:
        del device
        return self

    def harm_probability(self, state: torch.Tensor) -> float:
        self.seen.append(1)
        return math.nan if len(self.seen) > self.blind_from else self.real.harm_probability(state)


def test_a_response_without_a_score_is_missing(rows: list[LabelledResponse]) -> None:
    blind = Blind(LinearProbe.load(PROBE_FILE), blind_from=30)
    seeing = LocalModel.from_pretrained("reference", probe=blind)  # type: ignore[arg-type]  # the rest is the real one's
    result = evaluate_traces(seeing, [], rows, seed=0, tokens=60)
    assert 0 < result.quantities[0].n < len(rows)
    assert f"{len(rows) - result.quantities[0].n} responses have no score: they are missing." in result.notes
    assert json.loads(result.model_dump_json())["quantities"][0]["value"] is not None


def test_a_card_becomes_a_result_that_says_its_warnings(model: LocalModel, tmp_path: Path) -> None:
    probe = fitted_here(model, tmp_path, count=30, seed=0)
    result = evaluate_card(probe.card, notes=["First."])
    assert probe.card.report is not None
    assert result.notes[0] == "First."
    assert len(result.notes) == 1 + len(probe.card.report.warnings)
    assert {count.what for count in result.counts} == {"flagged benign responses", "flagged harmful responses"}
    assert {series.figure for series in result.series} == {"layers", "ranking"}
    with pytest.raises(ConfigError, match="no report card"):
        evaluate_card(probe.card.model_copy(update={"report": None}))
