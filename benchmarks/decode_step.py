"""What a check at every token costs: one decode step with it, against one step of transformers' own ``generate``.

Contenders take turns inside a running ``generate`` (see `turns`), each with a context of its own of the same depth:
``generate`` itself, our loop without checks, our checks of every kind, our check without its levers one by one, the
procedure that the authors of Any-Depth Alignment publish, and a guard model of the same size that keeps no cache. The
caches are filled with random numbers: nothing that is timed depends on what they hold, and no prefill is waited for.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from kit import SIZES, Timing, families, local_model, quantile, random_net, save
from other_ways import PublishedProcedure, UncachedGuard, cache_bytes
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from turns import EachToken, fill, generate_beside, own_experts

from ada_guard.checking import AskLookahead, AskProbe
from ada_guard.local import LocalModel
from ada_guard.local.context import LocalContext
from ada_guard.local.growing import GrowingLayer
from ada_guard.local.plan import plan_reading
from ada_guard.local.shortcuts import NO_SHORTCUTS, Shortcuts

DEPTHS = (256, 2000, 8000)
WARM_UP = 2
LEAST_SHARE = 0.01
"""Of a step: a check that costs less counts as this much where others are compared with it, for less is noise."""

COUNTED = {
    "generate": "a step of transformers' generate: forward, processors, argmax, stopping rules, streamer",
    "unguarded": "our step without a check: forward, argmax",
    "fused": "our step with a probe check in the same pass",
    "rethink": "our step with rethink in the same pass, decided at the first lookahead token",
    "cascade": "our step with the whole header in the same pass, decided by the probe",
    "separate": "our step and a probe check in a pass of its own",
    "no_shortcuts": "as fused, with the model's own attention and all rows to the last block; the cache grows in place",
    "concatenated": "as fused, with a cache that is copied for every token",
    "published": "a check alone: deep copy of the cache, pass over the header, state to the CPU, scikit-learn",
    "published_copy": "of that the deep copy alone",
    "uncached": "a check alone: a pass of a model of the same size over the whole text",
}
CHECKS_ALONE = ("published", "published_copy", "uncached")


def context(
    model: LocalModel,
    depth: int,
    *,
    check_pass: Literal["fused", "separate"] = "fused",
    shortcuts: Shortcuts | None = None,
    concatenated: bool = False,
) -> LocalContext:
    """A context of `depth` tokens, ready for a step."""
    ids = torch.randint(0, 1000, (depth,), generator=torch.Generator().manual_seed(depth)).tolist()
    made = LocalContext(model, plan_reading(model.model, ids), check_pass=check_pass, shortcuts=shortcuts)
    if concatenated:
        made.cache.layers = [DynamicLayer() if type(each) is GrowingLayer else each for each in made.cache.layers]
    fill(made.cache, model.model, depth - 1, seed=depth)
    made.unfed_tokens = 1
    made.next_logits()
    return made


def step(made: LocalContext, check: Callable[[LocalContext], object] | None = None) -> None:
    """Takes the likeliest token, checks behind it, and gets the logits for the next one."""
    made.append([int(made.next_logits().argmax())])
    if check is not None:
        check(made)
    made.next_logits()


def probe(made: LocalContext) -> float:
    """The probe's number."""
    with made.reinjected(frozenset({AskProbe})) as header:
        return header.harm_probability()


def rethink(made: LocalContext) -> object:
    """The first token of a lookahead, which mostly tells a refusal from anything else."""
    with made.reinjected(frozenset({AskLookahead})) as header:
        return header.lookahead(1, lambda _: False)


def cascade(made: LocalContext) -> float:
    """The probe's number where rethink might have been asked for as well."""
    with made.reinjected(frozenset({AskProbe, AskLookahead})) as header:
        return header.harm_probability()


def ours(model: LocalModel, depth: int) -> dict[str, Callable[[], object]]:
    """Steps of ours by name, with each lever alone and without any."""
    made: dict[str, Callable[[], object]] = {
        "unguarded": partial(step, context(model, depth)),
        "fused": partial(step, context(model, depth), probe),
        "rethink": partial(step, context(model, depth), rethink),
        "cascade": partial(step, context(model, depth), cascade),
        "separate": partial(step, context(model, depth, check_pass="separate"), probe),
        "no_shortcuts": partial(step, context(model, depth, shortcuts=NO_SHORTCUTS), probe),
        "concatenated": partial(step, context(model, depth, concatenated=True), probe),
    }
    for lever in fields(Shortcuts):
        # One that this model was found not to take would be wrong on it.
        if getattr(model.shortcuts, lever.name):
            alone = replace(NO_SHORTCUTS, **{lever.name: True})
            made[f"only_{lever.name}"] = partial(step, context(model, depth, shortcuts=alone), probe)
    return made


def measured(model: LocalModel, depth: int, options: argparse.Namespace) -> tuple[dict[str, Timing], int]:
    """Times of all contenders at one depth, and the bytes that the published procedure copies for a check."""
    net: Any = model.model
    cache = DynamicCache(config=net.config)
    fill(cache, net, depth, seed=depth)
    assert model.probe is not None
    published = PublishedProcedure(net, model.spec.probe.ids, layer=model.probe.hook_point.layer)
    contenders: dict[str, Callable[[], object]] = {
        **ours(model, depth),
        "published": partial(published.check, cache),
        "published_copy": partial(copy.deepcopy, cache),
    }
    text = [7] * depth
    slow = {"uncached": partial(UncachedGuard(net).check, text)} if depth <= options.uncached_to else {}
    turns = EachToken(
        contenders,
        slow=slow,
        slow_rounds=options.uncached_rounds,
        rounds=options.rounds,
        warm_up=WARM_UP,
        device=options.device,
        turn=partial(own_experts, net, net.get_experts_implementation()),
    )
    running = DynamicCache(config=net.config)
    fill(running, net, depth - 1, seed=depth)
    ids = torch.full((1, depth), 7, device=net.device)
    # One token comes with the feeding of the last id, before the first step.
    generate_beside(net, ids, turns, tokens=turns.steps_needed + 1, cache=running)
    return turns.timings(), cache_bytes(cache)


