"""The report card: figures, controls and warnings; how it is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_stores import Invented, rows, store, with_splits
from typer.testing import CliRunner

from ada_guard.cli.app import app
from ada_guard.probe import LinearProbe
from ada_guard.probe.cautions import cautions
from ada_guard.probe.controls import lead_interval
from ada_guard.probe.fit import FitSettings, fit_probe
from ada_guard.probe.rates import auroc
from ada_guard.probe.report_card import Control, ReportCard
from ada_guard.probe.rows import LabelledResponse, Split
from ada_guard.probe.states import Place, Shard
from ada_guard.probe.store import StateStore
from ada_guard.reference import PROBE_FILE

SPLITS: tuple[Split, ...] = ("fit", "validation", "test")
LOOSE = FitSettings(target_fpr=0.15)


def report(folder: Path, how: Invented, responses: list[LabelledResponse] | None = None) -> ReportCard:
    responses = rows(160, telling_words=how.telling_words) if responses is None else responses
    found = fit_probe(store(folder / "s", responses, how), LOOSE).card.report
    assert found is not None
    return found


def control(card: ReportCard, name: str) -> Control:
    return next(control for control in card.controls if control.name == name)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> ReportCard:
    """ADA does the work: the text tells nothing, other tokens little."""
    return report(tmp_path_factory.mktemp("good"), Invented(benign_schedule="every:5"))


def test_controls_that_do_worse_are_not_warned_of(good: ReportCard) -> None:
    assert {c.name: c.does_as_well for c in good.controls} == {
        "last_token": False,
        "random_tokens": False,
        "bag_of_words": False,
        "shuffled_labels": False,
    }
    assert not any("does as well" in warning for warning in good.warnings)


def test_texts_that_were_fitted_on_under_another_prompt_are_told_of_refusals_are_not(tmp_path: Path) -> None:
    found = with_splits(rows(160))
    harmful = {split: next(n for n, row in enumerate(found) if row.harmful and row.split == split) for split in SPLITS}
    benign = {
        split: [n for n, row in enumerate(found) if not row.harmful and row.split == split][:2] for split in SPLITS
    }
    for split in SPLITS:
        found[harmful[split]] = replace(found[harmful[split]], response="the same text " * 9)
        for number in benign[split]:
            found[number] = replace(found[number], response="I'm sorry, but I can't help with that.")
    card = report(tmp_path, Invented(chars=False), found)
    assert card.data.measured_and_fitted == 1
    assert any("were fitted on word for word" in warning for warning in card.warnings)


def test_more_false_flags_on_test_rows_than_were_allowed_are_warned_of(good: ReportCard) -> None:
    def said(flagged: int) -> bool:
        flags = good.false_flags[0].model_copy(update={"flagged": flagged, "benign": 100})
        card = good.model_copy(update={"false_flags": (flags,), "measured_on": "test"})
        return any("more than the 0.15" in warning for warning in cautions(card, LOOSE, converged=True))

    assert not said(0)
    assert not said(20), "within what chance does"
    assert said(30)


def test_a_strangers_card_cannot_steer_the_terminal(folder: Path) -> None:
    file = folder / "evil.safetensors"
    assert run("probe", "fit", str(folder / "s"), "--out", str(file), "--target-fpr", "0.2")[0] == 0
    probe = LinearProbe.load(file)
    assert probe.card.report is not None
    bad = "\x1b]0;title\x07\x1b[31m"
    data = probe.card.report.data.model_copy(update={"rows": bad, "schedule": bad, "benign_schedule": bad})
    told = probe.card.report.model_copy(update={"data": data, "warnings": (bad,)})
    card = probe.card.model_copy(update={"report": told, "model": bad, "position": bad, "header_text": bad})
    replace(probe, card=card).save(file)
    code, out, err = run("probe", "show", str(file))
    assert code == 0
    assert "\x1b" not in out + err


def test_a_probe_with_shuffled_labels_is_at_chance(good: ReportCard) -> None:
    shuffled = control(good, "shuffled_labels")
    assert shuffled.ranking is not None
    assert shuffled.ranking.auroc == pytest.approx(0.5, abs=0.15)


def test_a_text_that_gives_the_label_away_is_warned_of_first(tmp_path: Path) -> None:
    card = report(tmp_path, Invented(layers=(1,), telling_words=True))
    assert control(card, "bag_of_words").does_as_well
    assert "a bag of words does as well as the probe" in card.warnings[0]
    assert "nothing here shows that Any-Depth Alignment did the work" in card.warnings[0]


def test_tokens_that_do_as_well_as_the_safety_tokens_are_warned_of(tmp_path: Path) -> None:
    same: dict[Place, float] = {"safety_tokens": 4.0, "last_token": 5.0, "random_tokens": 5.0}
    card = report(tmp_path, Invented(layers=(1,), separation=same))
    assert sum("does as well" in warning for warning in card.warnings) == 2


def test_what_was_not_collected_is_said_and_not_invented(tmp_path: Path) -> None:
    card = report(tmp_path, Invented(layers=(1,), places=("safety_tokens",), chars=False))
    assert [c.name for c in card.controls if not c.collected] == ["last_token", "random_tokens", "bag_of_words"]
    assert any("not collected, so not compared: last token, random tokens, bag of words" in w for w in card.warnings)


def test_the_same_text_in_fit_and_test_betrays_itself_by_shuffled_labels(tmp_path: Path) -> None:
    """Eight texts, each answering many prompts: whoever knows the text knows its shuffled label."""
    same = [
        replace(row, response=f"text {number % 8} " * 40, harmful=number % 2 == 0)
        for number, row in enumerate(rows(320))
    ]
    made = store(tmp_path / "s", same, Invented(layers=(1,), places=("safety_tokens",)))
    states = made.states("safety_tokens", 1)
    # The states of a text lie at a place of its own.
    place = np.random.default_rng(1).normal(size=(8, states.values.shape[1])) * 20
    told = StateStore.create(tmp_path / "told", made.about, made.rows)
    values = states.values + torch.tensor(place[states.rows.numpy() % 8], dtype=torch.float32)
    told.append(
        Shard(
            done=list(range(320)), rows=states.rows, depths=states.depths, states={("safety_tokens", 1): values.clone()}
        )
    )
    found = fit_probe(told, LOOSE).card.report
    assert found is not None
    shuffled = control(found, "shuffled_labels")
    assert shuffled.ranking is not None
    assert shuffled.ranking.auroc is not None
    assert shuffled.ranking.auroc > 0.9


def test_figures_are_measured_on_the_test_split(good: ReportCard) -> None:
    assert good.measured_on == "test"
    assert set(good.by_depth) == set(range(25, 201, 25))
    assert good.responses.harmful == good.responses.benign == 16
    (row,) = [row for row in good.false_flags if row.interval_tokens == 25]
    assert (row.set_on, row.benign, row.harmful) == (24, 16, 16)
    assert row.upper_bound <= 0.15
    assert good.readings.auroc is not None
    assert good.readings.auroc > 0.99


def test_without_test_rows_the_card_says_that_it_is_optimistic(tmp_path: Path) -> None:
    responses = [replace(r, split="validation" if r.split == "test" else r.split) for r in with_splits(rows(160))]
    card = report(tmp_path, Invented(layers=(1,)), responses)
    assert card.measured_on == "validation"
    assert any("optimistic" in warning for warning in card.warnings)


def test_time_to_flag_counts_what_is_never_flagged_and_what_is_flagged_too_early(tmp_path: Path) -> None:
    card = report(tmp_path, Invented(layers=(1,), unsafe_from=90), rows(160, unsafe=True))
    first = card.time_to_flag[0]
    assert first.interval_tokens == 25
    assert first.quartiles_tokens == (100, 100, 100)
    assert first.after_tokens == (10, 10, 10)
    assert first.never + first.early <= 2


def test_the_data_are_counted_by_source_generator_label_and_split(good: ReportCard) -> None:
    assert sum(group.responses for group in good.data.groups) == 160
    assert {group.generator for group in good.data.groups} == {"one", "two"}
    assert good.data.benign_validation_prompts == 24


def test_classes_of_different_writers_are_warned_of(tmp_path: Path) -> None:
    responses = [replace(row, generator="villain" if row.harmful else "clerk") for row in rows(160)]
    card = report(tmp_path, Invented(layers=(1,)), responses)
    assert any("tell writers apart" in warning for warning in card.warnings)


def test_many_responses_to_few_prompts_are_not_taken_for_independent_in_silence(tmp_path: Path) -> None:
    responses = [replace(row, prompt_id=f"p{number % 20}") for number, row in enumerate(rows(160))]
    card = report(tmp_path, Invented(layers=(1,)), responses)
    assert any("prompts only" in warning and "more prompts" in warning for warning in card.warnings)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_interval_of_a_lead_holds_the_lead(seed: int) -> None:
    rng = np.random.default_rng(seed)
    harmful = np.arange(120) % 2 == 0
    one, other = rng.normal(size=120) + 2 * harmful, rng.normal(size=120) + harmful
    low, high = lead_interval(one, other, harmful, [str(n // 3) for n in range(120)], seed=seed)
    assert low <= auroc(one, harmful) - auroc(other, harmful) <= high
    assert lead_interval(one, one, harmful, [str(n) for n in range(120)], seed=seed) == (0, 0)


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("cli")
    store(found / "s", rows(160, telling_words=True), Invented(layers=(1, 2)))
    return found


def run(*arguments: str) -> tuple[int, str, str]:
    # The commands quieten warnings and logs of the whole process: a process of their own would be slow.
    import warnings

    with warnings.catch_warnings():
        result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_fit_writes_a_probe_and_show_prints_its_card(folder: Path) -> None:
    file = folder / "probe.safetensors"
    code, out, err = run("probe", "fit", str(folder / "s"), "--out", str(file), "--target-fpr", "0.2")
    assert code == 0, err
    assert "a bag of words does as well" in err
    for title in ("Thresholds", "Ranking", "Controls", "Time to flag", "Layers", "Data"):
        assert title in out
    shown = run("probe", "show", str(file))
    assert shown[1] == out
    as_json = json.loads(run("probe", "show", str(file), "--json")[1])
    assert as_json["report"]["controls"][2]["does_as_well"]
    assert LinearProbe.load(file).card.model_dump(mode="json") == as_json


@pytest.mark.parametrize("width", [80, 120])
def test_show_keeps_to_the_width_and_breaks_no_word_of_a_head_and_no_figure(folder: Path, width: int) -> None:
    file = folder / "probe.safetensors"
    if not file.exists():
        run("probe", "fit", str(folder / "s"), "--out", str(file), "--target-fpr", "0.2")
    shown = CliRunner(env={"COLUMNS": str(width)}).invoke(app, ["probe", "show", str(file)]).stdout
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    words = set(shown.split())
    assert words.issuperset({"threshold", "rethink", "flagged", "AUROC", "between", "validation", "responses"})
    report = LinearProbe.load(file).card.report
    assert report is not None
    for row in report.false_flags:
        (line,) = (
            line for line in lines if line.startswith(f"{row.interval_tokens} ") and f"{row.threshold:.4f}" in line
        )
        assert f"{row.found} of {row.harmful}" in line
    for control in report.controls:
        if control.lead_interval is not None:
            assert "{:+.4f} to {:+.4f}".format(*control.lead_interval) in shown


def test_no_text_of_rows_is_in_the_file(folder: Path) -> None:
    file = folder / "other.safetensors"
    run("probe", "fit", str(folder / "s"), "--out", str(file), "--target-fpr", "0.2", "--json")
    content = file.read_bytes()
    assert b"zorp" not in content
    assert b"question" not in content


def test_fit_takes_a_layer_a_split_and_the_authors_threshold(folder: Path) -> None:
    arguments = ("--layer", "1", "--split-by", "generator", "--threshold", "0.5", "--seed", "3", "--json")
    code, out, err = run("probe", "fit", str(folder / "s"), "--out", str(folder / "third.safetensors"), *arguments)
    assert code == 0, err
    card = json.loads(out)
    assert (card["layer"], card["threshold_choice"]) == (1, "authors")
    assert card["report"]["fitting"]["split_by"] == "generator"
    assert any("0.5" in warning for warning in card["report"]["warnings"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "{folder}/s", "--out", "{folder}/x"), "takes 299"),
        (("fit", "{folder}/nothing", "--out", "{folder}/x"), "run ada-guard probe collect first"),
        (("fit", "{folder}/s", "--out", "{folder}/x", "--layer", "7"), "layer 7 was not collected"),
        (("fit", "{folder}/s", "--out", "{folder}/x", "--target-fpr", "2"), "between 0 and 1"),
        (("fit", "{folder}/s", "--out", "{folder}/x", "--seed", "4294967296"), "the seed must lie"),
        (("show", "{folder}/nothing"), "no probe file"),
        (("fit", "{folder}/s/rows.jsonl", "--out", "{folder}/x"), "is a file, not a folder of ada-guard probe collect"),
        (("show", "{folder}/s/about.json"), "is not a probe"),
        (("show", "{folder}/s"), "is a folder: give the .safetensors file"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = run("probe", *(argument.format(folder=folder) for argument in arguments))
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not (folder / "x").exists()


def test_show_prints_the_bundled_probes_card_with_its_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("probe", "show", "reference")
    assert code == 0
    assert f"layer {LinearProbe.load(PROBE_FILE).card.layer}" in out
    for line in ("Controls", "bag of words", "random tokens", "last token", "shuffled labels"):
        assert line in out


def test_a_probe_without_a_report_card_is_shown_as_such(tmp_path: Path) -> None:
    probe = LinearProbe.load(PROBE_FILE)
    bare = probe.card.model_copy(update={"report": None})
    LinearProbe(weight=probe.weight, bias=probe.bias, card=bare).save(tmp_path / "bare.safetensors")
    code, out, _ = run("probe", "show", str(tmp_path / "bare.safetensors"))
    assert code == 0
    assert "no report card" in out
    assert f"layer {bare.layer}" in out
