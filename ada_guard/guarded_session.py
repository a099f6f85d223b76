"""A guarded stream that the user drives: push text, get events. Knows no source."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import TYPE_CHECKING

from ada_guard.checking import Checker
from ada_guard.driver import check_due, run_on
from ada_guard.errors import CheckError, ContentFlaggedError
from ada_guard.events import Event, FinishReason
from ada_guard.session import Piece, StreamSession

if TYPE_CHECKING:
    from ada_guard.sidecar.companion import CompanionStream

__all__ = ["GuardedSession"]


class GuardedSession:
    """A guarded stream that the user drives. Use as a context manager, or call `close` or `abandon`.

    Not for use by several threads at once; open one session for each stream.
    """

    def __init__(self, session: StreamSession, companion: CompanionStream, checker: Checker, worker: Executor) -> None:
        self._checker = checker
        self._worker = worker
        self._session = session
        self._companion = companion
        self._started = time.perf_counter()
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether the stream was cut or closed: nothing pushed from now on is looked at."""
        return self._session.ended or self._closed

    def push(self, delta: str) -> list[Event]:
        """Takes the next text of the stream; returns what may be shown now, and what else happened.

        Raises:
            ContentFlaggedError: Only with ``on_flag="raise"``; what may be shown of the text is in its `events`.
            CheckError: Likewise, if the check could not be made.
        """
        return [] if self.ended else self._take(self._companion.push(delta))

    def close(self, finish_reason: FinishReason = "stop") -> list[Event]:
        """The stream has ended by itself: checks and releases the rest. Empty after a cut or a second call."""
        return [] if self.ended else self._take(self._companion.flush(), finish_reason)

    async def apush(self, delta: str) -> list[Event]:
        """As `push`, for async code."""
        return await run_on(self._worker, lambda: self.push(delta))

    async def aclose(self, finish_reason: FinishReason = "stop") -> list[Event]:
        """As `close`, for async code."""
        return await run_on(self._worker, lambda: self.close(finish_reason))

    def abandon(self) -> None:
        """Drops the stream without a further check. What was held back is never shown."""
        self._closed = True
        self._companion.close()

    def _take(self, pieces: Sequence[Piece], finish_reason: FinishReason | None = None) -> list[Event]:
        session = self._session
        for piece in pieces:
            session.push(piece)
        if finish_reason is not None:
            session.end(finish_reason)
        while session.due is not None:
            check_due(session, self._companion, self._checker)
        events = session.drain()
        if session.ended:
            self.abandon()
            events.append(session.done(wall_ms=(time.perf_counter() - self._started) * 1000.0))
            if isinstance(session.error, ContentFlaggedError | CheckError):
                session.error.events = tuple(events)
            if session.error is not None:
                raise session.error
        return events

    def __enter__(self) -> GuardedSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
