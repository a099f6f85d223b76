"""What a check at every token costs: a fused decode step against a plain one, as a ratio in one run.

A random model of 0.4 B parameters in bfloat16: timing does not depend on what the weights say. Plain, fused and
separate steps are interleaved on contexts of one depth, so that a noisy machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ada_guard.checking import AskProbe
from ada_guard.local.blocks import HookPoint
from ada_guard.local.context import LocalContext
from ada_guard.local.plan import plan_generation

HEADER = (11, 12, 13, 14)
"""Stand-ins for Safety Tokens: as many as the longest probe header of the paper's models has."""


def random_model(dtype: torch.dtype, device: str) -> Any:
    """A llama of 0.39 B parameters."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=19,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=16_384,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


def context(net: Any, depth: int, check_pass: str) -> LocalContext:
    """A context of `depth` random tokens, prefilled."""
    import threading

    spec = SimpleNamespace(probe=SimpleNamespace(ids=HEADER), rethink=SimpleNamespace(ids=HEADER), probe_is_prefix=True)
    local: Any = SimpleNamespace(model=net, lock=threading.Lock(), spec=spec, probe=None)
    ids = torch.randint(100, 30_000, (1, depth), device=net.device)
    plan = plan_generation(
        net, ids, attention_mask=torch.ones_like(ids), max_new_tokens=10_000, do_sample=False, use_cache=True
    )
    points = [HookPoint(layer=9, position="input_layernorm")]
    made = LocalContext(local, plan, check_pass=check_pass, hook_points=points)  # type: ignore[arg-type]  # a literal
    made.next_logits()
    return made


def plain_step(made: LocalContext) -> None:
    """One token, no check."""
    made.append([int(made.next_logits().argmax())])
    made.next_logits()


def checked_step(made: LocalContext) -> None:
    """One token and a check at it."""
    made.append([int(made.next_logits().argmax())])
    with made.reinjected(frozenset({AskProbe})) as header:
        float(header.hidden_states()[9][0])
    made.next_logits()


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, action="append", help="default: 256")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fused_step.json")
    options = parser.parse_args()
    net = random_model(torch.bfloat16, options.device)
    parameters = sum(p.numel() for p in net.parameters())
    results = []
    for depth in options.depth or [256]:
        steps: dict[str, tuple[LocalContext, Callable[[LocalContext], None]]] = {
            "plain": (context(net, depth, "separate"), plain_step),
            "fused": (context(net, depth, "fused"), checked_step),
            "separate": (context(net, depth, "separate"), checked_step),
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for round_ in range(options.rounds + 3):
            for name, (made, step) in steps.items():
                if options.device.startswith("cuda"):
                    torch.cuda.synchronize()
                started = time.perf_counter()
                step(made)
                if options.device.startswith("cuda"):
                    torch.cuda.synchronize()
                if round_ >= 3:
                    times[name].append((time.perf_counter() - started) * 1000)
        median = {name: statistics.median(values) for name, values in times.items()}
        spread = {name: statistics.quantiles(values, n=4)[::2] for name, values in times.items()}
        row = {
            "depth": depth,
            "rounds": options.rounds,
            "median_ms": median,
            "quartiles_ms": spread,
            "fused_to_plain": median["fused"] / median["plain"],
            "separate_to_plain": median["separate"] / median["plain"],
        }
        results.append(row)
        print(
            f"depth {depth}: plain {median['plain']:.1f} ms, fused check at every token {median['fused']:.1f} ms "
            f"({row['fused_to_plain']:.2f}x), separate pass {median['separate']:.1f} ms "
            f"({row['separate_to_plain']:.2f}x)"
        )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    saved = {
        "command": "python benchmarks/fused_step.py",
        "commit": commit.stdout.strip(),
        "model": f"random llama, {parameters / 1e9:.2f} B, bfloat16, probe layer 9 of 19, header of {len(HEADER)}",
        "device": options.device
        if options.device != "cpu"
        else f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "seed": 0,
        "results": results,
    }
    options.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
