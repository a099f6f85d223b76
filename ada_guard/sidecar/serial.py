"""A KV cache for each stream, fed one row at a time: for models whose layers cannot share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ada_guard.errors import CheckError
from ada_guard.local.context import CheckPass, LocalContext
from ada_guard.local.model import LocalModel
from ada_guard.local.plan import plan_reading
from ada_guard.local.rollback import CacheSnapshot
from ada_guard.sidecar.packed import RowResult
from ada_guard.sidecar.reading import Wanted

if TYPE_CHECKING:
    from ada_guard.sidecar.slot import Slot

__all__ = ["SerialMemory"]

_MOST_CONTEXTS = 64
_SEPARATE: CheckPass = "separate"


class SerialMemory:
    """A cache of transformers for each stream, one row at a time: for layers that cannot share a pass.

    The header is fed in a pass of its own, and the cache put back afterwards, recurrent states too.

    Args:
        model: The model.
        why: Why not packed, in a word.
    """

    packed = False
    limit_bytes: int | None = None
    max_rows = 1
    copies = False

    def __init__(self, model: LocalModel, why: str) -> None:
        self.why_not_packed: str | None = why
        self._model = model
        self._open: dict[int, _Sequence] = {}

    def reserve(self, slot: Slot, tokens: int) -> bool:
        """A cache of its own, as long as there are not too many."""
        del tokens
        if slot.place is None:
            if len(self._open) >= _MOST_CONTEXTS:
                return False
            slot.place = _Sequence(self._model)
            self._open[id(slot.place)] = slot.place
        return True

    def release(self, slot: Slot) -> None:
        """Drops the cache."""
        if slot.place is not None:
            self._open.pop(id(slot.place), None)
            slot.place = None

    def cut(self, slot: Slot, tokens: int) -> bool:
        """Only where nothing has to be dropped: not every cache can."""
        place: _Sequence | None = slot.place
        return place is not None and place.kept == tokens

    def copy(self, source: Slot, target: Slot, tokens: int) -> bool:
        """Never."""
        return False

    def feed(self, rows: Sequence[tuple[Any, Wanted]], *, full: bool) -> list[RowResult]:
        """Row by row."""
        del full
        return [place.feed(row) for place, row in rows]

    def used_bytes(self) -> int:
        """Of all caches."""
        return sum(sequence.bytes() for sequence in self._open.values())


class _Sequence:
    """One stream's cache, with what is behind the stream's own tokens kept apart."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._context: LocalContext | None = None
        self._before: CacheSnapshot | None = None
        self._behind = 0
        self.kept = 0

    def feed(self, row: Wanted) -> RowResult:
        if row.start != self.kept + self._behind:
            self._take_out()
        if row.start != self.kept + self._behind:
            raise CheckError("this model's cache cannot go back")
        own, behind = list(row.ids[: row.keep]), list(row.ids[row.keep :])
        if own:
            if self._context is None:
                plan = plan_reading(self._model.model, own)
                self._context = LocalContext(self._model, plan, check_pass=_SEPARATE)
            else:
                self._context.append(own)
            self._context.next_logits()
            self.kept += len(own)
        return self._feed_behind(behind, row) if behind else RowResult()

    def _feed_behind(self, ids: list[int], row: Wanted) -> RowResult:
        assert self._context is not None
        if self._before is None:
            self._before = CacheSnapshot(self._context.cache)
        probe, states = self._model.probe, dict[int, torch.Tensor]()
        logits = self._context.forward(
            ids,
            rows=[len(ids) - 1],
            on_states=states.update if row.probe_at is not None else None,
            already_extra=self._behind,
        )
        self._behind += len(ids)
        harm = None
        if row.probe_at is not None and probe is not None:
            harm = probe.harm_probability(states[probe.hook_point.layer][0, row.probe_at - row.keep].float())
        best, index = logits[-1].max(dim=-1)
        return RowResult(
            harm_probability=harm,
            next_token=int(index) if row.wants_next else None,
            finite=bool(best.isfinite()),
        )

    def bytes(self) -> int:
        if self._context is None:
            return 0
        tensors = [value for layer in self._context.cache.layers for value in vars(layer).values()]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))

    def _take_out(self) -> None:
        if self._before is not None:
            self._before.restore()
        self._before, self._behind = None, 0
