"""What collecting hidden states costs: one run a depth, a KV cache with forks, one pass over a tree; ratios in one run.

The three ways read the same states of the same responses (this is verified) at the Safety Tokens, 20 depths each, at
all layers. Responses are read in small groups, each group in all three ways one after the other, so that a noisy
machine disturbs all of them alike. The naive way is a loop of full forward passes over prompt, the first d tokens of
the response and the header, without a cache. Encoding and writing to disk are in none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ada_guard.local import LocalModel
from ada_guard.local.blocks import HookPoint, decoder_blocks, reading
from ada_guard.local.shortcuts import NO_SHORTCUTS
from ada_guard.policy import Schedule
from ada_guard.probe.cached_pass import CachedPass, hook_points
from ada_guard.probe.encoding import RowEncoder, random_ids
from ada_guard.probe.states import PLACES, Place
from ada_guard.probe.tree_pass import EncodedResponse, ReadStates, TreePass
from ada_guard.reference.rows import reference_rows

DEPTHS = list(range(25, 501, 25))
GROUP = 5
"""Responses that one way reads before the next one has its turn."""
PROMPT_TOKENS, HEADER = 40, (11, 12, 13, 14)
"""Of the random model. As many ids as the longest probe header of the paper's models has."""
SAFETY: tuple[Place, ...] = ("safety_tokens",)


def naive(
    model: Any, points: Sequence[HookPoint], header: Sequence[int], responses: Sequence[EncodedResponse]
) -> list[ReadStates]:
    """One full run for each depth of each response."""
    found: list[ReadStates] = []
    device = model.model.device
    for response in responses:
        by_layer: dict[int, list[torch.Tensor]] = {point.layer: [] for point in points}
        for depth in response.depths:
            ids = [*response.prompt_ids, *response.response_ids[:depth], *header]
            with model.lock, torch.inference_mode(), reading(model.model, points) as states:
                model.model(input_ids=torch.tensor([ids], device=device), use_cache=False, logits_to_keep=1)
            for layer, state in states.by_layer.items():
                by_layer[layer].append(state[0, -1].cpu())
        found.append({("safety_tokens", layer): torch.stack(each) for layer, each in by_layer.items()})
    return found


