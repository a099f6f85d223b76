"""What a pool gives: checks of many streams in shared passes, against the same streams one at a time, in one run.

A random model of 0.4 B parameters in bfloat16 with a probe at its middle: timing does not depend on what the weights
say. Pool and one-at-a-time take turns round by round, so that a noisy machine disturbs both alike; the ratio is one of
CPU time. "One at a time" is a fused pass through the whole model for each stream, its own KV cache beside it: what
guarding each stream by itself costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ada_guard.checkers import ProbeChecker
from ada_guard.checking import AskProbe, CheckContext
from ada_guard.local import LocalModel
from ada_guard.local.blocks import hook_position
from ada_guard.local.context import LocalContext
from ada_guard.local.plan import plan_reading
from ada_guard.probe import LinearProbe, ProbeCard
from ada_guard.reference import CHAT_DIR
from ada_guard.sidecar.pool import Pool
from ada_guard.sidecar.slot import Slot

ASKS = frozenset({AskProbe})
CHECKER = ProbeChecker(threshold=0.5)
LAYER = 9


def random_model(device: str, layers: int, hidden: int) -> LocalModel:
    """A llama with a probe of random direction at its middle."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=16_384,
    )
    torch.manual_seed(0)
    net = LlamaForCausalLM(config).to(device=device, dtype=torch.bfloat16).eval()
    bare = LocalModel(net, AutoTokenizer.from_pretrained(CHAT_DIR), name="random")
    layer = min(LAYER, layers // 2)
    card = ProbeCard(
        model="random",
        fingerprint=bare.fingerprint,
        header_text=bare.spec.probe.text,
        header_ids=bare.spec.probe.ids,
        layer=layer,
        position=hook_position(net, layer),
        hidden_size=hidden,
        dtype="bfloat16",
        thresholds={1: 0.5},
        low_thresholds={1: 0.1},
        calibrated_tokens=1000,
        target_fpr=0.05,
    )
    probe = LinearProbe(weight=torch.randn(hidden), bias=0.0, card=card)
    return LocalModel(net, bare.tokenizer, probe=probe, name="random")


def context_at(depth: int) -> CheckContext:
    """What a probe checker is told."""
    return CheckContext(depth=depth, generated_tokens=depth, answer=str)


class Alone:
    """Streams that are checked one after the other, each with a cache of its own."""

    def __init__(self, model: LocalModel, prompts: list[list[int]]) -> None:
        self._contexts = [LocalContext(model, plan_reading(model.model, ids)) for ids in prompts]
        for context in self._contexts:
            context.next_logits()

    def round(self, news: list[list[int]]) -> list[float]:
        """Extends and checks every stream once; latencies in milliseconds."""
        latencies = []
        for context, new in zip(self._contexts, news, strict=True):
            started = time.perf_counter()
            context.append(new)
            with context.reinjected(ASKS) as header:
                header.harm_probability()
            latencies.append((time.perf_counter() - started) * 1000)
        return latencies


class Pooled:
    """The same streams in a pool, each with a thread that extends, asks and waits."""

    def __init__(self, model: LocalModel, prompts: list[list[int]], kv_bytes: int) -> None:
        self.pool = Pool(model, kv_bytes=kv_bytes)
        self._slots = [self.pool.open(list(ids), ASKS) for ids in prompts]
        for slot in self._slots:
            self._check(slot)

    def _check(self, slot: Slot) -> None:
        self.pool.check(slot, len(slot.ids), CHECKER, context_at(len(slot.ids))).result()

    def round(self, news: list[list[int]]) -> list[float]:
        """As `Alone.round`, all at once."""
        latencies = [0.0] * len(news)

        def one(index: int) -> None:
            started = time.perf_counter()
            self._slots[index].ids += news[index]
            self._check(self._slots[index])
            latencies[index] = (time.perf_counter() - started) * 1000

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(news))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return latencies

    def close(self) -> None:
        """Ends the pool."""
        for slot in self._slots:
            slot.close()
        self.pool.close()


