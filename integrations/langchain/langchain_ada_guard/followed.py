"""Runs of models that are shown to a guard from outside. Knows no callbacks: it is told what a run wrote."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage

from ada_guard import Check, Event, Guard, Halt
from ada_guard.delta import Fragment
from ada_guard.errors import CheckError, ContentFlaggedError
from ada_guard.guarded_session import GuardedSession
from ada_guard.verdict import Decision, Verdict
from langchain_ada_guard.fragments import MessageReader

__all__ = ["FollowedRuns", "Told", "event_fragments", "said"]

Told: TypeAlias = Literal["token", "event"]
"""Which kind of callback shows a run's text: LangChain may call both with the same."""
_TEXT_DELTAS: Mapping[str, tuple[str, Literal["text", "reasoning"]]] = {
    "text-delta": ("text", "text"),
    "reasoning-delta": ("reasoning", "reasoning"),
}


@dataclass(slots=True)
class _Run:
    asked: dict[str, Any]
    session: GuardedSession
    reader: MessageReader = field(default_factory=MessageReader)
    told: Told | None = None
    last_check: Check | None = None


class FollowedRuns:
    """The runs that a guard follows.

    A run that was cut, or dropped because there were too many, raises again whenever it goes on.

    Args:
        guard: Who judges.
        record: Called with each event that is found.
        most: Runs that are followed at once; past that the one that was idle the longest is dropped.
    """

    def __init__(self, guard: Guard, record: Callable[[UUID, Event], None], most: int) -> None:
        self._guard = guard
        self._record = record
        self._most = most
        self._lock = threading.Lock()
        self._open: OrderedDict[UUID, _Run] = OrderedDict()
        self._broken_off: OrderedDict[UUID, Callable[[], Exception]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, run_id: UUID, asked: dict[str, Any]) -> None:
        """Follows a run from now on."""
        run = _Run(asked, self._guard.session(**asked))
        forgotten: _Run | None = None
        with self._lock:
            self._open[run_id] = run
            if len(self._open) > self._most:
                oldest, forgotten = self._open.popitem(last=False)
                self._break_off(oldest, _too_many)
        if forgotten is not None:
            forgotten.session.abandon()

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._open

    def told(self, run_id: UUID) -> Told | None:
        """Which kind of callback shows a run's text; None before one did."""
        with self._lock:
            run = self._open.get(run_id)
            return None if run is None else run.told

    def wrote(self, run_id: UUID, told: Told, written: BaseMessage | Sequence[Fragment]) -> None:
        """A run's model wrote something. Counts once where both kinds of callback show it.

        Raises:
            ContentFlaggedError: A check flagged.
            CheckError: A check could not be made, and the policy does not let that pass.
        """
        with self._lock:
            run = self._running(run_id)
            if run is None:
                return
            self._open.move_to_end(run_id)
            run.told = run.told or told
        if run.told != told:
            return
        fragments = run.reader.read(written).fragments if isinstance(written, BaseMessage) else written
        if fragments:
            self._judge(run_id, run, lambda: run.session.push(fragments))

    def ended(self, run_id: UUID, answers: Sequence[Sequence[Fragment]]) -> None:
        """A run's model has ended by itself: the rest is judged, or all of it where nothing was shown before.

        Raises:
            ContentFlaggedError: As in `wrote`.
            CheckError: As in `wrote`.
        """
        with self._lock:
            run = self._running(run_id)
            self._open.pop(run_id, None)
        if run is None:
            return
        try:
            if run.told is not None:
                self._judge(run_id, run, run.session.close)
                return
        finally:
            run.session.abandon()
        for fragments in answers:
            self._judge_whole(run_id, run.asked, fragments)

    def failed(self, run_id: UUID) -> bool:
        """A run was broken off; returns whether it was broken off by this object."""
        with self._lock:
            run = self._open.pop(run_id, None)
            ours = self._broken_off.pop(run_id, None) is not None
        if run is not None:
            run.session.abandon()
        return ours

    def _running(self, run_id: UUID) -> _Run | None:
        if run_id in self._broken_off:
            raise self._broken_off[run_id]()
        return self._open.get(run_id)

    def _judge_whole(self, run_id: UUID, asked: dict[str, Any], fragments: Sequence[Fragment]) -> None:
        run = _Run(asked, self._guard.session(**asked))
        with run.session as session:
            self._judge(run_id, run, lambda: session.push(fragments))
            self._judge(run_id, run, session.close)

    def _judge(self, run_id: UUID, run: _Run, step: Callable[[], Sequence[Event]]) -> None:
        """Does a step of a session; raises if it cut the stream."""
        try:
            events: Sequence[Event] = step()
        except (ContentFlaggedError, CheckError) as error:
            if not error.events:
                raise
            events = error.events
        halt: Halt | None = None
        for event in events:
            run.last_check = event if isinstance(event, Check) else run.last_check
            halt = event if isinstance(event, Halt) else halt
            self._record(run_id, event)
        if halt is None:
            return
        found, check = halt, run.last_check
        with self._lock:
            self._open.pop(run_id, None)
            self._break_off(run_id, lambda: _error(found, check))
        run.session.abandon()
        # Made anew: the session's own error holds the text that had passed.
        raise _error(found, check)

    def _break_off(self, run_id: UUID, why: Callable[[], Exception]) -> None:
        self._broken_off[run_id] = why
        if len(self._broken_off) > self._most:
            self._broken_off.popitem(last=False)


def event_fragments(event: Mapping[str, Any]) -> tuple[Fragment, ...]:
    """What an event of LangChain's v3 protocol adds to the answer."""
    if event.get("event") == "content-block-delta":
        delta = event.get("delta") or {}
        key, channel = _TEXT_DELTAS.get(delta.get("type", ""), ("", "text"))
        return (Fragment(text=delta[key], channel=channel),) if delta.get(key) else ()
    block: Any = event.get("content") or {}
    if event.get("event") != "content-block-finish" or block.get("type") in ("text", "reasoning"):
        return ()
    return said(AIMessage(content_blocks=[block]))


def said(answer: BaseMessage | str) -> tuple[Fragment, ...]:
    """What of a whole answer a guard must see."""
    if isinstance(answer, BaseMessage):
        return MessageReader().read(answer).fragments
    return (Fragment(text=answer),) if answer else ()


def _too_many() -> CheckError:
    return CheckError("a stream is no longer followed: more than max_open_streams were open")


def _error(halt: Halt, check: Check | None) -> ContentFlaggedError | CheckError:
    if halt.reason != "flag" or check is None:
        return CheckError(f"the check at depth {halt.depth} could not be made: {check.reason if check else None}")
    verdict = Verdict(
        decision=Decision.FLAG,
        checker=check.checker,
        depth=check.depth,
        harm_probability=check.harm_probability,
        threshold=check.threshold,
        reason=check.reason,
        lookahead_tokens=check.lookahead_tokens,
        partial_view=check.partial_view,
    )
    return ContentFlaggedError(verdict)
