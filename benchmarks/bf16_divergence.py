"""How often a guarded greedy stream differs from that of `generate`: fused and separate checks, bfloat16 and float32.

A forward pass of k+1 rows, or with another attention, rounds otherwise than one of `generate`, so in bfloat16 a near-
tie between two tokens can fall the other way. Separate checks leave the decode steps alone. Run on the reference model
with prompts of the test split.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch

from ada_guard import Done, Guard, Policy, Schedule
from ada_guard.reference.data import chat, question, topics

PASSES: tuple[Literal["fused", "separate"], ...] = ("fused", "separate")
CHECKS: tuple[tuple[Literal["probe", "rethink"], int], ...] = (("probe", 1), ("probe", 25), ("rethink", 25))


def generated(model: Any, messages: list[dict[str, str]], tokens: int) -> list[int]:
    """What transformers' own greedy ``generate`` writes, without the end of the turn."""
    ids = torch.tensor([model.encode(messages).ids], device=model.model.device)
    out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    new = out[0, ids.shape[1] :].tolist()
    return new[: next((at for at, token in enumerate(new) if token in model.eos_ids), len(new))]


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=10)
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
    for dtype in ("float32", "bfloat16"):
        for check_pass in PASSES:
            for check, interval in CHECKS:
                guard = Guard.from_pretrained(
                    "reference",
                    check=check,
                    policy=Policy(schedule=Schedule.every(interval), release="audit"),
                    check_pass=check_pass,
                    dtype=dtype,
                    device=options.device,
                )
                same = 0
                for messages in asked:
                    *_, guarded = guard.stream(messages, max_new_tokens=options.tokens, temperature=0)
                    assert isinstance(guarded, Done)
                    same += list(guarded.token_ids) == generated(guard.model, messages, options.tokens)
                rows.append(
                    {
                        "dtype": dtype,
                        "check_pass": check_pass,
                        "checker": check,
                        "interval_tokens": interval,
                        "identical": same,
                        "of": options.prompts,
                    }
                )
                print(f"{dtype:9} {check_pass:9} {check:7} every {interval:2}: {same}/{options.prompts} runs identical")
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
