"""Puts a KV cache back as it was. Knows nothing of headers or checks.

Two ways, since two kinds of layers exist. Layers that grow by concatenation leave their old tensors untouched, so
keeping references to them is a complete and free copy. Layers with a recurrent or convolution state write in place and
must be cloned. Cropping, which is needed when one pass held both a token to keep and a header to drop, is left to the
cache itself.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin, QuantizedLayer, StaticLayer

from ada_guard.errors import ConfigError

__all__ = ["CacheSnapshot", "can_crop", "require_supported"]


def require_supported(cache: object) -> DynamicCache:
    """The cache, if it is one that can be put back.

    Raises:
        ConfigError: A static or quantized cache: their layers overwrite or compress what a check must restore.
    """
    if not isinstance(cache, DynamicCache) or any(isinstance(x, (StaticLayer, QuantizedLayer)) for x in cache.layers):
        raise ConfigError("the guard needs transformers' dynamic cache: leave cache_implementation unset")
    return cache


def can_crop(cache: Cache) -> bool:
    """Whether every layer can drop its last tokens. One with recurrent state cannot; known only after the prefill."""
    return all(bool(getattr(layer, "is_croppable", False)) for layer in cache.layers)


class CacheSnapshot:
    """The state of every layer at the time of construction.

    Args:
        cache: Any dynamic cache. Costs memory only for layers with recurrent or convolution state.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._layers = [_state(layer) for layer in cache.layers]

    def restore(self) -> None:
        """Puts every layer back. May be called more than once."""
        for layer, state in zip(self._cache.layers, self._layers, strict=True):
            vars(layer).update({name: _copy(layer, value) for name, value in state.items()})


def _state(layer: Any) -> dict[str, Any]:
    return {name: _copy(layer, value) for name, value in vars(layer).items()}


def _copy(layer: Any, value: Any) -> Any:
    """Dictionaries hold the in-place states of linear layers; everything else is replaced, never written to."""
    if isinstance(layer, LinearAttentionCacheLayerMixin) and isinstance(value, dict):
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in value.items()}
    return value