def reference_task(count: int) -> tuple[Any, list[EncodedResponse], dict[Place, Sequence[int]]]:
    """The reference model and long texts in its language, encoded as a collection encodes them."""
    model = LocalModel.from_pretrained("reference")
    every = Schedule.every(25)
    encoder = RowEncoder(model, schedule=every, benign_schedule=every, max_tokens=500)
    found: list[EncodedResponse] = []
    seed = 0
    while len(found) < count:
        for row in reference_rows("fit", count=count // 2 + 1, seed=seed):
            read = encoder.encode(0, row).response
            if read is not None and list(read.depths) == DEPTHS:
                found.append(read)
        seed += 1
    return model, found[:count], {"safety_tokens": model.spec.probe.ids, "random_tokens": random_ids(model)}


def random_task(
    count: int, dtype: torch.dtype, device: str
) -> tuple[Any, list[EncodedResponse], dict[Place, Sequence[int]]]:
    """A random llama of 0.11 B parameters: timing does not depend on what the weights say."""
    import threading

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    net: Any = LlamaForCausalLM(config).to(dtype=dtype, device=device).eval()
    # The cached way is that of a model which takes no shortcuts.
    model: Any = SimpleNamespace(model=net, lock=threading.Lock(), shortcuts=NO_SHORTCUTS)
    ids = torch.randint(100, 30_000, (count, PROMPT_TOKENS + DEPTHS[-1])).tolist()
    responses = [
        EncodedResponse(prompt_ids=row[:PROMPT_TOKENS], response_ids=row[PROMPT_TOKENS:], depths=DEPTHS) for row in ids
    ]
    return model, responses, {"safety_tokens": HEADER, "random_tokens": tuple(i + 100 for i in HEADER)}


def measure(
    name: str, model: Any, responses: list[EncodedResponse], injected: dict[Place, Sequence[int]]
) -> dict[str, Any]:
    """Times all ways on all responses, group by group."""
    points = hook_points(model, range(len(decoder_blocks(model.model))))
    header = injected["safety_tokens"]
    cached = CachedPass(model, points, SAFETY, injected)
    tree, with_controls = TreePass(model, points, SAFETY, injected), TreePass(model, points, PLACES, injected)
    ways: dict[str, Callable[[Sequence[EncodedResponse]], list[ReadStates]]] = {
        "naive": lambda group: naive(model, points, header, group),
        "cached": cached.read,
        "tree": tree.read,
        "tree_with_controls": with_controls.read,
    }
    for way in ways.values():
        way(responses[:1])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    difference = {way: 0.0 for way in ways if way != "naive"}
    size = min(GROUP, max(1, len(responses) // 2))
    for at in range(0, len(responses), size):
        group = responses[at : at + size]
        read: dict[str, list[ReadStates]] = {}
        for way, run in ways.items():
            started = time.perf_counter()
            read[way] = run(group)
            seconds[way].append(time.perf_counter() - started)
        for way in difference:
            difference[way] = max(
                difference[way], *(furthest(*pair) for pair in zip(read[way], read["naive"], strict=True))
            )
    ratios = {
        way: [a / b for a, b in zip(seconds["naive"], seconds[way], strict=True)] for way in ways if way != "naive"
    }
    result = {
        "model": name,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "responses": len(responses),
        "depths": len(DEPTHS),
        "layers": len(points),
        "total_s": {way: sum(each) for way, each in seconds.items()},
        "naive_to": {way: sum(seconds["naive"]) / sum(seconds[way]) for way in ratios},
        "naive_to_quartiles": {way: statistics.quantiles(each, n=4)[::2] for way, each in ratios.items()},
        "groups": len(seconds["naive"]),
        "largest_relative_difference_to_naive": difference,
    }
    print(
        f"{name}, {result['dtype']}, {len(responses)} responses: "
        + ", ".join(f"{way} {total:.1f} s" for way, total in result["total_s"].items())
        + "; naive takes "
        + ", ".join(f"{ratio:.1f}x {way}" for way, ratio in result["naive_to"].items())
        + f"; largest difference {max(difference.values()):.1e}",
        flush=True,
    )
    return result


def furthest(one: ReadStates, other: ReadStates) -> float:
    """Largest relative difference of two readings, over the states that both have."""
    worst = 0.0
    for key, state in other.items():
        right = state.float()
        apart = (one[key].float() - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-9)
        worst = max(worst, float(apart.max()))
    return worst


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=200, help="of the reference model")
    parser.add_argument(
        "--random-responses", type=int, default=10, help="of the random model, 0 or >= 2; the naive way is slow"
    )
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="of the random model")
    parser.add_argument("--device", default="cpu", help="of the random model")
    parser.add_argument("--quick", action="store_true", help="20 responses, and 2 of the random model in float32 only")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "collect_states.json")
    options = parser.parse_args()
    count, random_count = (20, 2) if options.quick else (options.responses, options.random_responses)
    dtypes = options.dtype or (["float32"] if options.quick else ["float32", "bfloat16"])
    results = [measure("reference", *reference_task(count))]
    for dtype in dtypes if random_count else []:
        task = random_task(random_count, getattr(torch, dtype), options.device)
        parameters = sum(p.numel() for p in task[0].model.parameters())
        results.append(measure(f"random llama, {parameters / 1e9:.2f} B", *task))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    saved = {
        "command": " ".join(["python benchmarks/collect_states.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "device": options.device
        if options.device != "cpu"
        else f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "seed": 0,
        "bar": "naive takes at least 5 times as long as the tree pass",
        "results": results,
    }
    options.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
