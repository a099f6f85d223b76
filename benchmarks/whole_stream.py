"""What a guarded stream costs from end to end, and what it lets through: `Guard.stream` against ``generate``.

Every contender writes the same answer to the same prompt, block by block in turns inside a running ``generate`` (see
`blocks`): throughput, time to the first released token, gaps between releases. What is shown and generated after an
unsafe token is counted on a smaller model (see `after_unsafe`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from after_unsafe import planted_rows
from blocks import Run, in_turns
from kit import SIZES, families, quantile, save
from stream_ways import INTERVAL, Contender, Stage, contenders, stage_of

from ada_guard.policy import SPARSEST_TOKENS


def answers_of(stage: Stage, ways: Mapping[str, Contender], *, tokens: int, device: str) -> dict[str, Run]:
    """One answer of each contender."""
    # Room for the tokens that a contender may be ahead, so that nobody's answer ends before the last block.
    most = tokens + max(INTERVAL, SPARSEST_TOKENS)
    started = {name: way.start(most, stage.checks_of(name)) for name, way in ways.items()}
    return in_turns(
        stage.model.model,
        stage.model.tokenizer,
        stage.prompt,
        started,
        tokens=tokens,
        block=INTERVAL,
        device=device,
    )


def timed_rows(
    stage: Stage, ways: Mapping[str, Contender], answers: Sequence[Mapping[str, Run]], tokens: int
) -> list[dict[str, Any]]:
    """One row for each contender: throughput, first release, gaps."""
    plain = [answer["generate"] for answer in answers]
    rows = []
    for name in answers[0]:
        runs, way = [answer[name] for answer in answers], ways.get(name)
        total = [sum(run.blocks_ms) for run in runs]
        # The first block holds the prefill, which is the same for all.
        blocks = [
            mine / other
            for run, theirs in zip(runs, plain, strict=True)
            for mine, other in zip(run.blocks_ms[1:], theirs.blocks_ms[1:], strict=True)
        ] or [mine / sum(theirs.blocks_ms) for mine, theirs in zip(total, plain, strict=True)]
        first = statistics.median(run.releases[0][0] for run in runs)
        gaps = [
            after - before
            for run in runs
            for (before, _), (after, _) in zip(run.releases, run.releases[1:], strict=False)
        ]
        whole = [sum(theirs.blocks_ms) / mine for mine, theirs in zip(total, plain, strict=True)]
        checks = stage.check_ms.get(name, [])
        row: dict[str, Any] = {
            "contender": name,
            "counted": way.counted if way else "transformers' generate with its TextStreamer",
            "schedule": way.schedule if way else "none",
            "release": way.release if way else "at once",
            "answers": len(runs),
            "tokens": tokens,
            "tokens_per_s": statistics.median(tokens * 1000 / ms for ms in total),
            "throughput_to_generate": statistics.median(whole),
            "throughput_range": (min(whole), max(whole)),
            "block_to_generate": statistics.median(blocks),
            "block_quartiles": (quantile(blocks, 0.25), quantile(blocks, 0.75)),
            "first_ms": first,
            "first_to_generate": first / statistics.median(theirs.releases[0][0] for theirs in plain),
            "first_tokens": runs[0].releases[0][1],
            "gaps": len(gaps),
            "checks": len(checks) / len(runs),
        }
        if gaps:
            row["gap_p50_ms"], row["gap_p99_ms"] = statistics.median(gaps), quantile(gaps, 0.99)
        if way and way.checks_wait:
            row["check_ms"] = statistics.median(checks)
            row["check_share"] = sum(checks) / sum(total)
        rows.append(row)
    return rows


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.4b")
    parser.add_argument("--family", choices=families(), default="llama")
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=100, help="of an answer, in whole blocks of the interval")
    parser.add_argument("--rounds", type=int, default=2, help="answers of each contender")
    parser.add_argument("--planted-size", choices=SIZES, default="tiny", help="model on which tokens are counted")
    parser.add_argument("--places", type=int, default=9, help="of the unsafe token, over one interval")
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.tokens % INTERVAL:
        parser.error(f"--tokens must be a multiple of {INTERVAL}")
    settings: dict[str, Any] = {
        "dtype": getattr(torch, options.dtype),
        "device": options.device,
        "prompt_words": options.prompt_words,
    }
    places = [INTERVAL + 1 + n * (INTERVAL - 1) // max(1, options.places - 1) for n in range(options.places)]
    planted = planted_rows(stage_of(options.planted_size, options.family, **settings), places)
    for row in planted:
        print(
            f"{row['contender']:10} {row['schedule']:9} {row['release']:12} shown {row['shown_mean']:5.1f} "
            f"(most {row['shown_most']}), generated after {row['generated_after_mean']:5.1f}"
        )
    stage = stage_of(options.size, options.family, **settings)
    ways = contenders(stage)
    answers_of(stage, ways, tokens=INTERVAL, device=options.device)  # warms up
    stage.check_ms.clear()
    answers = [answers_of(stage, ways, tokens=options.tokens, device=options.device) for _ in range(options.rounds)]
    rows = timed_rows(stage, ways, answers, options.tokens)
    for row in rows:
        share = f"  checks {row['check_share']:.1%} of the time" if "check_share" in row else ""
        print(
            f"{row['contender']:28} {row['tokens_per_s']:7.1f} tokens/s ({row['throughput_to_generate']:.3f}x), "
            f"block {row['block_to_generate']:.3f}x, first {row['first_ms']:7.0f} ms, gaps p50 "
            f"{row.get('gap_p50_ms', 0):6.1f} p99 {row.get('gap_p99_ms', 0):6.1f} ms{share}"
        )
    about = {
        "model": f"random {options.family}, {options.size}, {options.dtype}; companion and un-cached guard likewise",
        "prompt_tokens": len(stage.prompt),
        "planted_on": options.planted_size,
        "planted": planted,
    }
    save("whole_stream", rows, device=options.device, out=options.out, **about)


if __name__ == "__main__":
    main()
