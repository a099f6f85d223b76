"""What moves guarded streams: one flow of steps and events, run by a thin loop, sync or async.

Knows no model and no socket.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from ada_guard.checking import CheckContext, Checker
from ada_guard.delta import Delta, Fragment, Usage
from ada_guard.errors import CheckError, GenerationError
from ada_guard.events import Check, Done, Event, Halt, Release, Replace
from ada_guard.policy import Policy
from ada_guard.session import StreamSession
from ada_guard.sidecar.protocol import Following
from ada_guard.steps import Step, Steps, arun, run
from ada_guard.verdict import Decision, Verdict

__all__ = [
    "Flow",
    "Lane",
    "Source",
    "adrive",
    "check_due",
    "closing",
    "drive",
    "finished",
    "follow",
    "guarded",
    "settle",
    "unguarded",
]

_EVENTS = (Release, Check, Done, Halt, Replace)


class Source(Protocol):
    """Where the deltas come from."""

    @property
    def usage(self) -> Usage | None:
        """Token counts of the whole response, as far as they are known."""
        ...

    def pull(self) -> Steps[Delta | None]:
        """The next delta; None when there is no further one.

        Raises:
            GenerationError: The source failed.
        """
        ...

    def close(self) -> Steps[None]:
        """Stops the work behind the stream. May be called twice."""
        ...


@dataclass(slots=True)
class Lane:
    """One choice of a response: its state and its place in the sidecar.

    Attributes:
        session: What is held back, due and released.
        following: Who is asked for checks.
        by_ids: Whether the source's token ids are those of the sidecar's own tokenizer, and define depth.
        exhausted: Whether the source has said that this choice is complete, cut or not.
        reported: Whether its `Done` was handed out.
    """

    session: StreamSession
    following: Following
    by_ids: bool = False
    exhausted: bool = field(default=False, init=False)
    reported: bool = field(default=False, init=False)

    def take(self, delta: Delta, checker: Checker) -> Steps[None]:
        """Takes what the source gave, and makes the checks that this makes due."""
        session, ends_with = self.session, delta.finish_reason
        if ends_with is not None:
            self.exhausted = True
        if session.ended:
            return
        ids = delta.token_ids if self.by_ids else ()
        yield from follow(session, self.following, checker, delta.fragments, ids, ends_with is not None)
        if ends_with is not None:
            session.end(ends_with)
        while session.due is not None:
            yield from check_due(session, self.following, checker)


Flow: TypeAlias = Generator[Event | Step, Any, None]


def guarded(source: Source, lanes: Sequence[Lane], checker: Checker) -> Flow:
    """The steps and events of a guarded response.

    A cut mutes its lane; the source is closed as soon as all lanes have ended, before the events of the last cut are
    handed out.

    Args:
        source: Gives the deltas of every lane.
        lanes: By choice.
        checker: Who decides.
    """
    started = time.perf_counter()
    source_ended = False
    for lane in lanes:
        yield from settle(lane.session, lane.following, checker)
    # Those that something has happened to: nothing else needs to be looked at for each delta.
    touched = lanes
    while True:
        if (
            touched[0].session.ended
            and all(lane.session.ended for lane in lanes)
            and any(lane.session.cut and not (lane.exhausted and lane.reported) for lane in lanes)
        ):
            yield from source.close()
            source_ended = True
        for lane in lanes if source_ended else touched:
            yield from lane.session.drain()
            if lane.session.ended and not lane.reported and (source_ended or lane.session.cut):
                lane.reported = True
                yield from lane.following.close()
                usage = source.usage or (_estimated(lanes) if lane.session.cut else None)
                yield lane.session.done(wall_ms=_ms_since(started), usage=usage)
        if source_ended:
            break
        delta = yield from source.pull()
        source_ended = delta is None
        touched = lanes if delta is None else [_lane(lanes, delta)]
        for lane in touched:
            # Without a word of its own, a choice is over when the response is.
            yield from lane.take(delta or Delta(finish_reason="stop"), checker)
        del delta  # a suspended flow must not keep text alive that the session has dropped
    for lane in lanes:
        if lane.session.error is not None:
            raise lane.session.error


def _lane(lanes: Sequence[Lane], delta: Delta) -> Lane:
    if not 0 <= delta.choice < len(lanes):
        raise GenerationError("the endpoint sent a choice that was not asked for")
    return lanes[delta.choice]


def _estimated(lanes: Sequence[Lane]) -> Usage:
    """What a response that was closed has cost so far, counted in the sidecar's tokens."""
    return Usage(
        prompt_tokens=lanes[0].following.prompt_tokens,
        completion_tokens=sum(lane.session.produced_tokens for lane in lanes),
        estimated=True,
    )


def unguarded(source: Source) -> Flow:
    """The same source without any check: the control that a guarded stream is compared with."""
    started = time.perf_counter()
    ended: dict[int, str] = {}
    token_ids: dict[int, list[int]] = {}
    depths: dict[int, int] = {}
    while (delta := (yield from source.pull())) is not None:
        ids = token_ids.setdefault(delta.choice, [])
        ids += delta.token_ids
        # Without ids a delta counts as a token: nothing here reads the text.
        depth = depths[delta.choice] = len(ids) or depths.get(delta.choice, 0) + bool(delta.fragments)
        for fragment in delta.fragments:
            yield Release(
                text=fragment.text, depth=depth, channel=fragment.channel, call=fragment.call, choice=delta.choice
            )
        if delta.finish_reason is not None:
            ended[delta.choice] = delta.finish_reason
    for choice in sorted(token_ids) or [0]:
        depth = depths.get(choice, 0)
        yield Done(
            choice=choice,
            finish_reason=ended.get(choice, "stop"),
            generated_tokens=depth,
            released_tokens=depth,
            unchecked_released_tokens=depth,
            checks=0,
            check_ms=0.0,
            wall_ms=_ms_since(started),
            token_ids=tuple(token_ids.get(choice, ())),
            usage=source.usage,
        )


