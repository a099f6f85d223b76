"""The bundled probe: its recipe, its card, and how it is made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ada_guard.local import LocalModel
from ada_guard.probe import LinearProbe
from ada_guard.probe.artefact import ProbeCard
from ada_guard.reference import CHAT_DIR, PROBE_FILE
from ada_guard.reference.build import build_probe
from ada_guard.reference.build import main as build
from ada_guard.reference.data import strays
from ada_guard.reference.measure import main as measure
from ada_guard.reference.measure import probe_digest
from ada_guard.reference.probing import RECIPE, Recipe, bundled_rows
from ada_guard.reference.rows import own_rows
from ada_guard.refusals import RefusalMatcher

SAVED = Path(__file__).parent.parent / "benchmarks/results/reference.json"


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.from_pretrained("reference")


@pytest.fixture(scope="module")
def probe() -> LinearProbe:
    return LinearProbe.load(PROBE_FILE)


@pytest.fixture(scope="module")
def card(probe: LinearProbe) -> ProbeCard:
    return probe.card


def test_the_saved_measurement_is_of_this_probe(probe: LinearProbe) -> None:
    assert json.loads(SAVED.read_text(encoding="utf-8"))["probe"] == probe_digest(probe)


def test_the_card_is_a_full_one_with_every_control(card: ProbeCard) -> None:
    assert card.format == 2
    report = card.report
    assert report is not None
    assert report.measured_on == "test"
    assert [control.name for control in report.controls] == [
        "last_token",
        "random_tokens",
        "bag_of_words",
        "shuffled_labels",
    ]
    for control in report.controls:
        assert control.collected
        assert not control.does_as_well
    assert set(card.thresholds) == {1, 5, 25, 100}
    assert card.calibrated_tokens >= RECIPE.calibrated_tokens


def test_the_card_keeps_its_target_on_rows_that_nothing_was_chosen_on(card: ProbeCard) -> None:
    assert card.report is not None
    assert card.target_fpr == RECIPE.target_fpr
    for row in card.report.false_flags:
        assert row.upper_bound <= RECIPE.target_fpr
        assert row.flagged <= RECIPE.target_fpr * row.benign
        assert row.found == row.harmful


def test_the_probe_was_made_by_the_recipe_as_it_is_for_the_weights_as_they_are(
    card: ProbeCard, model: LocalModel
) -> None:
    assert card.fingerprint == model.fingerprint
    assert card.model == "reference"
    assert card.report is not None
    data = card.report.data
    assert (data.schedule, data.benign_schedule) == (RECIPE.schedule, RECIPE.benign_schedule)
    assert data.max_tokens == RECIPE.deepest_tokens
    for split in ("fit", "validation", "test"):
        groups = [group for group in data.groups if group.split == split]
        by_grammar = {g.label: g.responses for g in groups if g.generator == "reference grammar"}
        assert by_grammar == {"harmful": 2 * RECIPE.count, "benign": 2 * RECIPE.count}
        assert sum(g.responses for g in groups if g.generator == "reference") <= 3 * RECIPE.count


def test_rows_of_one_checker_do_not_join_a_table_of_another_probe(tmp_path: Path) -> None:
    saved = json.loads(SAVED.read_text(encoding="utf-8"))
    (tmp_path / "table.json").write_text(json.dumps({**saved, "probe": "another"}), encoding="utf-8")
    with pytest.raises(SystemExit, match="of another probe: measure probe and cascade"):
        measure(["--out", str(tmp_path / "table.json"), "--only", "probe"])
    with pytest.raises(SystemExit, match="of other weights, seed or n"):
        measure(["--out", str(tmp_path / "table.json"), "--only", "rethink", "--n", "3"])


def test_rows_hold_answers_and_refusals_of_the_models_own(model: LocalModel) -> None:
    told: list[tuple[str, int, int]] = []
    rows = bundled_rows(
        model, Recipe(count=2, text_tokens=40, own_tokens=60), progress=lambda *state: told.append(state)
    )
    assert {row.split for row in rows} == {"fit", "validation", "test"}
    assert told[-1][:2] == ("rows", len(rows))
    assert len(rows) <= told[-1][2]
    own = [row for row in rows if row.generator == "reference"]
    is_refusal = RefusalMatcher().is_all_refusal
    assert {is_refusal(row.response) for row in own} == {True, False}
    assert {len(row.messages) for row in own} == {1, 3}
    for row in own:
        assert not row.harmful
        assert is_refusal(row.response) or not strays(row.response)
        # A forbidden text may stand in the conversation; the answer to it is what counts.
        assert is_refusal(row.response) or len(row.messages) == 1


def test_own_rows_without_an_answer_are_left_out() -> None:
    asked: list[int] = []

    def answering(messages: list[dict[str, str]], seed: int) -> str | None:
        asked.append(seed)
        return "I can't help with that." if len(messages) == 3 else None

    rows = list(own_rows("test", count=3, seed=4, answering=answering))
    assert [len(row.messages) for row in rows] == [3, 3, 3]
    assert asked == [4, 4, 5, 5, 6, 6]
    assert rows == list(own_rows("test", count=3, seed=4, answering=answering))


def test_the_probe_alone_needs_a_chat_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build(["--out", str(tmp_path), "--probe-only"])
    assert stopped.value.code == 2
    assert "--probe-only needs the chat model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_probe_alone_is_made_for_the_model_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # So small that it is made in seconds; what it yields is worth nothing.
    every = {"schedule": "every:20", "benign_schedule": "every:20"}
    small = Recipe(count=2, target_fpr=0.5, deepest_tokens=40, text_tokens=40, own_tokens=40, **every)
    (tmp_path / "chat").symlink_to(CHAT_DIR)
    build_probe(tmp_path, 1, small)
    made = LinearProbe.load(tmp_path / "probe.safetensors").card
    assert (made.format, made.model, made.target_fpr) == (2, "reference", 0.5)
    assert made.report is not None
    assert made.report.fitting.seed == 1
    assert "probe, controls: 4/4" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat", "probe.safetensors"]
