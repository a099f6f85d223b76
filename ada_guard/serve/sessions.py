"""The sessions of a server: one stream's place each, its requests one after the other, forgotten when idle.

Knows no HTTP. Text of a session is held by its sidecar, and by the last answer until the next request: an answer that
was lost on its way is given again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from ada_guard.checking import Ask, CheckContext
from ada_guard.errors import CheckError, ConfigError, GenerationError
from ada_guard.policy import Schedule
from ada_guard.serve.asked import AskedChecker
from ada_guard.serve.faults import Refused
from ada_guard.serve.metrics import Metrics
from ada_guard.serve.settings import ServeSettings
from ada_guard.session import Piece
from ada_guard.sidecar.companion import Companion
from ada_guard.sidecar.protocol import Conversation, Following, Sidecar
from ada_guard.sidecar.wire import KINDS, MAX_IDS, Advance, Advanced, CheckOrder, CheckResult, Open, PieceMessage
from ada_guard.steps import arun, run, run_on

__all__ = ["Session", "Sessions", "check_at"]


@dataclass(slots=True, eq=False)
class Session:
    """One stream.

    Attributes:
        name: Known to its client only.
        following: Its place in the sidecar.
        asks: The kinds of requests that its checks may make.
        lock: Held by the request that is being done.
        depth: Assistant tokens so far, prefill included.
        seq: Number of the last request.
        answer: To that request.
        ended: Whether the stream has ended.
        last_used: When the last request was done, on the monotonic clock.
    """

    name: str = field(repr=False)
    following: Following
    asks: frozenset[type[Ask]]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    depth: int = 0
    seq: int = 0
    answer: Advanced | None = field(default=None, repr=False)
    ended: bool = False
    last_used: float = field(default_factory=time.monotonic)

    def extend(self, request: Advance) -> None:
        """Takes what the stream has produced. Long texts take their time: on a worker thread."""
        pieces: list[Piece] = []
        for part in request.parts:
            fragments = [message.fragment() for message in part.fragments]
            pieces += run(self.following.push(fragments, part.token_ids))
        if request.final and not self.ended:
            pieces += run(self.following.flush())
        self.ended = self.ended or request.final
        self.depth += sum(piece.is_token for piece in pieces)
        # The answer stands before the checks are made: they can be cancelled, this cannot be undone.
        self.seq = request.seq
        self.answer = Advanced(seq=request.seq, pieces=[PieceMessage.of(piece) for piece in pieces])


class Sessions:
    """All sessions of a server.

    Args:
        sidecar: What judges.
        settings: Bounds.
        worker: Where texts are turned into tokens.
    """

    def __init__(self, sidecar: Sidecar, settings: ServeSettings, worker: Executor) -> None:
        self._sidecar = sidecar
        self._settings = settings
        self._worker = worker
        self._sessions: dict[str, Session] = {}
        self._others = 0
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._sessions)

    async def open(self, request: Open) -> Session:
        """Begins a session.

        Raises:
            Refused: There is no room, or the conversation cannot be shown to the model.
        """
        conversation = Conversation(
            messages=request.messages,
            tools=request.tools,
            template_kwargs=request.template_kwargs,
            raw_prompt=request.raw_prompt,
        )
        asks = frozenset(KINDS[kind] for kind in request.asks)
        opened: list[Following] = []
        with self.room():
            opening = self._sidecar.open(conversation, asks=asks, schedule=Schedule())
            try:
                await run_on(self._worker, lambda: opened.append(run(opening)))
            except asyncio.CancelledError:  # the client has left, perhaps too late to keep it from being opened
                for each in opened:
                    await arun(each.close())
                raise
            except ConfigError as error:
                refused = Refused(422, "not_showable", str(error))
            except CheckError as error:
                refused = self._no_room("sidecar_full", str(error))
            else:
                following = opened[0]
                session = Session(secrets.token_urlsafe(24), following, asks, depth=following.prefill_tokens)
                self._sessions[session.name] = session
                return session
        raise refused

    def room(self) -> _Room:
        """Holds the place of something that has no session (yet).

        Raises:
            Refused: There is none.
        """
        return _Room(self)

    async def advance(self, name: str, request: Advance, metrics: Metrics) -> Advanced:
        """Extends a session and makes the checks that were ordered.

        Raises:
            Refused: There is no such session, the request is not its next one, or too many wait.
        """
        session = self._sessions.get(name)
        if session is None:
            raise Refused(404, "unknown_session", "there is no such session; it may have been forgotten")
        if self._waiting >= self._settings.max_waiting:
            raise self._no_room("overloaded", "too many requests wait for the model")
        self._waiting += 1
        try:
            async with session.lock:
                if name not in self._sessions:
                    raise Refused(404, "unknown_session", "the session was closed")
                return await self._advance(session, request, metrics)
        finally:
            self._waiting -= 1
            session.last_used = time.monotonic()

    async def close(self, name: str, *, passed_tokens: int = 0) -> None:
        """Forgets a session, whether it exists or not.

        Args:
            name: Its name.
            passed_tokens: How many assistant tokens its client has seen pass: the next turn of the conversation may
                begin with those.
        """
        session = self._sessions.pop(name, None)
        if session is not None:
            async with session.lock:
                session.answer = None
                if isinstance(session.following, Companion):
                    session.following.mark_passed(passed_tokens)
                await arun(session.following.close())

    async def expire(self, forgotten: Callable[[], None]) -> None:
        """Forgets the sessions that were idle for too long."""
        before = time.monotonic() - self._settings.idle_s
        for session in list(self._sessions.values()):
            if session.last_used < before and not session.lock.locked():
                await self.close(session.name)
                forgotten()

    async def close_all(self) -> None:
        """Forgets all of them."""
        for name in list(self._sessions):
            await self.close(name)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _no_room(self, code: str, message: str) -> Refused:
        return Refused(503, code, message, retry_after_s=self._settings.retry_after_s)

    async def _advance(self, session: Session, request: Advance, metrics: Metrics) -> Advanced:
        if session.answer is not None and request.seq == session.seq:
            return session.answer
        if sum(len(part.token_ids) for part in request.parts) > MAX_IDS:
            raise Refused(422, "too_many_ids", f"a request may have {MAX_IDS} token ids")
        if request.seq != session.seq + 1 or (session.ended and request.parts):
            raise Refused(409, "out_of_step", "the request is not the session's next one")
        failure: Exception | None = None
        try:
            await run_on(self._worker, lambda: session.extend(request))
        except Exception as error:  # noqa: BLE001  # raised below, once the session is closed
            failure = error
        if failure is not None:
            # Nobody knows how far it came.
            self._sessions.pop(session.name, None)
            await arun(session.following.close())
            if isinstance(failure, GenerationError):
                raise Refused(422, "broken_stream", str(failure))
            if isinstance(failure, CheckError):
                raise Refused(422, "unreadable_stream", str(failure))
            raise failure
        assert session.answer is not None
        results: list[CheckResult] = []
        for order in request.checks:
            depth = session.depth if order.depth is None and session.ended else order.depth
            reached = depth is not None and session.following.prefill_tokens <= depth <= session.depth
            if depth is None or not reached or any(result.depth == depth for result in results):
                continue
            results.append(await self._check(session, depth, order, metrics))
            # Also after the first of them: what is known must not be lost with a client that goes away.
            session.answer = session.answer.model_copy(update={"checks": list(results)})
            if results[-1].error is not None:
                break
        return session.answer

    async def _check(self, session: Session, depth: int, order: CheckOrder, metrics: Metrics) -> CheckResult:
        return await check_at(
            session.following, depth, AskedChecker(order.asks, session.asks), self._settings.check_timeout_s, metrics
        )


class _Room:
    """A place among the sessions, for as long as the block lasts."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def __enter__(self) -> None:
        sessions = self._sessions
        if len(sessions._sessions) + sessions._others >= sessions._settings.max_sessions:
            raise sessions._no_room("sessions_full", "as many sessions are open as there may be")
        sessions._others += 1

    def __exit__(self, *_: object) -> None:
        self._sessions._others -= 1


async def check_at(
    following: Following, depth: int, checker: AskedChecker, timeout_s: float, metrics: Metrics
) -> CheckResult:
    """Makes a check, and says what was found or why nothing was."""
    context = CheckContext(depth=depth, generated_tokens=depth - following.prefill_tokens, answer=str)
    started = time.perf_counter()
    error: str | None = None
    partial = False
    outcome: str = "cancelled"
    try:
        async with asyncio.timeout(timeout_s):
            verdict = await arun(following.check(checker, context))
        partial, outcome = verdict.partial_view, "answered"
    except TimeoutError:
        error, outcome = "the check timed out", "timeout"
    except CheckError as failure:
        error, outcome = str(failure), "failed"
    except Exception as failure:  # noqa: BLE001  # of the model or the library: its message may hold text
        error, outcome = type(failure).__name__, "failed"
    finally:
        metrics.checked(outcome, time.perf_counter() - started)  # type: ignore[arg-type]
    answers = checker.answers if error is None else []
    return CheckResult(depth=depth, answers=answers, error=error, partial_view=partial)