def follow(
    session: StreamSession,
    following: Following,
    checker: Checker,
    fragments: Sequence[Fragment],
    token_ids: Sequence[int],
    final: bool,
) -> Steps[None]:
    """Shows the sidecar what the source gave, and hands what it settled to the session.

    Raises:
        CheckError: The sidecar cannot follow, and the policy lets unchecked text pass: there is none that could.
    """
    try:
        pieces = yield from following.push(fragments, token_ids)
        if final:
            pieces = [*pieces, *(yield from following.flush())]
    except CheckError as error:
        if not session.lose(str(error), checker=checker.name):
            raise
        return
    for piece in pieces:
        session.push(piece)


def settle(session: StreamSession, following: Following, checker: Checker) -> Steps[None]:
    """Makes the checks that are due."""
    while session.due is not None:
        yield from check_due(session, following, checker)


def check_due(session: StreamSession, following: Following, checker: Checker) -> Steps[Verdict | None]:
    """Makes the check that is due and tells the session. None if it could not be made: fail closed is the session's."""
    depth = session.due
    if depth is None:
        raise RuntimeError("no check is due")
    context = CheckContext(depth=depth, generated_tokens=session.generated_tokens, answer=session.answer)
    ahead_ms, started = following.ahead_ms(), time.perf_counter()
    try:
        verdict = yield from following.check(checker, context)
    except Exception as error:  # noqa: BLE001  # whatever went wrong, also in a user's checker: the text is unchecked
        reason = str(error) if type(error) is CheckError else type(error).__name__
        session.fail(reason, checker=checker.name, elapsed_ms=ahead_ms + _ms_since(started))
        return None
    session.resolve(verdict, elapsed_ms=ahead_ms + _ms_since(started))
    return verdict


def finished(following: Following, checker: Checker, policy: Policy, fragments: Sequence[Fragment]) -> Steps[Verdict]:
    """Judges an answer that is complete, at every depth of the schedule and at its end.

    Returns:
        The verdict that decided: the flag, or the pass at the end.

    Raises:
        CheckError: A check could not be made, or the checker abstained.
    """
    pieces = [*(yield from following.push(fragments)), *(yield from following.flush())]
    # Without anything to check at the end, the prompt is checked.
    policy = Policy(schedule=policy.schedule, consecutive=policy.consecutive, check_prompt=not pieces)
    session = StreamSession(policy, prefill_tokens=following.prefill_tokens, prefill_text=following.prefill_text)
    for piece in pieces:
        session.push(piece)
    session.end("stop")
    verdict: Verdict | None = None
    while session.due is not None:
        verdict = yield from check_due(session, following, checker)
        if verdict is None or verdict.decision is Decision.ABSTAIN:
            last = [event for event in session.drain() if isinstance(event, Check)][-1]
            raise CheckError(f"check at depth {last.depth} could not be made: {last.reason}")
    if verdict is None:
        raise CheckError("no check was made")
    return verdict


def drive(flow: Flow, close: Callable[[], Steps[None]]) -> Generator[Event, None, None]:
    """Runs a flow in the calling thread. Closing the generator stops the source.

    Args:
        flow: As `guarded` gives it.
        close: Closes whatever the flow has opened.
    """
    try:
        act: Callable[[Any], Event | Step] = flow.send
        value: Any = None
        while True:
            try:
                step = act(value)
            except StopIteration:
                return
            act, value = flow.send, None
            if isinstance(step, _EVENTS):
                yield step
                del step
                continue
            try:
                value = step.run()
            except BaseException as error:  # noqa: BLE001  # the flow's own to handle
                act, value = flow.throw, error
    finally:
        flow.close()
        run(close())


async def adrive(flow: Flow, close: Callable[[], Steps[None]]) -> AsyncGenerator[Event, None]:
    """Runs a flow on the event loop. Cancelling waits for a step on a worker thread, then stops the source."""
    try:
        act: Callable[[Any], Event | Step] = flow.send
        value: Any = None
        while True:
            try:
                step = act(value)
            except StopIteration:
                return
            act, value = flow.send, None
            if isinstance(step, _EVENTS):
                yield step
                del step
                continue
            try:
                value = await step.arun()
            except BaseException as error:  # noqa: BLE001  # the flow's own to handle
                act, value = flow.throw, error
    finally:
        flow.close()
        await arun(close())


def closing(parts: Iterable[Callable[[], Steps[None]]]) -> Steps[None]:
    """Closes one after the other, also where one of them fails; the first failure is raised at the end."""
    failure: Exception | None = None
    for part in parts:
        try:
            yield from part()
        except Exception as error:  # noqa: BLE001  # the others must be closed all the same
            failure = failure or error
    if failure is not None:
        raise failure


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
