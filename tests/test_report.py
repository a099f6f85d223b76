"""The report: everything that was found is on one page, which needs nothing beside it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ada_guard import ConfigError
from ada_guard.evals.attacks.attempt import SUCCEEDED
from ada_guard.evals.overrefusal import WHAT as OVER_REFUSAL
from ada_guard.evals.report import write_report
from ada_guard.evals.report.figures import drawings
from ada_guard.evals.report.summary import summary
from ada_guard.evals.report.tables import as_markdown, tables
from ada_guard.evals.result import Count, EvalResult, Quantity, Series


def series(name: str, figure: str = "prefill", **more: object) -> Series:
    lines: dict[str, object] = {"x_label": "depth, tokens", "y_label": "rate", "x": (25, 100), "y": (0.5, 1.0)} | more
    return Series.model_validate({"name": name, "figure": figure, **lines})


def result(**parts: object) -> EvalResult:
    whole: dict[str, object] = {
        "evaluation": "prefill",
        "title": "Deep prefills",
        "command": "ada-guard eval prefill",
        "model": "reference",
        "seed": 3,
        "seconds": 1.5,
        "counts": [
            Count(what="detected", system="no guard", where={"depth": 25}, hits=1, n=30),
            Count(what="detected", system="probe", where={"depth": 25}, hits=29, n=29, missing=1),
            Count(what="detected", system="probe", where={"depth": 2500}, hits=0, n=0, missing=30),
        ],
        "quantities": [Quantity(what="AUROC", system="probe", value=0.998, n=300)],
        "series": [series("probe")],
    }
    return EvalResult.model_validate(whole | parts)


def test_the_page_holds_its_plots_and_loads_nothing(tmp_path: Path) -> None:
    page = write_report([result()], tmp_path)
    text = page.read_text()
    assert text.count("<svg") == 1
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["prefill-prefill.png"]
    loaded = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            loaded.extend(
                value for name, value in attrs if name in ("src", "href") and not (value or "#").startswith("#")
            )

    Links().feed(re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert loaded == []
    assert "url(http" not in text


def test_a_figure_may_be_broken_before_its_interval_so_that_wide_tables_fit(tmp_path: Path) -> None:
    text = write_report([result()], tmp_path).read_text()
    assert "<td><span>29/29</span> <span>(88-100 %),</span> <span>1 missing</span></td>" in text
    assert "<td><span>0.998</span></td>" in text


def test_names_from_outside_are_no_markup(tmp_path: Path) -> None:
    text = write_report([result(model="<script>alert(1)</script>", notes=["a < b"])], tmp_path).read_text()
    assert "<script>" not in text
    assert "a &lt; b" in text


def test_missing_runs_are_told_and_are_no_defence() -> None:
    table = tables(result())[0]
    assert table.columns == ("Depth", "no guard", "probe")
    assert table.rows[0] == ("25", "1/30 (0-17 %)", "29/29 (88-100 %), 1 missing")
    assert table.rows[1] == ("2,500", "", "no outcome, 30 missing")


def test_a_table_is_markdown_too() -> None:
    assert as_markdown(tables(result())[1]).splitlines() == [
        "**AUROC (n = 300)**",
        "",
        "| probe |",
        "| --- |",
        "| 0.998 |",
    ]


def test_figures_under_the_same_conditions_share_a_table() -> None:
    counts = [
        Count(what=what, system=system, where={"attack": "style", "prefill": prefill}, hits=hits, n=4)
        for what, hits in (("detected", 4), ("flagged though benign", 1))
        for system in ("rethink", "probe")
        for prefill in ("no", "yes")
    ]
    (table,) = tables(result(counts=counts, quantities=[]))
    assert table.columns == ("Prefill", "System", "Detected", "Flagged though benign")
    assert [row[:2] for row in table.rows] == [("no", "rethink"), ("no", "probe"), ("yes", "rethink"), ("yes", "probe")]
    assert {row[2:] for row in table.rows} == {("4/4 (40-100 %)", "1/4 (1-81 %)")}


def test_an_attack_in_all_its_variants_together_is_any_of_them() -> None:
    counts = [
        Count(what="attack succeeded", system="probe", where={"attack": "style", **more}, hits=1, n=4)
        for more in ({}, {"style": "json"}, {"style": "code"})
    ]
    (table,) = tables(result(counts=counts, quantities=[]))
    assert [row[0] for row in table.rows] == ["any", "json", "code"]


def test_the_first_screen_says_what_is_stopped_what_it_costs_and_what_broke_whom() -> None:
    schedules = [("default", "benign answers", 1), ("default", "own refusals", 0), ("every:1", "benign answers", 9)]
    flags = [
        Count(what=OVER_REFUSAL, system="probe", where={"schedule": schedule, "responses": kind}, hits=hits, n=10)
        for schedule, kind, hits in schedules
    ]
    broken = [
        Count(what=SUCCEEDED, system=system, where={"attack": "gcg"}, hits=hits, n=5)
        for system, hits in (("no guard", 5), ("probe", 2))
    ]
    guards, attacks = summary(
        [
            result(),
            result(evaluation="overrefusal", counts=flags),
            result(evaluation="attack-gcg", counts=broken),
        ]
    )
    assert guards.columns == (
        "System",
        "Stopped at 25",
        "Stopped at 2,500",
        "Benign responses flagged, schedule default",
    )
    assert guards.rows[1] == ("probe", "29/29 (88-100 %), 1 missing", "no outcome, 30 missing", "1/20 (0-25 %)")
    assert attacks.rows == (("gcg", "5/5 (48-100 %)", "2/5 (5-85 %)"),)


def test_results_of_several_models_are_told_apart(tmp_path: Path) -> None:
    page = write_report([result(), result(model="another")], tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "01-prefill-prefill.png",
        "02-prefill-prefill.png",
    }
    text = page.read_text()
    assert "Deep prefills (another)" in text
    ids = re.findall(r'<h2 id="([^"]+)"', text)
    assert len(set(ids)) == 2


def test_a_note_is_said_once_in_full_and_never_lost(tmp_path: Path) -> None:
    text = write_report([result(notes=["Mind this."]), result(notes=["Mind this."])], tmp_path).read_text()
    assert text.count("<p>Mind this.</p>") == 1
    assert text.count("As above: Mind this.") == 1


def test_the_page_says_what_was_not_run(tmp_path: Path) -> None:
    text = write_report([result()], tmp_path, {"attack-gcg": "no room in the context"}).read_text()
    assert "Not run: attack-gcg." in text


def test_each_trace_has_a_plot_of_its_own() -> None:
    (drawn,) = drawings(result(series=[series(str(i), "trace", marks={"cut": 50}) for i in range(5)]))
    assert len(drawn.figure.axes) == 5


def test_curves_that_never_leave_zero_are_counted_and_not_drawn() -> None:
    (drawn,) = drawings(result(series=[series("a", "first_flag"), series("b", "first_flag", y=(0, 0))]))
    assert "1 of 2 curves" in drawn.title
    assert drawings(result(series=[series("b", "first_flag", y=(0, 0))])) == []


def test_more_lines_than_can_be_told_apart_are_split_over_plots() -> None:
    drawn = drawings(result(series=[series(str(i)) for i in range(9)]))
    assert [drawing.name for drawing in drawn] == ["prefill-prefill-1", "prefill-prefill-2"]


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one result"):
        write_report([], tmp_path)


def test_results_survive_being_saved(tmp_path: Path) -> None:
    result().save(tmp_path / "a" / "prefill.json")
    assert EvalResult.load(tmp_path / "a" / "prefill.json") == result()


@pytest.mark.parametrize("written", ["", "{", '{"format": 1}', "[]"])
def test_what_is_no_result_is_refused(tmp_path: Path, written: str) -> None:
    (tmp_path / "x.json").write_text(written)
    with pytest.raises(ConfigError, match="is not a result"):
        EvalResult.load(tmp_path / "x.json")


def test_curves_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        series("x", y=(1.0,))


def test_what_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        result().save(tmp_path / "file" / "x.json")
    (tmp_path / "y.json").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        result().save(tmp_path / "y.json")
    assert not list(tmp_path.glob("*.partial"))
