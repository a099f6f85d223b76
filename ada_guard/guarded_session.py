"""A guarded stream that the user drives: push its deltas, get events. Knows no source."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TypeAlias

from ada_guard.checking import Checker
from ada_guard.delta import Fragment
from ada_guard.driver import follow, settle
from ada_guard.errors import CheckError, ConfigError, ContentFlaggedError
from ada_guard.events import Event, FinishReason
from ada_guard.session import StreamSession
from ada_guard.sidecar.protocol import Following
from ada_guard.steps import Steps, arun, run

__all__ = ["GuardedSession", "Pushed", "fragments_of"]

Pushed: TypeAlias = str | Fragment | Sequence[Fragment]
"""Answer text, or fragments of other channels (reasoning, tool calls)."""


def fragments_of(pushed: Pushed) -> tuple[Fragment, ...]:
    """What was pushed, as fragments.

    Raises:
        ConfigError: It is neither text nor fragments.
    """
    if isinstance(pushed, str):
        return (Fragment(text=pushed),) if pushed else ()
    fragments = (pushed,) if isinstance(pushed, Fragment) else pushed
    if not isinstance(fragments, Sequence) or not all(isinstance(each, Fragment) for each in fragments):
        raise ConfigError("a stream is text, a Fragment or a list of Fragments")
    return tuple(fragments)


class GuardedSession:
    """A guarded stream that the user drives. Use as a context manager, or call `close` or `abandon`.

    Not for use by several threads at once; open one session for each stream.
    """

    def __init__(self, session: StreamSession, following: Following, checker: Checker) -> None:
        self._checker = checker
        self._session = session
        self._following = following
        self._started = time.perf_counter()
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether the stream was cut or closed: nothing pushed from now on is looked at."""
        return self._session.ended or self._closed

    def push(self, delta: Pushed) -> list[Event]:
        """Takes the next part of the stream; returns what may be shown now, and what else happened.

        Raises:
            ContentFlaggedError: Only with ``on_flag="raise"``; what may be shown of the text is in its `events`.
            CheckError: Likewise, if the check could not be made.
        """
        return run(self._take(delta, None))

    def close(self, finish_reason: FinishReason = "stop") -> list[Event]:
        """The stream has ended by itself: checks and releases the rest. Empty after a cut or a second call."""
        return run(self._take((), finish_reason))

    async def apush(self, delta: Pushed) -> list[Event]:
        """As `push`, for async code."""
        return await arun(self._take(delta, None))

    async def aclose(self, finish_reason: FinishReason = "stop") -> list[Event]:
        """As `close`, for async code."""
        return await arun(self._take((), finish_reason))

    def abandon(self) -> None:
        """Drops the stream without a further check. What was held back is never shown."""
        run(self._drop())

    async def aabandon(self) -> None:
        """As `abandon`, for async code."""
        await arun(self._drop())

    def _drop(self) -> Steps[None]:
        self._closed = True
        yield from self._following.close()

    def _take(self, delta: Pushed, finish_reason: FinishReason | None) -> Steps[list[Event]]:
        session = self._session
        if self.ended:
            return []
        fragments, final = fragments_of(delta), finish_reason is not None
        try:
            yield from follow(session, self._following, self._checker, fragments, (), final)
        except BaseException:
            # What was pushed is lost to the sidecar: nothing that comes later could be judged with it.
            yield from self._drop()
            raise
        if finish_reason is not None:
            session.end(finish_reason)
        yield from settle(session, self._following, self._checker)
        events = session.drain()
        if session.ended:
            yield from self._drop()
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

    async def __aenter__(self) -> GuardedSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aabandon()
