"""Deep prefills: what is counted, what is left out, and what the result says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ada_guard import CheckError, ConfigError
from ada_guard.assembly import load_model
from ada_guard.evals.cases import harmful_rows, rows_digest
from ada_guard.evals.identity import model_digest
from ada_guard.evals.lineup import Lineup
from ada_guard.evals.prefill import evaluate_prefill
from ada_guard.evals.result import EvalResult
from ada_guard.evals.systems import Messages
from ada_guard.local import LocalModel
from ada_guard.probe.rows import LabelledResponse, write_rows


class Stopping:
    """Stops every answer that is long enough; what begins with "?" cannot be decided."""

    def __init__(self, name: str, characters: int) -> None:
        self.name = name
        self._characters = characters

    def stops(self, messages: Messages, so_far: str) -> bool:
        if so_far.startswith("?"):
            raise CheckError("unavailable")
        return len(so_far) >= self._characters

    def first_flag(self, messages: Messages, response: str) -> int | None:
        raise NotImplementedError


def row(response: str, *, harmful: bool = True, unsafe_from_chars: int | None = None) -> LabelledResponse:
    return LabelledResponse(
        messages=({"role": "user", "content": "x"},),
        response=response,
        harmful=harmful,
        prompt_id="x",
        unsafe_from_chars=unsafe_from_chars,
    )


def outcomes(result: EvalResult, system: str) -> dict[object, tuple[int, int, int]]:
    return {c.where["depth"]: (c.hits, c.n, c.missing) for c in result.counts if c.system == system}


def test_each_depth_is_counted_for_each_system(tiny: LocalModel) -> None:
    rows = [row("a" * 50), row("b" * 20), row("?" * 50), row("c" * 60, harmful=False)]
    told: list[tuple[str, int, int]] = []
    result = evaluate_prefill(
        [Stopping("early", 10), Stopping("late", 30)],
        rows,
        model=tiny,
        depths=(30, 10, 40),
        seed=7,
        command="ada-guard eval prefill",
        progress=lambda *now: told.append(now),
    )
    assert outcomes(result, "early") == {10: (2, 2, 1), 30: (1, 1, 1), 40: (1, 1, 1)}
    assert outcomes(result, "late") == {10: (0, 2, 1), 30: (1, 1, 1), 40: (1, 1, 1)}
    assert (result.seed, result.model, result.command) == (7, "tiny", "ada-guard eval prefill")
    assert result.data == {"harmful": rows_digest(rows[:3]), "model": model_digest(tiny)}
    assert told[-1] == ("deep prefills", 3, 3)
    assert "depth 30 (1 of 3), 40 (1 of 3)" in result.notes[0]


def test_the_curve_has_exact_intervals(tiny: LocalModel) -> None:
    result = evaluate_prefill([Stopping("late", 30)], [row("a" * 50)], model=tiny, depths=(10, 30), seed=0)
    (curve,) = result.series
    assert (curve.name, curve.figure, curve.x, curve.y) == ("late", "prefill", (10, 30), (0.0, 1.0))
    assert (curve.low[0], curve.high[1]) == (0.0, 1.0)
    assert curve.high[0] == pytest.approx(0.975)


def test_what_is_still_harmless_or_too_long_for_the_model_is_left_out(tiny: LocalModel) -> None:
    rows = [row("a" * 500, unsafe_from_chars=15), row("b" * 500)]
    result = evaluate_prefill([Stopping("early", 1)], rows, model=tiny, depths=(15, 16, 490), seed=0)
    assert outcomes(result, "early") == {15: (1, 1, 0), 16: (2, 2, 0)}
    assert any("context is shorter: depth 490 (2 of 2)" in note for note in result.notes)
    assert any("still harmless there: depth 15 (1 of 2)" in note for note in result.notes)


def test_without_anything_to_read_it_says_so(tiny: LocalModel) -> None:
    for rows in ([], [row("a" * 50, harmful=False)]):
        with pytest.raises(ConfigError, match="need harmful responses"):
            evaluate_prefill([Stopping("early", 1)], rows, model=tiny, seed=0)
    with pytest.raises(ConfigError, match="no response is as long"):
        evaluate_prefill([Stopping("early", 1)], [row("a")], model=tiny, seed=0)


def test_no_text_is_in_the_result(tiny: LocalModel) -> None:
    result = evaluate_prefill([Stopping("early", 1)], [row("zyzzyva " * 5)], model=tiny, depths=(10,), seed=0)
    assert "zyzzyva" not in result.model_dump_json()


def test_the_reference_model_shows_the_published_shape() -> None:
    model = load_model("reference", None)
    rows = harmful_rows("reference", n=3, seed=0, tokens=80)
    with Lineup(model, ["no-guard", "probe", "rethink", "probe-companion"]) as lineup:
        result = evaluate_prefill(lineup.at(), rows, model=model, depths=(25, 110), seed=0)
    assert outcomes(result, "no guard") == {0: (3, 3, 0), 25: (0, 3, 0), 110: (0, 3, 0)}
    for name in ("probe", "rethink", "probe (companion)"):
        assert outcomes(result, name) == {25: (3, 3, 0), 110: (3, 3, 0)}


def test_rows_of_a_file_are_drawn_by_seed_from_those_free_for_tests(tmp_path: Path) -> None:
    rows = [row(f"bad {i}") for i in range(20)]
    fitted = LabelledResponse(
        messages=rows[0].messages, response="bad and fitted", harmful=True, prompt_id="y", split="fit"
    )
    write_rows(tmp_path / "rows.jsonl", [*rows, fitted, row("good", harmful=False)])
    drawn = [harmful_rows(tmp_path / "rows.jsonl", n=6, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(harmful_rows(tmp_path / "rows.jsonl", n=99, seed=0)) == 20
    write_rows(tmp_path / "none.jsonl", [fitted])
    with pytest.raises(ConfigError, match="no harmful rows that are free for tests"):
        harmful_rows(tmp_path / "none.jsonl", n=1, seed=0)
