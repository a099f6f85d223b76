"""Attention for passes of a few tokens behind a long cache, as a check is: no key is copied and no big mask is built.

With more than one query the stock attention of transformers repeats the keys for each query head and builds a mask of
all of them; at a depth of some thousand tokens that costs more than the pass itself. Here the query heads that share
a key head are laid side by side as further queries. Knows no headers: the fed tokens are the last ones of the cache.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from ada_guard.local.attention import attending, depends_on_length, grouped, sliding_windows
from ada_guard.local.blocks import decoder_blocks

__all__ = ["MOST_ROWS", "feeding_few_rows", "takes_few_rows"]

MOST_ROWS = 64
"""Tokens of a pass up to which this way is taken: their mask stays small beside the keys."""

_STOCK = {"sdpa": "ada_guard_few_rows", "eager": "ada_guard_few_rows_eager"}
"""The attention a model is configured with, and the name of ours that stands in for it. Others, such as flash
attention, have no need of it."""
_running = threading.local()
"""The pass of this thread: an attention function is not told by its caller."""


def takes_few_rows(model: Any) -> bool:
    """Whether the configuration lets this way be tried."""
    return model.config._attn_implementation in _STOCK and depends_on_length(model) is None


@contextmanager
def feeding_few_rows(model: Any) -> Iterator[None]:
    """While the block lasts, passes of this thread on the model attend in this way.

    The caller holds the model's lock. A pass that somebody else runs meanwhile, past the lock, attends as ever.
    """
    config: Any = model.config.get_text_config(decoder=True)
    _running.windows = sliding_windows(config, len(decoder_blocks(model)))
    _running.masks = {}
    try:
        with attending(model, _STOCK[model.config._attn_implementation]):
            yield
    finally:
        _running.windows = _running.masks = None


def _is_ours() -> bool:
    return getattr(_running, "windows", None) is not None


def _mask(query: torch.Tensor, keys: int, groups: int, window: int | None) -> torch.Tensor | None:
    """Which keys each folded query sees, bool ``[groups * queries, keys]``; None if all see all."""
    queries = query.shape[-2]
    window = window if window is not None and window < keys else None
    if queries == 1 and window is None:
        return None
    # Layers on other devices need masks of their own.
    key = (queries, keys, groups, window, query.device)
    if key not in _running.masks:
        asked = torch.arange(keys - queries, keys, device=query.device)[:, None]
        seen = torch.arange(keys, device=query.device)[None, :]
        mask = seen <= asked
        if window is not None:
            mask &= seen > asked - window
        _running.masks[key] = mask.repeat(groups, 1)
    mask_: torch.Tensor = _running.masks[key]
    return mask_


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    s_aux: torch.Tensor | None,
) -> tuple[torch.Tensor, None]:
    """Attention of the last tokens to all keys before them.

    Args:
        module: The attention module; names its layer.
        query: ``[1, heads, tokens, head_dim]``.
        key: ``[1, kv_heads, keys, head_dim]``; the last `tokens` of them are the queries' own.
        value: ``[1, kv_heads, keys, value_dim]``.
        scaling: Of the scores; None is ``head_dim ** -0.5``.
        softcap: Bound of the scores, or None.
        s_aux: Logit of an attention sink per head ``[heads]``, or None.

    Returns:
        ``[1, tokens, heads, value_dim]``, as the models expect it.
    """
    mask = _mask(query, key.shape[2], query.shape[1] // key.shape[1], _running.windows[module.layer_idx])
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = grouped(query[0], key[0], value[0], mask, scaling=scaling, softcap=softcap, sinks=s_aux)
    return out.transpose(0, 1)[None].contiguous(), None


def _attend_as_sdpa(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """In place of ``sdpa``; see `_attend`."""
    if _is_ours():
        return _attend(module, query, key, value, *(kwargs.get(name) for name in ("scaling", "softcap", "s_aux")))
    return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]  # untyped


def _attend_as_eager(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """In place of the model's own eager attention; see `_attend`."""
    if _is_ours():
        return _attend(module, query, key, value, *(kwargs.get(name) for name in ("scaling", "softcap", "s_aux")))
    # Each architecture brings its own, under this name.
    stock = sys.modules[type(module).__module__].eager_attention_forward
    return stock(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]  # untyped


def _mask_as(stock: str) -> Any:
    """The mask of transformers, which a pass in our way has no use for."""

    def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        return None if _is_ours() else AttentionMaskInterface()[stock](*args, **kwargs)

    return mask


AttentionInterface.register(_STOCK["sdpa"], _attend_as_sdpa)
AttentionInterface.register(_STOCK["eager"], _attend_as_eager)
for _stock, _ours in _STOCK.items():
    AttentionMaskInterface.register(_ours, _mask_as(_stock))
