"""Attention of many sequences that stand side by side in one pass: each row sees its own keys in the arena.

Registered with transformers under a name; a forward pass uses it while its configuration names it. Knows no probe.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import CacheLayerMixin

from ada_guard.local.attention import grouped
from ada_guard.sidecar.arena import Arena, Span

__all__ = ["ATTENTION", "ArenaLayer", "Batch", "Row", "running"]

ATTENTION = "ada_guard_packed"
_running = threading.local()
"""The batch that this thread's forward pass belongs to: an attention function is not told by its caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Tokens of one sequence that a pass feeds.

    Attributes:
        span: Where the sequence is kept.
        start: How many of its tokens are in the span already and are seen.
        ids: What is fed behind them.
        probe_at: Index in `ids` of the token at which the probe reads.
        wants_next: Whether the greedy next token behind `ids` is wanted.
    """

    span: Span
    start: int
    ids: Sequence[int] = field(repr=False)
    probe_at: int | None = None
    wants_next: bool = False


@contextmanager
def running(batch: Batch) -> Iterator[None]:
    """While the block lasts, forward passes of this thread belong to the batch."""
    _running.batch = batch
    try:
        yield
    finally:
        _running.batch = None


class Batch:
    """The rows of one pass and where each stands in it."""

    def __init__(self, arena: Arena, rows: Sequence[Row], layers: Sequence[ArenaLayer], *, latents: bool) -> None:
        self.arena = arena
        self.layers = layers
        self.rows = rows
        self.latents = latents
        self.ends: list[int] = []
        for row in rows:
            self.ends.append((self.ends[-1] if self.ends else 0) + len(row.ids))
        self._masks: dict[tuple[int, int, int, int | None, torch.device, bool], torch.Tensor | None] = {}

    def places(self) -> Iterator[tuple[Row, int, int]]:
        """Each row with its beginning and end in the pass."""
        for row, end in zip(self.rows, self.ends, strict=True):
            yield row, end - len(row.ids), end

    def mask(
        self, row: Row, groups: int, window: int | None, query: torch.Tensor, *, added: bool
    ) -> torch.Tensor | None:
        """Which of a row's keys each query sees, ``[groups * queries, keys]``; None if all do.

        Keys that no query of the row can see because of a sliding window are left out on the left.

        Args:
            row: The row.
            groups: Query heads that share a key head.
            window: Of the layer, in tokens.
            query: Gives device and dtype.
            added: As numbers to be added to the scores: made once for all layers, where a kernel would make them of a
                bool mask in each. Else bool.
        """
        queries = len(row.ids)
        key = (row.start, queries, groups, window, query.device, added)
        if key not in self._masks:
            mask = None if queries == 1 else _mask(row, _first_key(row, window), groups, window, query.device)
            if mask is not None and added:
                mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
            self._masks[key] = mask
        return self._masks[key]


def _mask(row: Row, first: int, groups: int, window: int | None, device: torch.device) -> torch.Tensor:
    query = torch.arange(row.start, row.start + len(row.ids), device=device)[:, None]
    key = torch.arange(first, row.start + len(row.ids), device=device)[None, :]
    seen = key <= query
    if window:
        seen &= key > query - window
    return seen.repeat(groups, 1)


def _first_key(row: Row, window: int | None) -> int:
    return max(0, row.start + 1 - window) if window else 0


class ArenaLayer(CacheLayerMixin):
    """A layer of the cache as model code sees it. It writes into the arena; reading is the attention function's."""

    is_sliding = False

    def __init__(self, index: int, window: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it without types
        self.index = index
        self.window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the arena makes its layers when they are written."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new keys and values of every row.

        Models that cache latents expand what this returns before they attend: they are given all keys of all rows.
        """
        batch: Batch = _running.batch
        keys, values = batch.arena.layer(self.index, key_states, value_states)
        for row, begin, end in batch.places():
            at = row.span.start + row.start
            keys[:, at : at + end - begin] = key_states[0, :, begin:end]
            values[:, at : at + end - begin] = value_states[0, :, begin:end]
        if not batch.latents:
            return key_states, value_states
        spans = [slice(row.span.start, row.span.start + row.start + len(row.ids)) for row in batch.rows]
        return (
            torch.cat([keys[:, span] for span in spans], dim=1)[None],
            torch.cat([values[:, span] for span in spans], dim=1)[None],
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not asked: a custom attention gets no mask from transformers."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Not known here: every row has its own, and positions are always passed."""
        return 0

    def get_max_length(self) -> int:
        """No maximum of its own."""
        return -1


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each row to its own keys.

    Args:
        module: The attention module; names its layer.
        query: ``[1, heads, tokens, head_dim]``.
        key: The new keys, or for models that cache latents those of all rows ``[1, heads, all keys, head_dim]``.
        value: Likewise.
        attention_mask: None.
        scaling: Of the scores; None is ``head_dim ** -0.5``.
        softcap: Bound of the scores, or None.
        s_aux: Logit of an attention sink per head ``[heads]``, or None.

    Returns:
        ``[1, tokens, heads, value_dim]``, as the models expect it.
    """
    del attention_mask
    batch: Batch | None = getattr(_running, "batch", None)
    if batch is None:
        # The user's own pass, in another thread, while ours has our attention configured.
        raise RuntimeError("a sidecar uses this model: run it under the lock of its LocalModel")
    layer = batch.layers[module.layer_idx]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    stock = softcap is None and s_aux is None  # a kernel of torch, which takes masks that are added
    out: list[torch.Tensor] = []
    offset = 0
    memory = None if batch.latents else batch.arena.layer(layer.index, key, value)
    for row, begin, end in batch.places():
        length = row.start + end - begin
        first = _first_key(row, layer.window)
        if memory is None:
            keys, values = key[0, :, offset + first : offset + length], value[0, :, offset + first : offset + length]
            offset += length
        else:
            at = row.span.start
            keys, values = memory[0][:, at + first : at + length], memory[1][:, at + first : at + length]
        mask = batch.mask(row, query.shape[1] // keys.shape[0], layer.window, query, added=stock)
        out.append(grouped(query[0, :, begin:end], keys, values, mask, scaling=scaling, softcap=softcap, sinks=s_aux))
    return torch.cat(out, dim=1).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(ATTENTION, _attend)
