"""One stream's place in a pool, and one piece of its work. Data: the pool decides."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from ada_guard.sidecar.reading import Rows, Tokens, Wanted

__all__ = ["Job", "Slot"]


class Slot:
    """One stream in a pool. Its ids may be appended to at any time; they are read when a check needs them.

    Args:
        ids: Prompt and prefill.
        full: Whether the blocks above the probe's layer are run and kept too.
        leave: Tells the pool that the stream has ended.

    Attributes:
        passed: Up to how many tokens a check has passed; the prompt counts as passed.
        last_used: Clock of the last row, in seconds.
        place: Where the memory keeps it; None without any.
    """

    def __init__(self, ids: list[int], *, full: bool, leave: Callable[[Slot], None]) -> None:
        self.tokens = Tokens(ids)
        self.full = full
        self.passed = len(ids)
        self.last_used = time.monotonic()
        self.closed = False
        self.place: Any = None
        self._leave = leave

    @property
    def ids(self) -> list[int]:
        """All tokens of the stream so far, the prompt's first."""
        return self.tokens.ids

    @ids.setter
    def ids(self, ids: list[int]) -> None:
        self.tokens.ids = ids

    def close(self) -> None:
        """Gives the place back. May be called twice."""
        self._leave(self)


@dataclass(slots=True, eq=False)
class Job:
    """Rows of one stream that end in a result.

    Attributes:
        slot: Whose.
        begin: Makes the rows; again after an eviction.
        future: Where the result goes.
        is_check: Otherwise a prompt is read ahead.
        rows: Once begun.
        wanted: The row that is to be fed next.
    """

    slot: Slot
    begin: Callable[[], Rows[Any]] = field(repr=False)
    future: Future[Any]
    is_check: bool
    rows: Rows[Any] | None = field(default=None, repr=False)
    wanted: Wanted | None = None

    @property
    def looks_ahead(self) -> bool:
        """Whether it has fed more than is kept, and goes on behind that."""
        return self.wanted is not None and self.wanted.start > self.slot.tokens.read

    def restart(self) -> None:
        """Back to the beginning: what its rows counted on is gone."""
        if self.rows is not None:
            self.rows.close()
        self.rows = self.wanted = None

    def settle(self, result: Any, error: Exception | None) -> None:
        """Hands over the result, or the error; to nobody, if nobody waits any more."""
        try:
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)
        except InvalidStateError:
            pass
