"""Who has room in a pool's memory, who gives it up, and what the next turn of a conversation begins with.

Used by the pool's thread only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ada_guard.sidecar.memory import Memory
from ada_guard.sidecar.slot import Slot

__all__ = ["Tenancy"]

_WORTH_REUSING_TOKENS = 16
_MOST_COMPARED = 64
"""Live streams a new one is compared with, those used last first."""


class Tenancy:
    """The slots that have a place in a memory.

    Args:
        memory: Where they are kept.
        max_retained: Finished conversations that are kept for their next turn.

    Attributes:
        retained: Those, the oldest first.
        evicted: How many live streams have lost their place so far.
        reused_tokens: How many tokens did not have to be read so far.
    """

    def __init__(self, memory: Memory, *, max_retained: int) -> None:
        self.memory = memory
        self.retained: list[Slot] = []
        self.evicted = 0
        self.reused_tokens = 0
        self._max_retained = max_retained

    def make_room(
        self, slot: Slot, tokens: int, *, live: Collection[Slot], busy: Collection[Slot]
    ) -> list[Slot] | None:
        """Makes a slot's place hold so many tokens, at the cost of others if it must.

        Args:
            slot: Whose place.
            tokens: How many.
            live: Slots of running streams, which may lose their place.
            busy: Slots that may not.

        Returns:
            The streams that lost their place, and must read their text again; None if there is no room.
        """
        lost: list[Slot] = []
        while not self.memory.reserve(slot, tokens):
            if self.retained:
                self.forget(self.retained.pop(0))
                continue
            idle = [one for one in live if one.place is not None and one not in busy and one is not slot]
            if not idle:
                return None
            victim = min(idle, key=lambda one: one.last_used)
            self.forget(victim)
            self.evicted += 1
            lost.append(victim)
        return lost

    def part(self, slot: Slot) -> None:
        """Takes leave of a stream, and keeps what its next turn may begin with: prompt and what passed, never more."""
        keep = min(slot.passed, slot.tokens.read)
        del slot.ids[keep:]
        slot.tokens.read = keep
        if slot.place is None:
            return
        if keep < _WORTH_REUSING_TOKENS or not self._max_retained or not self.memory.cut(slot, keep):
            self.forget(slot)
            return
        self.retained.append(slot)
        if len(self.retained) > self._max_retained:
            self.forget(self.retained.pop(0))

    def reuse(self, slot: Slot, live: Collection[Slot]) -> None:
        """Begins with what another conversation that begins alike has read: takes it over, or copies it."""
        recent = sorted(live, key=lambda one: one.last_used, reverse=True)[:_MOST_COMPARED]
        best, shared = None, 0
        for other in (*self.retained, *recent):
            if other.full == slot.full and other is not slot and other.place is not None:
                most = min(other.tokens.read, len(slot.ids) - 1)
                if most > shared and (common := _common(other.ids, slot.ids, most)) > shared:
                    best, shared = other, common
        if best is None or shared < _WORTH_REUSING_TOKENS:
            return
        if best in self.retained and (shared >= len(best.ids) // 2 or not self.memory.copies):
            if not self.memory.cut(best, shared):
                return
            self.retained.remove(best)
            slot.place, best.place = best.place, None
        elif not self.memory.copies or not self.memory.copy(best, slot, shared):
            return
        slot.tokens.read = shared
        self.reused_tokens += shared

    def forget(self, slot: Slot) -> None:
        """Takes a slot's place back. Its text is read again when it is due; also after a pass that failed half-way."""
        self.memory.release(slot)
        slot.tokens.read = 0


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Length of the common beginning, at most `most`; by halving, since comparing slices is fast."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
