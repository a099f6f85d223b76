"""The figures of a pool. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PoolStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What a pool holds and has done.

    Attributes:
        sessions: Streams that are open.
        waiting: Checks in the queue.
        kv_bytes: Memory of keys and values in use, in bytes.
        kv_limit_bytes: Its bound; None where sessions are counted instead.
        retained: Conversations kept for their next turn.
        evicted: Streams whose memory was taken for others, so far; they read their text again when they are due.
        checks: Checks made so far, passed or not.
        passes: Forward passes so far.
        rows: Rows fed in them; per pass, how well the work of streams is gathered.
        reused_tokens: Prompt tokens that did not have to be read because an earlier conversation began alike.
        packed: Whether rows of many streams share a pass.
        why_not_packed: Why not, in a word; None if they do.
    """

    sessions: int
    waiting: int
    kv_bytes: int
    kv_limit_bytes: int | None
    retained: int
    evicted: int
    checks: int
    passes: int
    rows: int
    reused_tokens: int
    packed: bool
    why_not_packed: str | None
