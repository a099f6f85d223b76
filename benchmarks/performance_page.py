"""The blocks of `docs/performance.md`, from saved results. Measures nothing; what is missing is said to be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from performance_bars import bars_table
from performance_plots import PICTURES
from performance_results import Results, Saved, number, pick, table, times

__all__ = ["page_blocks"]

STEPS = ("generate", "unguarded", "fused", "rethink", "cascade", "separate")
OTHERS = ("published", "published_copy", "uncached")


def page_blocks(folder: Path) -> dict[str, Callable[[], str]]:
    """Name of a block in the page -> what writes it.

    Args:
        folder: Of the results.
    """
    results = Results(folder)
    by_result = {
        "step": ("decode_step", step_table),
        "levers": ("decode_step", levers_table),
        "others": ("decode_step", others_table),
        "growth": ("decode_step", growth_table),
        "stream": ("whole_stream", stream_table),
        "unsafe": ("whole_stream", unsafe_table),
        "guards": ("streaming_guards", guards_table),
        "streams": ("pool", streams_table),
        "machinery": ("machinery", machinery_table),
        "import": ("machinery", import_table),
    }
    return {
        "bars": partial(bars_table, results),
        **{block: partial(results.blocks, name, write) for block, (name, write) in by_result.items()},
        **{f"picture-{name}": partial(picture_line, results, name) for name in PICTURES},
        "missing": results.missing,
    }


def picture_line(results: Results, name: str) -> str:
    """The picture, if there is something to be drawn."""
    picture = PICTURES[name]
    return f"![{picture.says}](performance/{name}.svg)" if picture.data(results) else ""


def step_table(saved: Saved) -> str:
    """Steps with checks, by family and depth."""
    rows = []
    shown = [row for row in saved["rows"] if row["contender"] in STEPS]
    for row in shown:
        ratio, own = (times(row.get(key), row.get(f"{key}_quartiles")) for key in ("to_generate", "to_unguarded"))
        cells = [row["family"], f"{row['depth']:,}", f"`{row['contender']}`", number(row["median_ms"], " ms")]
        rows.append([*cells, ratio, own, number(row.get("check_ms"), " ms")])
    columns = ["family", "depth", "step", "median", "to `generate` (quartiles)", "to `unguarded`", "check adds"]
    return f"{'; '.join(saved['models'].values())}.\n\n{_legend(shown)}\n\n{table(columns, rows)}"


def levers_table(saved: Saved) -> str:
    """The fused check with each lever alone, and without one."""
    names = ("fused", "no_shortcuts", "concatenated")
    shown = [row for row in saved["rows"] if row["contender"] in names or row["contender"].startswith("only_")]
    rows = []
    for row in shown:
        low, high = row["check_quartiles_ms"]
        check = f"{number(row['check_ms'], ' ms')} ({number(low)} to {number(high)})"
        cells = [row["family"], f"{row['depth']:,}", f"`{row['contender']}`"]
        rows.append([*cells, times(row["to_generate"], row["to_generate_quartiles"]), check])
    columns = ["family", "depth", "step", "to `generate` (quartiles)", "check adds (quartiles)"]
    return f"{_legend(shown)}\n\n{table(columns, rows)}"


def others_table(saved: Saved) -> str:
    """What others do at a check, and how many of our checks that is."""
    shown = [row for row in saved["rows"] if row["contender"] in OTHERS]
    rows = []
    for row in shown:
        beside = pick(saved["comparisons"], family=row["family"], depth=row["depth"]) or {}
        cells = [row["family"], f"{row['depth']:,}", f"`{row['contender']}`", number(row["median_ms"], " ms")]
        ours = [number(beside.get(key), " ms") for key in ("fused_check_ms", "counted_as_ms")]
        rows.append([*cells, *ours, times(beside.get(f"{row['contender']}_to_fused"))])
    columns = ["family", "depth", "check", "takes", "ours adds", "which counts as", "ratio"]
    floor = "Where ours adds less than 1 % of a step, it counts as that much: less is noise."
    return f"{_legend(shown)}\n\n{floor}\n\n{table(columns, rows)}"


def growth_table(saved: Saved) -> str:
    """What grows with depth, and how much."""
    rows = [
        [
            row["family"],
            f"{row['from_depth']:,} to {row['to_depth']:,}",
            *(times(row[key]) for key in ("generate_step", "unguarded_step", "fused_step", "check")),
        ]
        for row in saved["growth"]
    ]
    columns = ["family", "depth", "step of `generate`", "our step", "our step with a check", "what a check adds"]
    return table(columns, rows)


def stream_table(saved: Saved) -> str:
    """Whole answers."""
    columns = ["", "what it is", "tokens/s", "throughput to `generate`", "without the prompt: time to `generate`"]
    columns += ["first text", "to `generate`", "between releases, p50 / p99", "checks", "checks' share of the time"]
    rows = []
    for row in saved["rows"]:
        low, high = row["throughput_range"]
        p50, p99 = row.get("gap_p50_ms"), row.get("gap_p99_ms")
        share = row.get("check_share")
        rows.append(
            [
                row["contender"],
                row["counted"],
                number(row["tokens_per_s"]),
                f"{row['throughput_to_generate']:.3f}x ({low:.3f} to {high:.3f})",
                times(row["block_to_generate"], row["block_quartiles"]),
                f"{number(row['first_ms'], ' ms')}, at token {row['first_tokens']}",
                times(row["first_to_generate"]),
                "" if p50 is None else f"{number(p50)} / {number(p99)} ms",
                f"{row['checks']:g}",
                "" if share is None else f"{share:.1%}",
            ]
        )
    first = saved["rows"][0]
    prompt = f"prompt of {saved['prompt_tokens']} tokens" if "prompt_tokens" in saved else ""
    about = "; ".join(filter(None, [saved["model"], prompt, f"{first['answers']} answers of {first['tokens']} tokens"]))
    return f"{about}.\n\n{table(columns, rows)}"


def unsafe_table(saved: Saved) -> str:
    """What is shown and generated from the first unsafe token on."""
    rows = [
        [
            row["contender"],
            row["schedule"],
            row["release"],
            f"{row['shown_mean']:.3g} ({row['shown_most']})",
            f"{row['generated_after_mean']:.3g} ({row['generated_after_most']})",
        ]
        for row in saved["planted"]
    ]
    columns = ["", "checks", "release", "unsafe tokens shown, mean (most)", "generated after the first, mean (most)"]
    return f"Places of the unsafe token: {saved['planted'][0]['planted']}.\n\n{table(columns, rows)}"


def guards_table(saved: Saved) -> str:
    """Guards before the same scripted model and checker."""
    columns = ["guard", "setting", "a check costs", "first text", "between releases, p50 / p99"]
    columns += ["text is late, p50 / p99"]
    columns += ["whole answer", "checks", "shown from the violation on", "generated behind it", "consumer is told by"]
    rows = []
    for row in saved["rows"]:
        costs = "" if row["check_ms"] is None else f"{row['check_ms']:g} ms, {row.get('check_at') or ''}".rstrip(", ")
        head = [row["system"], row["setting"], costs]
        if row.get("error") or "total_ratio" not in row:
            rows.append([*head, f"could not be built: {row.get('error')}", *[""] * 7])
            continue
        rows.append(
            [
                *head,
                _median(row["first_text_ms"], " ms"),
                _tail(row["inter_release_ms"]),
                _tail(row.get("token_lag_ms")),
                _median(row["total_ratio"], "x"),
                f"{row['checks']:g}",
                _counted(row["shown_from_violation"]),
                _counted(row["generated_after_violation"]),
                ", ".join(row["notice"]) + _also_harmless(row),
            ]
        )
    about = (
        f"Answers of {saved['tokens']} tokens, one each {saved['token_ms']:g} ms; the violation is token "
        f"{saved['violation']}; {saved['rounds']} rounds. Medians; in brackets the most."
    )
    peers = ", ".join(f"{name} {version}" for name, version in saved.get("peers", {}).items())
    has_nemo = any(row.get("process") == "nemo" for row in saved["rows"])
    lacks = "" if has_nemo else " *NeMo Guardrails was not measured in this run.*"
    return f"{about}{lacks}\n\n{table(columns, rows)}\n\n{peers}"


def streams_table(saved: Saved) -> str:
    """Many companion streams at once."""
    columns = ["streams", "new tokens a check", "loaded", "checks/s, one at a time", "in turns", "in the pool"]
    columns += ["pool to one at a time", "to turns"]
    columns += ["ratio of CPU time (range)", "check in the pool, p50 / p99", "KV memory a stream", "weights"]
    rows = []
    for row in saved["rows"]:
        rate, (low, high) = row["checks_per_s"], row["cpu_ratio_range"]
        rows.append(
            [
                str(row["streams"]),
                str(row["new_tokens"]),
                row.get("loaded", "whole"),
                number(rate["alone"]),
                number(rate.get("turns")),
                number(rate["pool"]),
                times(rate["pool"] / rate["alone"]),
                times(rate["pool"] / rate["turns"] if "turns" in rate else None),
                f"{number(row['cpu_ratio'])} ({number(low)} to {number(high)})",
                f"{number(row['p50_ms']['pool'])} / {number(row['p99_ms']['pool'])} ms",
                number(row["kv_mib_per_stream"], " MiB"),
                number(row.get("weights_mib"), " MiB"),
            ]
        )
    loads = [
        f"{name}: {number(cost['s'], ' s')}, {number(cost['resident_mib'], ' MiB')}"
        for name, cost in saved.get("loading", {}).items()
    ]
    loaded = f"\n\nLoading takes, {'; '.join(loads)}." if loads else ""
    return f"{saved['model']}.\n\n{table(columns, rows)}{loaded}"


def machinery_table(saved: Saved) -> str:
    """The guard without any model."""
    rows = []
    for row in saved["rows"]:
        us = row.get("us_per_token", {})
        if "machinery" in us:
            spread = us["machinery"]
            cells = [f"`{row['surface']}`", number(row["delta_tokens"]), row["schedule"], f"{row['tokens']:,}"]
            rows.append([*cells, f"{number(spread['median'])} µs ({number(spread['q1'])} to {number(spread['q3'])})"])
    return table(["", "tokens of a delta", "checks", "tokens", "machinery, a token (quartiles)"], rows)


def import_table(saved: Saved) -> str:
    """What an import takes in a fresh interpreter."""
    rows = [
        [
            f"`{row['entry']}`",
            number(row["above_wall_ms"], " ms"),
            number(row["wall_ms"]["median"], " ms"),
            number(row["cpu_ms"]["median"], " ms"),
            str(row["modules"]),
            str(row["n"]),
        ]
        for row in saved.get("imports", ())
    ]
    columns = ["", "beyond an empty interpreter (least)", "whole process, median", "its CPU time", "modules", "n"]
    return table(columns, rows) if rows else "*Imports were not timed in this run.*"


def _legend(rows: list[Mapping[str, Any]]) -> str:
    """What each contender is, once."""
    counted = {row["contender"]: row["counted"] for row in rows}
    return "\n".join(f"- `{name}`: {what}" for name, what in counted.items())


def _also_harmless(row: Mapping[str, Any]) -> str:
    """What went wrong with the answer that no guard has to cut."""
    told = ", ".join(row.get("benign_notice", []))
    if told:
        return f"; *a harmless answer: {told}*"
    return "" if row.get("benign_shown_whole", True) else "; *a harmless answer was not shown whole*"


def _median(spread: Mapping[str, Any] | None, unit: str) -> str:
    return "" if spread is None else number(spread["median"], unit)


def _tail(tail: Mapping[str, float] | None) -> str:
    return "" if tail is None else f"{number(tail['p50'])} / {number(tail['p99'])} ms"


def _counted(counted: Mapping[str, float]) -> str:
    return f"{counted['median']:g} ({counted['most']:g})"
