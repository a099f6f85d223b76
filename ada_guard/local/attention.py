"""What attention functions of our own share: how a pass is given one, sliding windows, scores written out.

Knows no batch: who sees what is decided by those that bring such a function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["attending", "depends_on_length", "grouped", "sliding_windows", "written_out"]

_ROPE_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies depend on the longest position of a pass: rows would change one another."""


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """While the block lasts, the model's passes use the attention registered under a name.

    Whoever holds the model's lock may change what its configuration names.
    """
    configs = {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values()
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, old in zip(configs, before, strict=True):
            if config._attn_implementation_internal == name:  # else somebody has switched it meanwhile
                config._attn_implementation_internal = old


def sliding_windows(config: Any, layers: int) -> list[int | None]:
    """The sliding window of each layer in tokens, None for full attention.

    Args:
        config: Of the text decoder.
        layers: How many it has.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return [window if kind == "sliding_attention" else None for kind in kinds[:layers]]
    return [window if getattr(config, "use_sliding_window", True) else None] * layers


def depends_on_length(model: Any) -> str | None:
    """What a short trial of such an attention cannot notice, in a word or two; None if there is nothing.

    That is attention or positions that change with the length of what is fed.
    """
    config: Any = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"layers of {min(kinds)}"
    return next((f"{kind} positions" for kind in _rope_types(config) if kind in _ROPE_BY_LENGTH), None)


def _rope_types(config: Any) -> list[str]:
    """As the configuration names them: one for all layers, or one for each kind of layer."""
    found = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    groups = [group for group in found if isinstance(group, dict)]
    groups += [value for group in groups for value in group.values() if isinstance(value, dict)]
    return [str(group.get("rope_type") or group.get("type")) for group in groups]


def grouped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention in which the query heads that share a key head are laid side by side as queries: no key is copied.

    Args:
        query: ``[heads, queries, head_dim]``.
        keys: ``[kv_heads, keys, head_dim]``.
        values: ``[kv_heads, keys, value_dim]``.
        mask: bool ``[groups * queries, keys]``, True where a query sees a key; None: it sees all. Without `softcap` and
            `sinks` also of the query's dtype: what is added to the scores.
        scaling: Of the scores.
        softcap: Bound of the scores, or None.
        sinks: Logit of an attention sink for each head, ``[heads]``, or None.

    Returns:
        ``[heads, queries, value_dim]``.
    """
    heads, queries = query.shape[:2]
    kv_heads = keys.shape[0]
    folded = query.reshape(kv_heads, heads // kv_heads * queries, -1)
    if softcap is None and sinks is None:
        seen = torch.nn.functional.scaled_dot_product_attention(
            folded[None], keys[None], values[None], attn_mask=mask, scale=scaling
        )[0]
    else:
        each = None if sinks is None else sinks.repeat_interleave(queries).reshape(kv_heads, -1, 1)
        seen = written_out(folded, keys, values, mask, scaling=scaling, softcap=softcap, sinks=each)
    return seen.reshape(heads, queries, -1)


def written_out(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention without a kernel, for score caps and sinks; softmax in float32.

    Args:
        query: ``[..., queries, head_dim]``.
        keys: ``[..., keys, head_dim]``; leading dimensions broadcast.
        values: ``[..., keys, value_dim]``.
        mask: bool, True where a query sees a key; broadcasts to the scores. None: it sees all.
        scaling: Of the scores.
        softcap: Bound of the scores, or None.
        sinks: Logit of an attention sink for each query, expands to ``[..., queries, 1]``; None without them.

    Returns:
        ``[..., queries, value_dim]``.
    """
    scores = (query @ keys.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        sinks = sinks.float().expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    return weights.to(values.dtype) @ values