def timed(work: Callable[[list[list[int]]], list[float]], news: list[list[int]]) -> tuple[float, float, list[float]]:
    """CPU seconds, wall seconds and latencies of a round."""
    cpu, wall = time.process_time(), time.perf_counter()
    latencies = work(news)
    return time.process_time() - cpu, time.perf_counter() - wall, latencies


def resident_mib() -> float:
    """Memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def percentile(values: list[float], share: float) -> float:
    """By rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measured(model: LocalModel, streams: int, new_tokens: int, rounds: int, kv_bytes: int) -> dict[str, Any]:
    """One row of the table."""
    rng = random.Random(7)
    prompts = [[rng.randrange(100, 30_000) for _ in range(rng.randrange(300, 600))] for _ in range(streams)]
    before = resident_mib()
    pooled = Pooled(model, prompts, kv_bytes)
    resident = (resident_mib() - before) / streams
    alone = Alone(model, prompts)
    cpu: dict[str, list[float]] = {"pool": [], "alone": []}
    wall: dict[str, list[float]] = {"pool": [], "alone": []}
    latencies: dict[str, list[float]] = {"pool": [], "alone": []}
    for number in range(rounds + 1):
        news = [[rng.randrange(100, 30_000) for _ in range(new_tokens)] for _ in range(streams)]
        order = [("pool", pooled.round), ("alone", alone.round)]
        for name, work in order if number % 2 else reversed(order):
            c, w, found = timed(work, news)
            if number:  # the first round warms up
                cpu[name].append(c)
                wall[name].append(w)
                latencies[name] += found
    stats = pooled.pool.stats()
    pooled.close()
    ratios = [a / p for a, p in zip(cpu["alone"], cpu["pool"], strict=True)]
    return {
        "streams": streams,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "cpu_ratio": statistics.median(ratios),
        "cpu_ratio_range": [min(ratios), max(ratios)],
        "wall_ratio": statistics.median(a / p for a, p in zip(wall["alone"], wall["pool"], strict=True)),
        "checks_per_s": {name: streams / statistics.median(values) for name, values in wall.items()},
        "p50_ms": {name: percentile(values, 0.5) for name, values in latencies.items()},
        "p99_ms": {name: percentile(values, 0.99) for name, values in latencies.items()},
        "kv_mib_per_stream": stats.kv_bytes / streams / 2**20,
        "resident_mib_per_stream": resident,
        "rows_per_pass": stats.rows / stats.passes,
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, action="append", help="default: 1, 8, 32")
    parser.add_argument("--new-tokens", type=int, action="append", help="default: 25, 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=19)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--kv-mib", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pool.json")
    options = parser.parse_args()
    model = random_model(options.device, options.layers, options.hidden)
    parameters = sum(p.numel() for p in model.model.parameters())
    rows = []
    for new_tokens in options.new_tokens or [25, 1]:
        for streams in options.streams or [1, 8, 32]:
            row = measured(model, streams, new_tokens, options.rounds, options.kv_mib << 20)
            rows.append(row)
            print(
                f"{streams:3} streams, {new_tokens:2} new tokens: {row['cpu_ratio']:.1f}x less CPU time "
                f"({row['cpu_ratio_range'][0]:.1f} to {row['cpu_ratio_range'][1]:.1f}), "
                f"{row['checks_per_s']['pool']:.0f} checks/s against {row['checks_per_s']['alone']:.0f}, "
                f"p50 {row['p50_ms']['pool']:.0f} ms, p99 {row['p99_ms']['pool']:.0f} ms, "
                f"{row['kv_mib_per_stream']:.1f} MiB of KV a stream, {row['rows_per_pass']:.1f} rows a pass",
                flush=True,
            )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    saved = {
        "command": "python benchmarks/pool.py",
        "commit": commit.stdout.strip(),
        "model": f"random llama, {parameters / 1e9:.2f} B, bfloat16, probe layer {min(LAYER, options.layers // 2)} of "
        f"{options.layers}, header of {len(model.spec.probe.ids)}, depth 300 to 600",
        "device": options.device
        if options.device != "cpu"
        else f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "seed": 7,
        "rows": rows,
    }
    options.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
