"""Room for a KV cache that grows in place, instead of being copied for every token. Knows no headers or checks.

transformers' dynamic layers append by concatenation: each token copies all keys and values, which at a depth of some
thousand tokens is a large part of a decode step. These layers write behind what is there, and forgetting the last
tokens is only a shorter view.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

__all__ = ["GrowingLayer", "grow_in_place"]

_LEAST_TOKENS = 256
_GROWTH = 1.25
"""Room is copied when it is full; a quarter more each time makes that rare, and wastes a fifth of it at most."""


class GrowingLayer(DynamicLayer):
    """A full-attention layer whose `keys` and `values` are views of a larger room.

    What stands before the end of a view is never written again, so an earlier, shorter view stays valid; a longer one
    that was taken before a `crop` does not.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """No room yet."""
        super().lazy_initialization(key_states, value_states)
        self.rooms: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new states behind the old ones.

        Args:
            key_states: ``[1, kv_heads, tokens, head_dim]``.
            value_states: Likewise; its last dimension may be another.

        Returns:
            All keys and all values, views.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = int(self.get_seq_length())
        end = begin + key_states.shape[-2]
        if self.rooms is None or self.rooms[0].shape[-2] < end:
            old: Any = self.keys, self.values
            self.rooms = _room(old[0], key_states, begin, end), _room(old[1], value_states, begin, end)
        keys, values = self.rooms
        keys[..., begin:end, :] = key_states
        values[..., begin:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values


def _room(old: torch.Tensor, new: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """Room for `end` tokens and more, with the first `begin` of them in it."""
    room = new.new_empty((*new.shape[:-2], max(_LEAST_TOKENS, int(end * _GROWTH)), new.shape[-1]))
    if begin:
        room[..., :begin, :] = old
    return room


def grow_in_place(cache: DynamicCache) -> None:
    """Lets the full-attention layers of an empty cache grow in place. Layers of other kinds stay as they are.

    Args:
        cache: As ``generate`` prepared it, before the prefill.
    """
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    new: Any = GrowingLayer
    # Layers of other kinds inherit from this one: only the class itself is meant.
    cache.layers = [
        new() if type(layer) is DynamicLayer and not layer.is_initialized else layer for layer in cache.layers
    ]
