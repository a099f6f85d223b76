"""Many sequences in one forward pass: rows of different lengths side by side, none padded. Knows no checker and no queue.

The rows of a batch stand one behind the other in one sequence ``[1, all tokens]``. An attention function of our own
lets each row see its own span of the arena and nothing else; model code is not patched. Where only the probe is asked,
the pass ends at the probe's layer: the blocks above it are neither computed nor cached.
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
from transformers.cache_utils import Cache, CacheLayerMixin

from ada_guard.local.blocks import BLOCK_INPUT, decoder_blocks
from ada_guard.local.model import LocalModel
from ada_guard.sidecar.arena import Arena, Span

__all__ = ["PackedModel", "Row", "RowResult"]

_ATTENTION = "ada_guard_packed"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What a pass says of one row.

    Attributes:
        harm_probability: At `Row.probe_at`; NaN if the state was not finite; None where it was not asked for.
        next_token: The greedy one; None where it was not asked for.
        finite: False if the logits behind `next_token` were not finite.
    """

    harm_probability: float | None = None
    next_token: int | None = None
    finite: bool = True


class PackedModel:
    """A model that is fed rows of many sequences at once.

    Args:
        model: The model. Passes take its lock.
        arena: Where the sequences are kept.
    """

    def __init__(self, model: LocalModel, arena: Arena) -> None:
        self.model = model
        self.arena = arena
        self._net: Any = model.model
        self._config: Any = self._net.config.get_text_config(decoder=True)
        layers = len(decoder_blocks(self._net))
        self._latents = getattr(self._config, "kv_lora_rank", None) is not None
        windows = _windows(self._config, layers)
        self._layers = [_ArenaLayer(i, windows[i]) for i in range(layers)]
        self._cache = Cache(layers=[*self._layers])

    def feed(self, rows: Sequence[Row], *, full: bool) -> list[RowResult]:
        """One forward pass over all rows. Their keys and values are then in their spans.

        Args:
            rows: Of different sequences.
            full: Whether the blocks above the probe's layer are run too; needed for next tokens, and for whatever else
                such a row is to be followed by.
        """
        batch = _Batch(self.arena, rows, self._layers, latents=self._latents)
        with self.model.lock, torch.inference_mode(), self._attention(batch):
            states, logits = self._pass(*self._inputs(rows), batch, full=full)
            return self._results(rows, batch, states, logits)

    def logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """As `feed`, for a trial: the logits behind each row, float32 ``[rows, vocabulary]``."""
        batch = _Batch(self.arena, rows, self._layers, latents=self._latents)
        with self.model.lock, torch.inference_mode(), self._attention(batch):
            _, logits = self._pass(*self._inputs(rows), batch, full=True)
            assert logits is not None
            return logits.float()

    def _inputs(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and positions of all rows, int64 ``[1, tokens]`` each."""
        device = self._net.device
        ids = [i for row in rows for i in row.ids]
        positions = [row.start + i for row in rows for i in range(len(row.ids))]
        return torch.tensor([ids], device=device), torch.tensor([positions], device=device)

    def _pass(
        self, ids: torch.Tensor, positions: torch.Tensor, batch: _Batch, *, full: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The states at the probe's hook position ``[tokens, hidden]`` and the logits ``[rows that want one, vocab]``."""
        wanted = [end - 1 for row, end in zip(batch.rows, batch.ends, strict=True) if row.wants_next]
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
            "logits_to_keep": torch.tensor(wanted or [0], device=ids.device),
        }
        with self._read(stop=not full) as found:
            try:
                logits = self._net(**inputs, return_dict=True).logits[0]
            except _ProbeReadError:
                logits = None
        states = found[0][0] if found else None
        return states, (logits if wanted else None)

    def _results(
        self, rows: Sequence[Row], batch: _Batch, states: torch.Tensor | None, logits: torch.Tensor | None
    ) -> list[RowResult]:
        """One transfer from the device for all rows."""
        harm: Iterator[float] = iter(())
        probe = self.model.probe
        if states is not None and probe is not None:
            at = [end - len(row.ids) + row.probe_at for row, end in zip(rows, batch.ends, strict=True)
                  if row.probe_at is not None]  # fmt: skip
            harm = iter(probe.harm_probabilities(states[at].float()) if at else [])
        tokens: Iterator[tuple[int, float]] = iter(())
        if logits is not None:
            best, index = logits.float().max(dim=-1)
            tokens = iter(zip(index.tolist(), best.tolist(), strict=True))
        results = []
        for row in rows:
            p = next(harm) if row.probe_at is not None else None
            token, value = next(tokens) if row.wants_next else (None, 0.0)
            results.append(RowResult(harm_probability=p, next_token=token, finite=math.isfinite(value)))
        return results

    @contextmanager
    def _attention(self, batch: _Batch) -> Iterator[None]:
        """Our attention for this pass. Whoever holds the model's lock may change what its configuration names."""
        configs = {id(c): c for c in (self._net.config, self._config)}.values()
        before = [config._attn_implementation_internal for config in configs]
        _running.batch = batch
        try:
            for config in configs:
                config._attn_implementation_internal = _ATTENTION
            yield
        finally:
            _running.batch = None
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation_internal = name

    @contextmanager
    def _read(self, *, stop: bool) -> Iterator[list[torch.Tensor]]:
        """Collects the states at the probe's hook position, and ends the pass there if that is all that is wanted."""
        found: list[torch.Tensor] = []
        probe = self.model.probe
        if probe is None:
            yield found
            return
        ours = threading.get_ident()
        block = decoder_blocks(self._net)[probe.hook_point.layer]

        def take(state: torch.Tensor) -> None:
            if threading.get_ident() == ours:
                found.append(state)
                if stop:
                    raise _ProbeReadError

        if probe.hook_point.position == BLOCK_INPUT:
            handle = block.register_forward_pre_hook(
                lambda _module, args, kwargs: take(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        else:
            handle = block.get_submodule(probe.hook_point.position).register_forward_hook(
                lambda _module, _args, output: take(output[0] if isinstance(output, tuple) else output)
            )
        try:
            yield found
        finally:
            handle.remove()


class _ProbeReadError(Exception):
    """Ends a forward pass in which only the probe's state was wanted. No error."""


class _Batch:
    """The rows of one pass and where each stands in it."""

    def __init__(self, arena: Arena, rows: Sequence[Row], layers: Sequence[_ArenaLayer], *, latents: bool) -> None:
        self.arena = arena
        self.layers = layers
        self.rows = rows
        self.latents = latents
        self.ends: list[int] = []
        for row in rows:
            self.ends.append((self.ends[-1] if self.ends else 0) + len(row.ids))
        self._masks: dict[tuple[int, int, int, int | None], torch.Tensor | None] = {}

    def places(self) -> Iterator[tuple[Row, int, int]]:
        """Each row with its beginning and end in the pass."""
        for row, end in zip(self.rows, self.ends, strict=True):
            yield row, end - len(row.ids), end

    def mask(self, row: Row, groups: int, window: int | None, device: torch.device) -> torch.Tensor | None:
        """Which of a row's keys each query sees, bool ``[groups * queries, keys]``; None if all do.

        Keys that no query of the row can see because of a sliding window are left out on the left.
        """
        queries = len(row.ids)
        key = (row.start, queries, groups, window)
        if key not in self._masks:
            self._masks[key] = None if queries == 1 else _mask(row, _first_key(row, window), groups, window, device)
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


class _ArenaLayer(CacheLayerMixin):
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
        batch: _Batch = _running.batch
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
    batch: _Batch | None = getattr(_running, "batch", None)
    if batch is None:
        # The user's own pass, in another thread, while ours has our attention configured.
        raise RuntimeError("a sidecar uses this model: run it under the lock of its LocalModel")
    layer = batch.layers[module.layer_idx]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
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
        # The query heads that share a key head are laid side by side as further queries: no key is copied.
        heads, groups = keys.shape[0], query.shape[1] // keys.shape[0]
        folded = query[0, :, begin:end].reshape(heads, groups * (end - begin), -1)
        mask = batch.mask(row, groups, layer.window, query.device)
        if softcap is None and s_aux is None:
            seen = torch.nn.functional.scaled_dot_product_attention(
                folded[None], keys[None], values[None], attn_mask=mask, scale=scaling
            )[0]
        else:
            seen = _explicit(folded, keys, values, mask, scaling, softcap, s_aux, end - begin)
        out.append(seen.reshape(heads * groups, end - begin, -1))
    return torch.cat(out, dim=1).transpose(0, 1)[None].contiguous(), None


def _explicit(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    s_aux: torch.Tensor | None,
    queries: int,
) -> torch.Tensor:
    """Attention written out, for score caps and sinks; all ``[kv_heads, ...]``, softmax in float32."""
    scores = (query @ keys.transpose(1, 2)).float() * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if s_aux is None:
        weights = scores.softmax(dim=-1)
    else:
        sinks = s_aux.float().reshape(scores.shape[0], -1, 1, 1)
        sinks = sinks.expand(-1, -1, queries, 1).reshape(scores.shape[0], -1, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    return weights.to(values.dtype) @ values


def _windows(config: Any, layers: int) -> list[int | None]:
    """The sliding window of each layer in tokens, None for full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return [window if kind == "sliding_attention" else None for kind in kinds[:layers]]
    return [window if getattr(config, "use_sliding_window", True) else None] * layers


AttentionInterface.register(_ATTENTION, _attend)
