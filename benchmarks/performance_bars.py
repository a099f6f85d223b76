"""The goals that were set for the fast path, each with what was measured. The goals are typed, no figure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from performance_results import MACHINES, Results, Saved, number, pick, table

__all__ = ["BARS", "Bar", "bars_table"]

SIZES = {"cpu": "0.4b", "cuda": "8b"}
"""What the goals are set for. Other sizes are shown on the page, and decide nothing."""
ALL_SIZES = ("tiny", "0.1b", "0.4b", "1b", "8b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A goal.

    Attributes:
        what: In words.
        result: Name of the result.
        value: Of the saved result; None if it does not hold this.
        goals: Kind of machine -> bound.
        at_least: Whether the bound is a lower one.
        unit: Of value and bound.
    """

    what: str
    result: str
    value: Callable[[Saved], float | None]
    goals: dict[str, float]
    at_least: bool = False
    unit: str = "x"

    def bound(self, machine: str) -> str:
        """The goal, in words."""
        return f"{'≥' if self.at_least else '≤'} {self.goals[machine]:g}{self.unit}"

    def outcome(self, saved: Saved | None, machine: str) -> str:
        """What was measured, and whether that meets the goal."""
        value = None if saved is None or not _is_of_size(saved, machine) else self.value(saved)
        if value is None:
            return "not measured"
        shown = f"{value:.3f}x" if self.unit == "x" else number(value, self.unit)
        goal = self.goals[machine]
        if value >= goal if self.at_least else value <= goal:
            return f"{shown}: met"
        off = (goal - value if self.at_least else value - goal) / goal
        return f"{shown}: **missed** by {off:.0%}"


def bars_table(results: Results) -> str:
    """Every goal, on both kinds of machine."""
    rows = []
    for bar in BARS:
        cells = [bar.what]
        for machine in MACHINES:
            is_set = machine in bar.goals
            saved = results.load(bar.result, machine) if is_set else None
            cells += [bar.bound(machine), bar.outcome(saved, machine)] if is_set else ["", ""]
        rows.append(cells)
    return table(["", "bar, 2 CPU cores", "measured", "bar, datacentre GPU", "measured"], rows)


def _is_of_size(saved: Saved, machine: str) -> bool:
    """Whether a result is of the size of model that the goals are set for. One that uses no model of a size is."""
    sizes = {row["size"] for row in saved["rows"] if "size" in row} or {saved.get("size")} & {"tiny"}
    if not sizes and "model" in saved:
        sizes = {size for size in ALL_SIZES if f", {size}," in saved["model"]}
    return sizes <= {SIZES[machine]}


def _of_step(depth: int, key: str) -> Callable[[Saved], float | None]:
    def value(saved: Saved) -> float | None:
        row = pick(saved["rows"], family="llama", depth=depth, contender="fused")
        return None if row is None else row[key]

    return value


def _of_interval(saved: Saved) -> float | None:
    row = pick(saved["rows"], contender="probe, every 25")
    return None if row is None else 1 / row["throughput_to_generate"]


def _of_step_share(saved: Saved) -> float | None:
    share = _of_step(256, "check_to_unguarded")(saved)
    return None if share is None else share / 25 * 100


def _of_growth(saved: Saved) -> float | None:
    row = pick(saved.get("growth", []), family="llama", from_depth=256, to_depth=8000)
    return None if row is None else row["check_above_unguarded"]


def _of_other(name: str) -> Callable[[Saved], float | None]:
    def value(saved: Saved) -> float | None:
        row = pick(saved.get("comparisons", []), family="llama", depth=2000)
        return None if row is None else row.get(f"{name}_to_fused")

    return value


def _of_pool(new_tokens: int) -> Callable[[Saved], float | None]:
    def value(saved: Saved) -> float | None:
        row = pick(saved["rows"], streams=32, new_tokens=new_tokens, loaded="probe-only")
        return None if row is None else row["checks_per_s"]["pool"] / row["checks_per_s"]["alone"]

    return value


def _of_machinery(surface: str, schedule: str) -> Callable[[Saved], float | None]:
    def value(saved: Saved) -> float | None:
        row: Any = pick(saved["rows"], surface=surface, schedule=schedule, delta_tokens=1)
        return None if row is None else row["us_per_token"]["machinery"]["median"]

    return value


def _of_import(saved: Saved) -> float | None:
    row = pick(saved.get("imports", []), entry="ada_guard")
    return None if row is None else row["above_wall_ms"]


BARS = (
    Bar(
        what="step with a fused check at every token, to a step of `generate`, depth 256",
        result="decode_step",
        value=_of_step(256, "to_generate"),
        goals={"cpu": 1.25, "cuda": 1.05},
    ),
    Bar(
        what="the same, depth 2,000",
        result="decode_step",
        value=_of_step(2000, "to_generate"),
        goals={"cpu": 1.35, "cuda": 1.05},
    ),
    Bar(
        what="that step to our own without a check, depth 256",
        result="decode_step",
        value=_of_step(256, "to_unguarded"),
        goals={"cpu": 1.25, "cuda": 1.05},
    ),
    Bar(
        what="the same, depth 2,000",
        result="decode_step",
        value=_of_step(2000, "to_unguarded"),
        goals={"cpu": 1.35, "cuda": 1.05},
    ),
    Bar(
        what="a whole answer with checks every 25, to `generate`",
        result="whole_stream",
        value=_of_interval,
        goals={"cpu": 1.03, "cuda": 1.005},
    ),
    Bar(
        what="what a check at depth 256 adds to a step, over 25 tokens",
        result="decode_step",
        value=_of_step_share,
        goals={"cpu": 1.0},
        unit=" % of a step",
    ),
    Bar(
        what="what a check adds, depth 8,000 to depth 256, above what the plain step grows",
        result="decode_step",
        value=_of_growth,
        goals={"cpu": 1.3, "cuda": 1.3},
    ),
    Bar(
        what="a check of the authors' procedure to one of ours, depth 2,000",
        result="decode_step",
        value=_of_other("published"),
        goals={"cpu": 5, "cuda": 5},
        at_least=True,
    ),
    Bar(
        what="a check of an un-cached guard of the same size to one of ours, depth 2,000",
        result="decode_step",
        value=_of_other("uncached"),
        goals={"cpu": 50, "cuda": 50},
        at_least=True,
    ),
    Bar(
        what="checks/s of 32 companion streams in a probe-only pool to one at a time, 25 new tokens a check",
        result="pool",
        value=_of_pool(25),
        goals={"cpu": 3, "cuda": 10},
        at_least=True,
    ),
    Bar(
        what="the same, 1 new token a check",
        result="pool",
        value=_of_pool(1),
        goals={"cpu": 6, "cuda": 10},
        at_least=True,
    ),
    Bar(
        what="machinery of a session alone, a check at every token",
        result="machinery",
        value=_of_machinery("session", "every token"),
        goals={"cpu": 10},
        unit=" µs a token",
    ),
    Bar(
        what="machinery of `Guard.stream`, a check every 25",
        result="machinery",
        value=_of_machinery("stream", "every 25"),
        goals={"cpu": 10},
        unit=" µs a token",
    ),
    Bar(
        what="machinery of `Guard.stream`, a check at every token",
        result="machinery",
        value=_of_machinery("stream", "every token"),
        goals={"cpu": 10},
        unit=" µs a token",
    ),
    Bar(
        what="`import ada_guard`, beyond an empty interpreter",
        result="machinery",
        value=_of_import,
        goals={"cpu": 150},
        unit=" ms",
    ),
)
"""In the order of the page."""
