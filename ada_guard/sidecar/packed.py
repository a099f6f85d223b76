"""Many sequences in one forward pass: rows of different lengths side by side, none padded. Knows no checker, no queue.

The rows of a batch stand one behind the other in one sequence ``[1, all tokens]``. An attention function of our own
lets each row see its own span of the arena and nothing else; model code is not patched. Where only the probe is asked,
the pass ends at the probe's layer: the blocks above it are neither computed nor cached.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from ada_guard.local.attention import attending, sliding_windows
from ada_guard.local.blocks import BLOCK_INPUT, decoder_blocks
from ada_guard.local.model import LocalModel
from ada_guard.sidecar.arena import Arena
from ada_guard.sidecar.packed_attention import ATTENTION, ArenaLayer, Batch, Row, running

__all__ = ["PackedModel", "Row", "RowResult"]


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
        windows = sliding_windows(self._config, layers)
        self._layers = [ArenaLayer(i, windows[i]) for i in range(layers)]
        self._cache = Cache(layers=[*self._layers])

    def feed(self, rows: Sequence[Row], *, full: bool) -> list[RowResult]:
        """One forward pass over all rows. Their keys and values are then in their spans.

        Args:
            rows: Of different sequences.
            full: Whether the blocks above the probe's layer are run too; needed for next tokens, and for whatever else
                such a row is to be followed by.
        """
        batch = Batch(self.arena, rows, self._layers, latents=self._latents)
        with self.model.lock, torch.inference_mode(), self._attention(batch):
            states, logits = self._pass(*self._inputs(rows), batch, full=full)
            return self._results(rows, batch, states, logits)

    def said(self, rows: Sequence[Row]) -> torch.Tensor:
        """As `feed`, for a trial: what the model says behind each row, float32.

        Returns:
            Logits ``[rows, vocabulary]``; where only the lower blocks are loaded, states ``[rows, hidden]``.
        """
        batch = Batch(self.arena, rows, self._layers, latents=self._latents)
        with self.model.lock, torch.inference_mode(), self._attention(batch):
            states, logits = self._pass(*self._inputs(rows), batch, full=not self.model.probe_only)
            if logits is None:
                assert states is not None
                logits = states[[end - 1 for end in batch.ends]]
            return logits.float()

    def _inputs(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and positions of all rows, int64 ``[1, tokens]`` each."""
        device = self._net.device
        ids = [i for row in rows for i in row.ids]
        positions = [row.start + i for row in rows for i in range(len(row.ids))]
        return torch.tensor([ids], device=device), torch.tensor([positions], device=device)

    def _pass(
        self, ids: torch.Tensor, positions: torch.Tensor, batch: Batch, *, full: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """States at the probe's hook position ``[tokens, hidden]``, and logits ``[rows that want one, vocabulary]``."""
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
        self, rows: Sequence[Row], batch: Batch, states: torch.Tensor | None, logits: torch.Tensor | None
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
    def _attention(self, batch: Batch) -> Iterator[None]:
        """Our attention for this pass. Whoever holds the model's lock may change what its configuration names."""
        with attending(self._net, ATTENTION), running(batch):
            yield

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
