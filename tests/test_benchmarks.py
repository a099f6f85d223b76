"""Every benchmark runs, on the smallest sizes, and saves what it promises. How long it takes is not looked at."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

DRY_RUNS: list[tuple[str, list[str], Mapping[str, set[str]]]] = [
    (
        "decode_step",
        ["--size", "tiny", "--rounds", "2", "--depth", "24", "--depth", "48", "--uncached-rounds", "1"],
        {
            "rows": {"family", "size", "depth", "contender", "counted", "rounds", "median_ms", "quartiles_ms"},
            "comparisons": {"fused_check_ms", "published_to_fused", "uncached_to_fused", "published_copied_bytes"},
            "growth": {"generate_step", "unguarded_step", "fused_step", "check", "check_above_unguarded"},
        },
    ),
    (
        "whole_stream",
        ["--size", "tiny", "--rounds", "2", "--tokens", "50", "--prompt-words", "10", "--places", "1"],
        {
            "rows": {
                "contender",
                "tokens_per_s",
                "throughput_to_generate",
                "block_to_generate",
                "first_ms",
                "gap_p99_ms",
            },
            "planted": {"contender", "schedule", "release", "shown_mean", "shown_most", "generated_after_most"},
        },
    ),
    (
        "streaming_guards",
        ["--size", "tiny", "--rounds", "2", "--nemo", "none"],
        {
            "rows": {
                "process",
                "system",
                "setting",
                "check_ms",
                "first_text_ms",
                "inter_release_ms",
                "token_lag_ms",
                "total_ratio",
                "checks",
                "shown_from_violation",
                "generated_after_violation",
                "notice",
                "stream_end_ms",
            },
        },
    ),
    (
        "pool",
        ["--size", "tiny", "--rounds", "2", "--streams", "1", "--streams", "3", "--new-tokens", "1"],
        {
            "rows": {
                "streams",
                "new_tokens",
                "loaded",
                "cpu_ratio",
                "cpu_ratio_range",
                "wall_ratio",
                "wall_ratio_to_turns",
                "checks_per_s",
                "p50_ms",
                "p99_ms",
                "kv_mib_per_stream",
                "weights_mib",
                "rows_per_pass",
            }
        },
    ),
    (
        "machinery",
        ["--size", "tiny", "--rounds", "2"],
        {
            "rows": {"surface", "delta_tokens", "schedule", "tokens", "us_per_token"},
            "settled": {"tokens", "us_per_token"},
            "imports": {"entry", "n", "wall_ms", "cpu_ms", "above_cpu_ms", "modules", "importtime_self_ms"},
        },
    ),
]
"""Script, arguments, and the keys that every entry of a list in its result has."""


@pytest.mark.parametrize(("script", "arguments", "promised"), DRY_RUNS, ids=[run[0] for run in DRY_RUNS])
def test_dry_run_saves_the_promised_figures_all_of_them_finite(
    script: str, arguments: list[str], promised: Mapping[str, set[str]], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert {"command", "commit", "machine", "versions", "seed"} <= saved.keys()
    for entries, keys in promised.items():
        assert saved[entries]
        assert all(keys <= entry.keys() for entry in saved[entries])
    assert all(math.isfinite(number) for number in _numbers(saved))


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value
