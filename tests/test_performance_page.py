"""The page of performance: figures of saved results alone, what is missing named, pictures that tell their data."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
STEP = {"family": "llama", "size": "0.4b", "rounds": 20, "median_ms": 50.0, "quartiles_ms": [49.0, 51.0]}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "q1": median, "q3": median}


def steps(fused: float) -> dict[str, Any]:
    """A result of `decode_step.py`."""
    rows = [
        {
            **STEP,
            "depth": depth,
            "contender": name,
            "counted": f"a step of {name}",
            "to_generate": ratio,
            "to_generate_quartiles": [ratio, ratio],
            "to_unguarded": ratio,
            "to_unguarded_quartiles": [ratio, ratio],
            "check_ms": 5.0,
            "check_quartiles_ms": [4.0, 6.0],
            "check_to_unguarded": 0.1,
        }
        for depth in (256, 2000, 8000)
        for name, ratio in (("generate", 1.0), ("unguarded", 1.0), ("fused", fused), ("only_few_rows", 1.5))
    ]
    other = {**STEP, "depth": 2000, "contender": "published", "counted": "a copy", "check_ms": 60.0}
    compared = {
        "family": "llama",
        "depth": 2000,
        "fused_check_ms": 5.0,
        "counted_as_ms": 5.0,
        "published_to_fused": 12.0,
        "uncached_to_fused": 40.0,
    }
    grown = dict.fromkeys(("generate_step", "unguarded_step", "fused_step", "check", "check_above_unguarded"), 1.2)
    return {
        "models": {"llama": "random llama"},
        "comparisons": [compared],
        "growth": [{"family": "llama", "from_depth": 256, "to_depth": 8000, **grown}],
        "rows": [*rows, other],
    }


SAVED: dict[str, dict[str, Any]] = {
    "decode_step": steps(1.2),
    "whole_stream": {
        "model": "random llama, 0.4b, bfloat16",
        "prompt_tokens": 100,
        "rows": [
            {
                "contender": "probe, every 25",
                "counted": "fused probe checks",
                "answers": 3,
                "tokens": 100,
                "tokens_per_s": 20.0,
                "throughput_to_generate": 0.96,
                "throughput_range": [0.95, 0.97],
                "block_to_generate": 1.04,
                "block_quartiles": [1.0, 1.1],
                "first_ms": 900.0,
                "first_to_generate": 4.0,
                "first_tokens": 25,
                "checks": 4.0,
            }
        ],
        "planted": [
            {
                "contender": "probe",
                "schedule": "every 25",
                "release": "hold",
                "planted": 9,
                "shown_mean": 0.0,
                "shown_most": 0,
                "generated_after_mean": 12.0,
                "generated_after_most": 24,
            }
        ],
    },
    "streaming_guards": {
        "tokens": 300,
        "token_ms": 5.0,
        "violation": 120,
        "rounds": 3,
        "rows": [
            {
                "system": "ada-guard",
                "setting": "every 25, hold",
                "check_ms": 20.0,
                "check_at": "server",
                "error": None,
                "first_text_ms": {"median": 160.0},
                "inter_release_ms": {"p50": 120.0, "p99": 130.0},
                "token_lag_ms": {"p50": 60.0, "p99": 150.0},
                "total_ratio": {"median": 1.01},
                "checks": 12,
                "shown_from_violation": {"median": 0, "most": 0},
                "generated_after_violation": {"median": 12, "most": 13},
                "notice": ["replacement"],
            },
            {"system": "broken", "setting": "any", "check_ms": None, "check_at": None, "error": "ImportError"},
        ],
    },
    "pool": {
        "model": "random llama",
        "rows": [
            {
                "streams": 32,
                "new_tokens": 25,
                "loaded": loaded,
                "cpu_ratio": 4.0,
                "cpu_ratio_range": [3.0, 5.0],
                "checks_per_s": {"pool": rate, "alone": 10.0},
                "p50_ms": {"pool": 100.0},
                "p99_ms": {"pool": 120.0},
                "kv_mib_per_stream": 6.0,
                "weights_mib": 350.0,
            }
            for loaded, rate in (("whole", 20.0), ("probe-only", 35.0))
        ],
    },
    "machinery": {
        "rows": [
            {
                "surface": surface,
                "delta_tokens": 1,
                "schedule": "every token",
                "tokens": 1000,
                "us_per_token": {"machinery": spread(us)},
            }
            for surface, us in (("session", 4.0), ("stream", 12.0))
        ],
        "imports": [
            {
                "surface": "import",
                "entry": "ada_guard",
                "n": 15,
                "wall_ms": spread(120.0),
                "cpu_ms": spread(100.0),
                "above_wall_ms": 90.0,
                "modules": 130,
            }
        ],
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name, saved in SAVED.items():
        save(tmp_path / f"{name}.json", saved)
    return tmp_path


def save(path: Path, saved: dict[str, Any]) -> None:
    about = {"command": f"python benchmarks/{path.name}", "machine": "CPU, 2 cores", "versions": {"torch": "2"}}
    path.write_text(json.dumps(about | saved), encoding="utf-8")


def blocks(folder: Path) -> dict[str, str]:
    page = importlib.import_module("performance_page")
    return {name: write() for name, write in page.page_blocks(folder).items()}


def bar(folder: Path, what: str) -> list[str]:
    line = next(line for line in blocks(folder)["bars"].splitlines() if what in line)
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_goal_stands_beside_what_was_measured_met_or_missed(folder: Path) -> None:
    assert bar(folder, "to a step of `generate`, depth 256")[:2] == ["≤ 1.25x", "1.200x: met"]
    assert bar(folder, "a whole answer")[:2] == ["≤ 1.03x", "1.042x: **missed** by 1%"]
    assert bar(folder, "an un-cached guard")[:2] == ["≥ 50x", "40.000x: **missed** by 20%"]
    assert bar(folder, "25 new tokens")[:2] == ["≥ 3x", "3.500x: met"]
    assert bar(folder, "import ada_guard")[:2] == ["≤ 150 ms", "90.0 ms: met"]


def test_what_is_not_in_a_result_is_not_measured(folder: Path) -> None:
    assert bar(folder, "the same, 1 new token")[1] == "not measured"
    assert bar(folder, "to a step of `generate`, depth 256")[3] == "not measured"


def test_another_size_than_that_of_the_goal_decides_nothing(folder: Path) -> None:
    save(folder / "decode_step.cuda.json", steps(1.04))
    assert bar(folder, "to a step of `generate`, depth 256")[3] == "not measured"
    large = json.loads(json.dumps(steps(1.04)).replace('"0.4b"', '"8b"'))
    save(folder / "decode_step.cuda.json", large)
    assert bar(folder, "to a step of `generate`, depth 256")[3] == "1.040x: met"


def test_without_results_the_page_says_so_and_shows_no_picture(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.unlink()
    found = blocks(folder)
    assert "≤ 1.25x | not measured" in found.pop("bars")
    assert "A CUDA machine" in (missing := found.pop("missing"))
    assert "`decode_step.py`" in missing
    for name, text in found.items():
        assert not text if name.startswith("picture-") else text.startswith("*Not measured yet: `python benchmarks/")


def test_results_of_both_machines_stand_side_by_side(folder: Path) -> None:
    save(folder / "decode_step.cuda.json", {**steps(1.04), "machine": "some GPU"})
    found = blocks(folder)
    assert "CPU, 2 cores" in found["step"]
    assert "some GPU" in found["step"]
    assert "On a CUDA machine: `whole_stream.py`" in found["missing"]


def test_a_contender_that_could_not_be_built_is_shown_as_that(folder: Path) -> None:
    assert "| broken | any |  | could not be built: ImportError |" in blocks(folder)["guards"]


def test_tables_are_whole(folder: Path) -> None:
    for text in blocks(folder).values():
        widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


def test_a_picture_is_the_same_text_for_the_same_data_and_stale_for_others(folder: Path, tmp_path: Path) -> None:
    plots = importlib.import_module("performance_plots")
    results = importlib.import_module("performance_results").Results(folder)
    for name in plots.PICTURES:
        path = tmp_path / "pictures" / f"{name}.svg"
        assert not plots.is_fresh(results, name, path)
        plots.write(results, name, path)
        first = path.read_bytes()
        assert plots.is_fresh(results, name, path)
        plots.write(results, name, path)
        assert path.read_bytes() == first
        assert str(tmp_path).encode() not in first
    save(folder / "decode_step.json", steps(1.3))
    assert not plots.is_fresh(results, "step", tmp_path / "pictures" / "step.svg")
    (folder / "decode_step.json").unlink()
    assert not plots.is_fresh(results, "step", tmp_path / "pictures" / "step.svg")
    plots.write(results, "step", tmp_path / "pictures" / "step.svg")
    assert plots.is_fresh(results, "step", tmp_path / "pictures" / "step.svg")


def test_the_committed_pictures_are_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert importlib.import_module("tables").stale_pictures() == [], "run: python benchmarks/tables.py"
