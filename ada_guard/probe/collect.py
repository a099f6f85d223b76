"""Hidden states at the injected Safety Tokens, for fitting and measuring a probe. Knows no labels and no estimator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ada_guard.checking import AskProbe
from ada_guard.local.blocks import HookPoint, hook_position
from ada_guard.local.context import CheckPass, LocalContext
from ada_guard.local.model import LocalModel
from ada_guard.local.plan import plan_reading

__all__ = ["hook_points", "states_at_depths"]


def hook_points(model: LocalModel, layers: Iterable[int]) -> list[HookPoint]:
    """The default hook position of each layer (0-based blocks)."""
    return [HookPoint(layer=layer, position=hook_position(model.model, layer)) for layer in layers]


def states_at_depths(
    model: LocalModel,
    messages: Sequence[Mapping[str, Any]],
    response_ids: Sequence[int],
    depths: Iterable[int],
    points: Sequence[HookPoint],
    *,
    check_pass: CheckPass = "fused",
) -> Iterator[tuple[int, dict[int, torch.Tensor]]]:
    """The states a guard would see at each depth of a response, in one pass over it with a KV cache.

    Args:
        model: The model; its spec gives the Safety Tokens.
        messages: The conversation before the response.
        response_ids: Ids of the response.
        depths: Ascending, in response tokens; those beyond the response are left out.
        points: Where to read.
        check_pass: As the guard will use it.

    Yields:
        The depth and, by layer, the state: float32 ``[hidden]`` on the CPU.
    """
    prompt = model.encode(messages)
    plan = plan_reading(model.model, [*prompt.ids, *prompt.prefill_ids])
    context = LocalContext(model, plan, check_pass=check_pass, hook_points=points)
    fed = 0
    for depth in depths:
        if depth > len(response_ids):
            break
        context.append(response_ids[fed:depth])
        fed = depth
        with context.reinjected(frozenset({AskProbe})) as header:
            yield depth, {layer: state.cpu() for layer, state in header.hidden_states().items()}
