"""What moves a guarded stream: one flow of steps, run by a thin loop, sync or async. Knows no model and no socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from ada_guard.checking import Ask, CheckContext, Checker, Lookahead
from ada_guard.errors import CheckError
from ada_guard.events import Done, Event, FinishReason, Release
from ada_guard.session import Piece, StreamSession
from ada_guard.verdict import Verdict

__all__ = [
    "Flow",
    "Reinjection",
    "Run",
    "SidecarSession",
    "Source",
    "adrive",
    "check_due",
    "drive",
    "guarded",
    "unguarded",
]

T = TypeVar("T")


class Reinjection(Protocol):
    """The Safety Tokens in the context of one stream, while a check lasts."""

    def answer(self, ask: Ask) -> float | Lookahead:
        """Answers a checker's request."""
        ...


class SidecarSession(Protocol):
    """One stream's place in the model that judges it."""

    def reinjected(self, asks: frozenset[type[Ask]], *, depth: int) -> AbstractContextManager[Reinjection]:
        """Injects the Safety Tokens behind exactly `depth` assistant tokens, and takes them out again."""
        ...

    def close(self) -> None:
        """Frees the stream's memory. May be called twice."""
        ...


class Source(Protocol):
    """Where the pieces come from."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the source ended; None while it runs."""
        ...

    def next_piece(self) -> Piece | None:
        """The next piece; None when there is no further one."""
        ...

    def close(self) -> None:
        """Stops the work behind the stream. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A step that the loop must run where the model lives; its result is sent back into the flow."""

    call: Callable[[], Any]


Flow: TypeAlias = Generator[Event | Run, Any, None]


def guarded(session: StreamSession, source: Source, sidecar: SidecarSession, checker: Checker) -> Flow:
    """The steps and events of a guarded stream. The source is closed before the events of a cut are handed out."""
    started = time.perf_counter()
    while True:
        while session.due is not None:
            yield Run(lambda: check_due(session, sidecar, checker))
        if session.ended:
            source.close()
        yield from session.drain()
        if session.ended:
            break
        piece = yield Run(source.next_piece)
        if piece is not None:
            session.push(piece)
            del piece  # a suspended flow must not keep text alive that the session has dropped
        if source.finish_reason is not None:
            session.end(source.finish_reason)
    yield session.done(wall_ms=_ms_since(started))
    if session.error is not None:
        raise session.error


def unguarded(source: Source) -> Flow:
    """The same source without any check: the control that a guarded stream is compared with."""
    started = time.perf_counter()
    token_ids: list[int] = []
    while source.finish_reason is None:
        piece = yield Run(source.next_piece)
        if piece is None:
            continue
        if piece.is_token and piece.token_id is not None:
            token_ids.append(piece.token_id)
        if piece.text:
            yield Release(text=piece.text, depth=len(token_ids))
    yield Done(
        finish_reason=source.finish_reason,
        generated_tokens=len(token_ids),
        released_tokens=len(token_ids),
        unchecked_released_tokens=len(token_ids),
        checks=0,
        check_ms=0.0,
        wall_ms=_ms_since(started),
        token_ids=tuple(token_ids),
    )


def check_due(session: StreamSession, sidecar: SidecarSession, checker: Checker) -> Verdict | None:
    """Makes the check that is due and tells the session. None if it could not be made: fail closed is the session's."""
    depth = session.due
    if depth is None:
        raise RuntimeError("no check is due")
    context = CheckContext(depth=depth, generated_tokens=session.generated_tokens, answer=session.answer)
    started = time.perf_counter()
    try:
        verdict = _judge(checker, context, sidecar)
    except Exception as error:  # noqa: BLE001  # whatever went wrong, also in a user's checker: the text is unchecked
        reason = str(error) if type(error) is CheckError else type(error).__name__
        session.fail(reason, checker=checker.name, elapsed_ms=_ms_since(started))
        return None
    session.resolve(verdict, elapsed_ms=_ms_since(started))
    return verdict


def _judge(checker: Checker, context: CheckContext, sidecar: SidecarSession) -> Verdict:
    """Runs a checker's generator against a sidecar in this process."""
    with sidecar.reinjected(checker.asks, depth=context.depth) as header:
        checking = checker.check(context)
        answer: Any = None
        while True:
            try:
                ask = checking.send(answer)
            except StopIteration as stop:
                if not isinstance(stop.value, Verdict):
                    raise CheckError("the checker returned no verdict") from None
                return stop.value
            answer = header.answer(ask)


def drive(flow: Flow, source: Source) -> Generator[Event, None, None]:
    """Runs a flow in the calling thread. Closing the generator stops the source."""
    try:
        result: Any = None
        while True:
            try:
                step = flow.send(result)
            except StopIteration:
                return
            if isinstance(step, Run):
                result = step.call()
            else:
                result = None
                yield step
                del step
    finally:
        flow.close()
        source.close()


async def adrive(flow: Flow, source: Source, worker: Executor) -> AsyncGenerator[Event, None]:
    """Runs a flow on a worker thread. Cancelling waits for the running step, then stops the source."""
    try:
        result: Any = None
        while True:
            try:
                step = flow.send(result)
            except StopIteration:
                return
            if isinstance(step, Run):
                result = await run_on(worker, step.call)
            else:
                result = None
                yield step
                del step
    finally:
        flow.close()
        source.close()


async def run_on(worker: Executor, call: Callable[[], T]) -> T:
    """Awaits a call on a worker thread; if cancelled, not before the call has left the thread."""
    job = worker.submit(call)
    done = asyncio.wrap_future(job)
    cancelled = False
    while not done.done():
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError:
            cancelled = True
            job.cancel()  # takes effect only if it has not begun
    if cancelled:
        # Looked at, so that an error of a step nobody waits for is not reported as forgotten.
        _ = done.cancelled() or done.exception()
        raise asyncio.CancelledError
    return done.result()


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
