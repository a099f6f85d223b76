"""What a pool gives: checks of many streams in shared passes, against the same checks one at a time, in one run.

Random models: timing does not depend on what the weights say. The contenders take turns round by round:

- `alone`: one stream after the other, each with a KV cache of its own, a check riding in a fused pass through the whole
  model. What guarding each stream by itself costs, measured on as many streams as `alone_streams` says: the cost of one
  does not depend on how many there are.
- `turns`: one stream after the other in a probe-only pool: what is gained by ending at the probe's layer, without
  packing. On as many streams as `alone`.
- `pool`: all streams at once in one pool. A row for a pool whose model is loaded as a whole, one for a pool of which
  only the blocks up to the probe's layer are loaded. Both are asked for the probe only.

A check is: `new_tokens` more tokens of the stream are fed, then the Safety Tokens, and the probe's number is read.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kit
import torch

from ada_guard.checkers import ProbeChecker
from ada_guard.checking import AskProbe, CheckContext
from ada_guard.local import LocalModel
from ada_guard.local.blocks import HookPoint, hook_position
from ada_guard.local.context import LocalContext
from ada_guard.local.lower_blocks import keep_lower_blocks
from ada_guard.local.plan import plan_reading
from ada_guard.sidecar.pool import Pool
from ada_guard.sidecar.slot import Slot

ASKS = frozenset({AskProbe})
CHECKER = ProbeChecker(threshold=1.0)
SEED = 7
MOST_ALONE = 8
DEPTHS = (300, 600)
LOADED = ("whole", "probe-only")


def models(size: str, device: str) -> dict[str, LocalModel]:
    """The same random model, whole and with its lower blocks only; the probe reads in the middle."""
    nets = {name: kit.random_net(size, device=device) for name in LOADED}
    layer = len(nets["whole"].model.layers) // 2
    keep_lower_blocks(nets["probe-only"], HookPoint(layer=layer, position=hook_position(nets["whole"], layer)))
    return {name: kit.local_model(net, layer=layer) for name, net in nets.items()}


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
        for context, new in zip(self._contexts, news, strict=False):
            started = time.perf_counter()
            context.append(new)
            with context.reinjected(ASKS) as header:
                header.harm_probability()
            latencies.append((time.perf_counter() - started) * 1000)
        return latencies


class Pooled:
    """Streams in a pool.

    Args:
        model: The model.
        prompts: Of the streams.
        at_once: Each stream has a thread that extends, asks and waits; else they take turns.
        pool: Settings of the pool.
    """

    def __init__(self, model: LocalModel, prompts: list[list[int]], *, at_once: bool, **pool: Any) -> None:
        self.pool = Pool(model, **pool)
        self._slots: list[Slot] = []
        self._at_once = at_once
        for ids in prompts:  # one after the other: each copies what it shares with those before
            self._slots.append(self.pool.open(list(ids), ASKS))
            self._check(self._slots[-1])
        stats = self.pool.stats()
        self._before = stats.rows, stats.passes

    def _check(self, slot: Slot) -> None:
        self.pool.check(slot, len(slot.ids), CHECKER, context_at(len(slot.ids))).result()

    def round(self, news: list[list[int]]) -> list[float]:
        """As `Alone.round`."""
        latencies = [0.0] * len(self._slots)

        def one(index: int) -> None:
            started = time.perf_counter()
            self._slots[index].ids += news[index]
            self._check(self._slots[index])
            latencies[index] = (time.perf_counter() - started) * 1000

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(self._slots))]
        for thread in threads:
            thread.start()
            if not self._at_once:
                thread.join()
        for thread in threads:
            thread.join()
        return latencies

    def figures(self) -> dict[str, float]:
        """Memory per stream and rows per pass."""
        stats = self.pool.stats()
        rows, passes = stats.rows - self._before[0], stats.passes - self._before[1]
        return {"kv_mib_per_stream": stats.kv_bytes / len(self._slots) / 2**20, "rows_per_pass": rows / max(passes, 1)}

    def close(self) -> None:
        """Ends the pool."""
        for slot in self._slots:
            slot.close()
        self.pool.close()


Work = Callable[[list[list[int]]], list[float]]


def taking_turns(works: Mapping[str, Work], streams: int, new_tokens: int, rounds: int) -> dict[str, list[Any]]:
    """For each contender its rounds: CPU seconds and wall seconds per check, and the latencies in ms."""
    rng = random.Random(SEED)
    found: dict[str, list[Any]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        news = [[rng.randrange(100, 30_000) for _ in range(new_tokens)] for _ in range(streams)]
        for name, work in works.items() if turn % 2 else reversed(works.items()):
            cpu, wall = time.process_time(), time.perf_counter()
            latencies = work(news)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn:  # the first round warms up
                found[name].append((cpu / len(latencies), wall / len(latencies), latencies))
    return found


def measured(
    by_name: Mapping[str, LocalModel], streams: int, new_tokens: int, rounds: int, **pool: Any
) -> list[dict[str, Any]]:
    """A row for each pool: `streams` streams, checked every `new_tokens` tokens."""
    rng = random.Random(SEED)
    longest = [rng.randrange(100, 30_000) for _ in range(DEPTHS[1])]
    # Beginnings of one text, the longest first: a pool copies what it has read already, so they are there quickly.
    prompts = [longest[: DEPTHS[1] - i * (DEPTHS[1] - DEPTHS[0]) // streams] for i in range(streams)]
    few = prompts[:: max(1, streams // MOST_ALONE)][:MOST_ALONE]
    pools = {name: Pooled(model, prompts, at_once=True, **pool) for name, model in by_name.items()}
    turns = Pooled(by_name["probe-only"], few, at_once=False, **pool)
    alone = Alone(by_name["whole"], few)
    works: dict[str, Work] = {"alone": alone.round, "turns": turns.round}
    found = taking_turns({**works, **{name: one.round for name, one in pools.items()}}, streams, new_tokens, rounds)
    shared = {"streams": streams, "new_tokens": new_tokens, "rounds": rounds, "alone_streams": len(few)}
    rows = [
        {
            **shared,
            "loaded": name,
            **compared(found["alone"], found["turns"], found[name]),
            **one.figures(),
            "weights_mib": weights_mib(by_name[name]),
        }
        for name, one in pools.items()
    ]
    for one in (*pools.values(), turns):
        one.close()
    gc.collect()
    return rows


def compared(alone: list[Any], turns: list[Any], pool: list[Any]) -> dict[str, Any]:
    """Ratios of CPU and wall time per check, checks per second and latencies."""
    cpu = [a[0] / p[0] for a, p in zip(alone, pool, strict=True)]
    every = {"pool": pool, "alone": alone, "turns": turns}
    latencies = {name: [ms for one in rounds for ms in one[2]] for name, rounds in every.items()}
    return {
        "cpu_ratio": statistics.median(cpu),
        "cpu_ratio_range": [min(cpu), max(cpu)],
        "wall_ratio": statistics.median(a[1] / p[1] for a, p in zip(alone, pool, strict=True)),
        "wall_ratio_to_turns": statistics.median(t[1] / p[1] for t, p in zip(turns, pool, strict=True)),
        "checks_per_s": {name: 1 / statistics.median(one[1] for one in rounds) for name, rounds in every.items()},
        "p50_ms": {name: kit.quantile(values, 0.5) for name, values in latencies.items()},
        "p99_ms": {name: kit.quantile(values, 0.99) for name, values in latencies.items()},
    }


def weights_mib(model: LocalModel) -> float:
    """Of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.model.parameters()) / 2**20


