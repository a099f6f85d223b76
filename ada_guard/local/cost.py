"""What a check costs on a model: its decode step without and with one, measured. Knows no budget and no schedule."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ada_guard.checking import Ask, AskProbe
from ada_guard.errors import ConfigError
from ada_guard.local.context import CheckPass, LocalContext
from ada_guard.local.plan import plan_reading

if TYPE_CHECKING:
    from ada_guard.local.model import LocalModel

__all__ = ["CheckCost", "measure"]

DEPTH_TOKENS = 256
"""A moderate depth: what a check adds hardly grows with depth, and the prompt before it is read in one pass."""
ROUNDS = 5
_WARM_UP = 2
LOOKAHEAD_ASSUMED_TOKENS = 8
"""What rethink is taken to generate at a check. Source: each check of a harmless answer of the reference model,
``benchmarks/results/engines.json``; the bound is `ada_guard.checking.LOOKAHEAD_TOKENS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCost:
    """Medians, in ms.

    Attributes:
        step_ms: Of a decode step without a check.
        check_ms: What a check adds to the step it belongs to. Noise may take it below 0.
    """

    step_ms: float
    check_ms: float


def measure(
    model: LocalModel,
    asks: frozenset[type[Ask]],
    *,
    check_pass: CheckPass = "fused",
    clock: Callable[[], float] = time.perf_counter,
) -> CheckCost:
    """Times steps without and with a check in turn, on a context of filler that is thrown away.

    A check is taken to be the probe's reading where the checker asks for one and the model has it: a cascade's clear
    case. Otherwise it is a lookahead of `LOOKAHEAD_ASSUMED_TOKENS`. One prompt and some forty steps at the most; takes
    the model's lock pass by pass, as a stream does, and no random numbers.

    Args:
        model: The model.
        asks: What the checker asks for.
        check_pass: How checks are fed.
        clock: Seconds.

    Raises:
        ConfigError: The model's context is too short for it.
        CheckError: The model's numbers are not finite.
    """
    steps = 2 * (_WARM_UP + ROUNDS)
    reserve = steps + len(model.spec.rethink.ids) + LOOKAHEAD_ASSUMED_TOKENS
    depth = DEPTH_TOKENS if model.context_tokens is None else min(DEPTH_TOKENS, model.context_tokens - reserve)
    if depth < 1:
        raise ConfigError("the model's context is too short to measure a check in it: write an interval instead")
    filler = _filler(model)
    context = LocalContext(model, plan_reading(model.model, [filler] * depth), check_pass=check_pass)
    by_probe = AskProbe in asks and model.probe is not None
    plain: list[float] = []
    checked: list[float] = []
    for _ in range(_WARM_UP + ROUNDS):
        for times, checks in ((plain, False), (checked, True)):
            context.append([filler])
            started = clock()
            if checks:
                _check(context, asks, by_probe=by_probe)
            # Read back, as sampling does: on a GPU the step has then been computed.
            int(context.next_logits().argmax())
            times.append((clock() - started) * 1000)
    # Neighbours have met the same load of the machine: their difference is steadier than that of two medians.
    added = [after - before for before, after in zip(plain, checked, strict=True)]
    return CheckCost(step_ms=statistics.median(plain[_WARM_UP:]), check_ms=statistics.median(added[_WARM_UP:]))


def _check(context: LocalContext, asks: frozenset[type[Ask]], *, by_probe: bool) -> None:
    with context.reinjected(asks) as header:
        if by_probe:
            header.harm_probability()
        else:
            header.lookahead(LOOKAHEAD_ASSUMED_TOKENS, lambda _: True)


def _filler(model: LocalModel) -> int:
    """A token that no model treats in a way of its own: no special one."""
    special = set(model.tokenizer.all_special_ids)
    size = int(model.model.config.get_text_config(decoder=True).vocab_size)
    return next(token for token in range(size // 3, size) if token not in special)
