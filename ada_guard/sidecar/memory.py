"""Where a pool keeps the sequences of its streams: all in one arena, or a cache for each where a model needs that.

Which of the two is found out by trying: the packed pass must say what the model itself says of the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ada_guard.checking import LOOKAHEAD_TOKENS
from ada_guard.errors import ConfigError
from ada_guard.local.attention import depends_on_length
from ada_guard.local.blocks import reading
from ada_guard.local.model import LocalModel
from ada_guard.sidecar.arena import Arena
from ada_guard.sidecar.packed import PackedModel, Row, RowResult
from ada_guard.sidecar.reading import Wanted
from ada_guard.sidecar.serial import SerialMemory

if TYPE_CHECKING:
    from ada_guard.sidecar.slot import Slot

__all__ = ["Memory", "PackedMemory", "open_memory"]

_CPU_BYTES = 1 << 30
_GPU_SHARE = 0.5
"""Of what is free once the model is loaded. The rest is for the activations of a pass and for a generator beside."""


class Memory(Protocol):
    """The KV memory of a pool. Used by its thread only."""

    packed: bool
    why_not_packed: str | None
    limit_bytes: int | None
    max_rows: int
    copies: bool
    """Whether one sequence can begin as a copy of another's beginning."""

    def reserve(self, slot: Slot, tokens: int) -> bool:
        """Makes a slot's place hold so many tokens. False: there is no room."""
        ...

    def release(self, slot: Slot) -> None:
        """Takes a slot's place back."""
        ...

    def cut(self, slot: Slot, tokens: int) -> bool:
        """Drops what stands behind the first so many tokens. False: that cannot be done."""
        ...

    def copy(self, source: Slot, target: Slot, tokens: int) -> bool:
        """Lets a slot begin with the first tokens of another. False: there is no room."""
        ...

    def feed(self, rows: Sequence[tuple[Any, Wanted]], *, full: bool) -> list[RowResult]:
        """Feeds rows, each into the place of its slot."""
        ...

    def used_bytes(self) -> int:
        """Memory of the keys and values that are kept, in bytes."""
        ...


def open_memory(model: LocalModel, *, kv_bytes: int | None, packed: bool | None) -> Memory:
    """The arena if the model takes packed rows, else a cache for each stream.

    Args:
        model: The model.
        kv_bytes: Bound of the arena; None is a share of what there is.
        packed: False does not try.

    Raises:
        ConfigError: Only the model's lower blocks are loaded, and it cannot be packed: a cache for each stream needs
            the whole model.
    """
    why = "switched off" if packed is False else _why_not_packed(model)
    if why is not None and model.probe_only:
        raise ConfigError(f"this model must be loaded as a whole, without probe_only: its rows are not packed ({why})")
    if why is not None:
        return SerialMemory(model, why)
    return PackedMemory(model, kv_bytes if kv_bytes is not None else _default_bytes(model.model.device))


def _default_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _GPU_SHARE)


