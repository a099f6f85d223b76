"""How often a guarded greedy stream differs from the unguarded one: fused and separate checks, bfloat16 and float32.

A forward pass of k+1 rows rounds otherwise than one of a single row, so in bfloat16 a near-tie between two tokens can
fall the other way. Separate checks leave the decode steps alone. Run on the reference model with prompts of the test
split.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Literal

import torch

from ada_guard import Done, Guard, Policy, Schedule
from ada_guard.reference.data import chat, question, topics

Pass = Literal["fused", "separate"]


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bf16_divergence.json")
    options = parser.parse_args()
    rng = Random(3)
    asked = [
        [dict(m) for m in chat(question(rng.choice(topics("benign", "test")), rng, long=True))]
        for _ in range(options.prompts)
    ]
    rows = []
    passes: tuple[Pass, ...] = ("fused", "separate")
    for dtype in ("float32", "bfloat16"):
        for check_pass in passes:
            for interval in (25, 1):
                policy = Policy(schedule=Schedule.every(interval), release="audit")
                guard = Guard.from_pretrained(
                    "reference", policy=policy, check_pass=check_pass, dtype=dtype, device=options.device
                )
                settings = {"max_new_tokens": options.tokens, "temperature": 0}
                same = 0
                for messages in asked:
                    with_checks, without = (
                        list(guard.stream(messages, **settings)),
                        list(guard.unguarded(messages, **settings)),
                    )
                    guarded, plain = with_checks[-1], without[-1]
                    assert isinstance(guarded, Done)
                    assert isinstance(plain, Done)
                    same += guarded.token_ids == plain.token_ids
                rows.append(
                    {
                        "dtype": dtype,
                        "check_pass": check_pass,
                        "interval_tokens": interval,
                        "identical": same,
                        "of": options.prompts,
                    }
                )
                print(f"{dtype:9} {check_pass:9} every {interval:2}: {same}/{options.prompts} runs identical")
    saved = {
        "command": "python benchmarks/bf16_divergence.py",
        "model": "reference",
        "tokens": options.tokens,
        "device": options.device or "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "rows": rows,
    }
    options.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