def rows_of(times: Mapping[str, Timing], about: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each contender: its time, the ratio to a step of ``generate``, what a check adds to our own step."""
    generate, plain = times["generate"], times["unguarded"]
    rows = []
    for name, timing in times.items():
        alone = name in CHECKS_ALONE
        row = {
            **about,
            "contender": name,
            "counted": COUNTED.get(name, f"as no_shortcuts, with {name.removeprefix('only_')} alone"),
            "rounds": len(timing.ms),
            "median_ms": timing.median,
            "quartiles_ms": timing.quartiles,
        }
        if not alone:
            row["to_generate"], row["to_generate_quartiles"] = _spread(_over(timing, generate))
            row["to_unguarded"], row["to_unguarded_quartiles"] = _spread(_over(timing, plain))
        if name not in ("generate", "unguarded"):
            added = timing.ms if alone else [a - b for a, b in zip(timing.ms, plain.ms, strict=True)]
            row["check_ms"], row["check_quartiles_ms"] = _spread(added)
            row["check_to_unguarded"] = row["check_ms"] / plain.median
        rows.append(row)
    return rows


def compared(rows: list[dict[str, Any]], copied_bytes: int) -> dict[str, Any]:
    """How many of our fused checks one check of the others costs."""
    by = {row["contender"]: row for row in rows}
    least = max(by["fused"]["check_ms"], LEAST_SHARE * by["unguarded"]["median_ms"])
    others = {f"{name}_to_fused": by[name]["check_ms"] / least for name in ("published", "uncached") if name in by}
    return {
        "family": by["fused"]["family"],
        "depth": by["fused"]["depth"],
        "fused_check_ms": by["fused"]["check_ms"],
        "counted_as_ms": least,
        "every_25_to_unguarded": by["fused"]["check_to_unguarded"] / 25,
        **others,
        "published_copied_bytes": copied_bytes,
    }


def growth(rows: list[dict[str, Any]], family: str) -> dict[str, Any]:
    """What grows how much from the smallest depth to the largest one."""
    at = {(row["depth"], row["contender"]): row for row in rows if row["family"] == family}
    depths = sorted({depth for depth, _ in at})
    first, last = depths[0], depths[-1]
    floor = LEAST_SHARE * at[first, "unguarded"]["median_ms"]
    plain = at[last, "unguarded"]["median_ms"] / at[first, "unguarded"]["median_ms"]
    check = max(at[last, "fused"]["check_ms"], floor) / max(at[first, "fused"]["check_ms"], floor)
    return {
        "family": family,
        "from_depth": first,
        "to_depth": last,
        "generate_step": at[last, "generate"]["median_ms"] / at[first, "generate"]["median_ms"],
        "unguarded_step": plain,
        "fused_step": at[last, "fused"]["median_ms"] / at[first, "fused"]["median_ms"],
        "check": check,
        "check_above_unguarded": check / plain,
    }


def _over(timing: Timing, other: Timing) -> list[float]:
    return [a / b for a, b in zip(timing.ms, other.ms, strict=True)]


def _spread(values: Any) -> tuple[float, tuple[float, float]]:
    return statistics.median(values), (quantile(values, 0.25), quantile(values, 0.75))


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.4b")
    parser.add_argument("--family", choices=families(), action="append", help="default: llama")
    parser.add_argument("--depth", type=int, action="append", help=f"default: {', '.join(map(str, DEPTHS))}")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--uncached-to", type=int, default=2000, help="deepest text that the un-cached guard reads")
    parser.add_argument("--uncached-rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    comparisons = []
    models = {}
    for family in options.family or ["llama"]:
        net = random_net(options.size, family=family, dtype=getattr(torch, options.dtype), device=options.device)
        model = local_model(net)
        assert model.probe is not None
        layer, layers = model.probe.hook_point.layer, net.config.num_hidden_layers
        models[family] = (
            f"random {family}, {sum(p.numel() for p in net.parameters()) / 1e9:.2f} B, {options.dtype}, probe layer "
            f"{layer} of {layers}, header of {len(model.spec.probe.ids)}"
        )
        print(models[family])
        for depth in sorted(options.depth or DEPTHS):
            times, copied = measured(model, depth, options)
            found = rows_of(times, {"family": family, "size": options.size, "depth": depth})
            rows += found
            comparisons.append(compared(found, copied))
            for row in found:
                ratio = f"{row['to_generate']:.2f}x generate" if "to_generate" in row else ""
                check = f"check {row['check_ms']:.2f} ms" if "check_ms" in row else ""
                print(f"  {depth:5} {row['contender']:16} {row['median_ms']:9.2f} ms  {ratio:16} {check}")
            print(f"  {depth:5} {comparisons[-1]}")
    grown = [growth(rows, family) for family in models]
    for each in grown:
        print(f"  {each}")
    save(
        "decode_step",
        rows,
        device=options.device,
        out=options.out,
        models=models,
        comparisons=comparisons,
        growth=grown,
    )


if __name__ == "__main__":
    main()