def loading(size: str, probe_layer: int) -> dict[str, dict[str, float]]:
    """Time and memory of loading the model from its files, whole and in part, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        net = kit.random_net(size)
        net.save_pretrained(folder)
        del net
        found = {}
        for name in LOADED:
            command = [sys.executable, __file__, "--load", folder, name, str(probe_layer)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
        return found


def load(folder: str, name: str, layer: int) -> dict[str, float]:
    """What loading one of the two costs this process."""
    from transformers import AutoModelForCausalLM

    from ada_guard.local.lower_blocks import load_lower_blocks

    before, started = resident_mib(), time.perf_counter()
    if name == "whole":
        net: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    else:
        net = load_lower_blocks(folder, HookPoint(layer=layer, position="input_layernorm"), dtype="auto")
    seconds = time.perf_counter() - started
    # Every weight is read once: files are mapped, and what nobody has looked at yet is not in memory.
    float(sum(p.sum(dtype=torch.float32) for p in net.parameters()))
    return {"s": seconds, "resident_mib": resident_mib() - before}


def resident_mib() -> float:
    """Memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def shown(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    low, high = row["cpu_ratio_range"]
    rate = row["checks_per_s"]
    return (
        f"{row['streams']:3} streams, {row['new_tokens']:2} new tokens, {row['loaded']:10}: "
        f"{row['cpu_ratio']:.1f}x less CPU time ({low:.1f} to {high:.1f}), wall {row['wall_ratio']:.1f}x; "
        f"{rate['pool']:.0f} checks/s against {rate['alone']:.0f} alone, {rate['turns']:.0f} in turns; "
        f"p50 {row['p50_ms']['pool']:.0f} ms, p99 {row['p99_ms']['pool']:.0f} ms; "
        f"{row['kv_mib_per_stream']:.1f} MiB of KV a stream, {row['rows_per_pass']:.1f} rows a pass"
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.4b", choices=sorted(kit.SIZES))
    parser.add_argument("--streams", type=int, action="append", help="default: 1, 8, 32, 128")
    parser.add_argument("--new-tokens", type=int, action="append", help="default: 25, 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kv-mib", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, help="default: the pool's own")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--load", nargs=3, metavar=("FOLDER", "WHAT", "LAYER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.load[0], options.load[1], int(options.load[2]))))
        return
    by_name = models(options.size, options.device)
    layers = int(by_name["whole"].model.config.num_hidden_layers)
    pool: dict[str, Any] = {"kv_bytes": options.kv_mib << 20, "batch_tokens": options.batch_tokens}
    rows = []
    for new_tokens in options.new_tokens or [25, 1]:
        for streams in options.streams or [1, 8, 32, 128]:
            for row in measured(by_name, streams, new_tokens, options.rounds, **pool):
                rows.append(row)
                print(shown(row), flush=True)
    parameters = sum(p.numel() for p in by_name["whole"].model.parameters())
    header = len(by_name["whole"].spec.probe.ids)
    loaded = loading(options.size, layers // 2)
    for name, cost in loaded.items():
        print(f"loading {name}: {cost['s']:.1f} s, {cost['resident_mib']:.0f} MiB")
    kit.save(
        "pool",
        rows,
        seed=SEED,
        device=options.device,
        out=options.out,
        model=f"random llama, {parameters / 1e9:.2f} B, bfloat16, probe layer {layers // 2} of {layers}, header of "
        f"{header}, depth {DEPTHS[0]} to {DEPTHS[1]}",
        counted="new tokens and header fed, probe's number read; cpu_ratio and wall_ratio: alone / pool, per check",
        loading=loaded,
    )


if __name__ == "__main__":
    main()