class PackedMemory:
    """All sequences in one arena.

    Args:
        model: The model.
        limit_bytes: Of the arena.
    """

    packed = True
    why_not_packed: str | None = None
    max_rows = 1 << 30
    copies = True

    def __init__(self, model: LocalModel, limit_bytes: int) -> None:
        self.limit_bytes: int | None = limit_bytes
        # Sized for all layers: how many of them are kept is known only when streams say what they will ask.
        per_token = _bytes_per_token(model)
        self._arena = Arena(max(64, limit_bytes // per_token), device=model.model.device)
        self._model = PackedModel(model, self._arena)

    def reserve(self, slot: Slot, tokens: int) -> bool:
        """A span of the arena."""
        if slot.place is None:
            slot.place = self._arena.take(tokens)
            return slot.place is not None
        return self._arena.grow(slot.place, tokens, filled=slot.tokens.read)

    def release(self, slot: Slot) -> None:
        """Gives the span back."""
        if slot.place is not None:
            self._arena.give_back(slot.place)
            slot.place = None

    def cut(self, slot: Slot, tokens: int) -> bool:
        """Nothing to do: what is not counted is not seen."""
        return True

    def copy(self, source: Slot, target: Slot, tokens: int) -> bool:
        """Copies within the arena."""
        if not self.reserve(target, tokens + 1):
            return False
        try:
            self._arena.copy(source.place, target.place, tokens)
        except Exception:
            self.release(target)
            raise
        return True

    def feed(self, rows: Sequence[tuple[Any, Wanted]], *, full: bool) -> list[RowResult]:
        """One pass for all."""
        return self._model.feed(
            [
                Row(span=span, start=row.start, ids=row.ids, probe_at=row.probe_at, wants_next=row.wants_next)
                for span, row in rows
            ],
            full=full,
        )

    def used_bytes(self) -> int:
        """Of the spans that are handed out."""
        return self._arena.used_tokens * self._arena.bytes_per_token


def _bytes_per_token(model: LocalModel) -> int:
    arena = Arena(64, device=model.model.device)
    span = arena.take(8)
    assert span is not None
    whole = not model.probe_only
    row = Row(span=span, start=0, ids=[0, 0], probe_at=None if whole else 1, wants_next=whole)
    PackedModel(model, arena).feed([row], full=whole)
    return arena.bytes_per_token


def _why_not_packed(model: LocalModel) -> str | None:
    """Tries packed rows on the model itself; None if they say what it says, else the reason in a word or two."""
    if (special := depends_on_length(model.model)) is not None:
        return special
    size = min(int(model.model.get_input_embeddings().weight.shape[0]), 1000)
    lengths, header = (37, 11, 23), list(model.spec.rethink.ids)
    texts = [[(7 * i + 13 * n) % size for i in range(n)] for n in lengths]
    try:
        arena = Arena(64 * 2 * len(texts), device=model.model.device)
        packed, spans = PackedModel(model, arena), [arena.take(n + len(header) + LOOKAHEAD_TOKENS) for n in lengths]
        # The first part; then the rest with a header; then, the header forgotten, the header once more.
        cuts = [n // 2 for n in lengths]
        _fed(packed, spans, [0] * len(texts), [t[:c] for t, c in zip(texts, cuts, strict=True)])
        _fed(packed, spans, cuts, [t[c:] + header for t, c in zip(texts, cuts, strict=True)])
        found = _fed(packed, spans, list(lengths), [header] * len(texts))
        expected = [_alone(model, [*text, *header]) for text in texts]
    except Exception as error:  # noqa: BLE001  # whatever this architecture does otherwise: it is run as it is
        return type(error).__name__
    tolerance = 1e-3 if model.model.dtype == torch.float32 else 5e-2
    for one, other in zip(found, expected, strict=True):
        if not float((one - other).norm()) <= tolerance * float(other.norm()):
            return "other numbers"
    return None


def _fed(
    packed: PackedModel, spans: Sequence[Any], starts: Sequence[int], ids: Sequence[list[int]]
) -> list[torch.Tensor]:
    rows = [
        Row(span=span, start=start, ids=part, wants_next=True)
        for span, start, part in zip(spans, starts, ids, strict=True)
    ]
    return list(packed.said(rows))


def _alone(model: LocalModel, ids: list[int]) -> torch.Tensor:
    """What `PackedModel.said` ought to say of a sequence."""
    fed = torch.tensor([ids], device=model.model.device)
    said: torch.Tensor
    with model.lock, torch.inference_mode():
        if not model.probe_only:
            said = model.model(input_ids=fed, use_cache=False).logits[0, -1].float()
            return said
        assert model.probe is not None
        point = model.probe.hook_point
        with reading(model.model, [point], stop=True) as states:
            model.model(input_ids=fed, use_cache=False)
        said = states.by_layer[point.layer][0, -1].float()
        return said
