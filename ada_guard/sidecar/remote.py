"""One stream's place in a sidecar server, seen from the client. Knows no URL and no model.

It keeps what the stream has said until it is closed: a server that was restarted, or has forgotten the session, is
given it again. Text that no server can be asked about makes a check due that fails, so that the policy decides what
becomes of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ada_guard.checking import LOOKAHEAD_TOKENS, Ask, AskLookahead, AskProbe, CheckContext, Checker, Lookahead
from ada_guard.delta import Fragment
from ada_guard.errors import AdaGuardError, CheckError, GenerationError
from ada_guard.policy import Schedule
from ada_guard.session import Piece
from ada_guard.sidecar.calls import CallFault, Calls
from ada_guard.sidecar.questions import (
    AnswerMessage,
    LookaheadAnswer,
    LookaheadAsk,
    ProbeAnswer,
    ProbeAsk,
    ask_message,
    lookahead_of,
)
from ada_guard.sidecar.transcript import Transcript
from ada_guard.sidecar.wire import Advance, Advanced, CheckOrder, Open, Opened
from ada_guard.steps import Steps
from ada_guard.verdict import Verdict

__all__ = ["RemoteFollowing"]

REPLAYS = 2
"""How often in one request a lost session is made again."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What the server has said to one question at one depth."""

    answer: AnswerMessage | None = field(repr=False)
    error: str | None
    partial_view: bool


class RemoteFollowing:
    """A session of a sidecar server. Not for use by several threads or tasks at once."""

    def __init__(
        self,
        calls: Calls,
        conversation: Open,
        opened: Opened,
        *,
        asks: frozenset[type[Ask]],
        schedule: Schedule,
        coalesce: bool,
    ) -> None:
        self._calls = calls
        self._conversation: Open | None = conversation
        self._opened = opened
        self._session = opened.session
        self._in_step = True
        self._seq = 0
        self._transcript = Transcript(schedule, coalesce=coalesce)
        # What a checker will ask first is known once it has asked; until then this is what it usually is.
        self._usual: ProbeAsk | LookaheadAsk = (
            ask_message(AskProbe())
            if AskProbe in asks
            else LookaheadAsk(kind="lookahead", max_tokens=LOOKAHEAD_TOKENS, at_refusals=True)
        )
        self._found: dict[tuple[int, ProbeAsk | LookaheadAsk], _Found] = {}
        self._failure: str | None = None
        self._final = False
        self._passed = 0
        self._waited_ms = 0.0
        self.prompt_tokens = opened.prompt_tokens
        self.prefill_tokens = opened.prefill_tokens
        self.prefill_text = opened.prefill_text

    def push(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> Steps[list[Piece]]:
        """Takes what the stream produced; sends it once a check may be due.

        Raises:
            GenerationError: The stream is none that can be read: it continues a tool call that was complete.
        """
        if self._conversation is None:
            return []
        self._transcript.add(fragments, token_ids)
        if self._failure is not None:
            return self._transcript.stand_ins()
        return (yield from self._extend()) if self._transcript.is_time() else []

    def flush(self) -> Steps[list[Piece]]:
        """The last pieces, once the stream has ended."""
        if self._conversation is None:
            return []
        self._transcript.finish()
        self._final = True
        if self._failure is not None:
            return self._transcript.stand_ins(final=True)
        pieces = yield from self._extend()
        if self._failure is None and self._transcript.owes:
            # Shown as it is, the answer would end in the middle.
            self._failure = "the sidecar server did not settle the whole stream"
            pieces = [*pieces, *self._transcript.stand_ins(final=True)]
        return pieces

    def ahead_ms(self) -> float:
        """How long the requests took that were made since the last check, and had this one answered."""
        waited, self._waited_ms = self._waited_ms, 0.0
        return waited

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        """Runs the checker here; its questions are answered by the server, mostly ahead of time.

        Raises:
            CheckError: The server could not make the check, or could not be asked.
        """
        checking = checker.check(context)
        said: float | Lookahead | None = None
        partial = False
        first = True
        while True:
            try:
                ask: Ask = checking.send(said)
            except StopIteration as stop:
                verdict: Any = stop.value
                break
            if first:
                self._usual, first = ask_message(ask), False
            said, unseen = yield from self._answer(context.depth, ask)
            partial = partial or unseen
        self._found = {key: found for key, found in self._found.items() if key[0] > context.depth}
        if not isinstance(verdict, Verdict):
            raise CheckError("the checker returned no verdict")
        if verdict.passed:
            self._passed = context.depth
        return replace(verdict, partial_view=True) if partial else verdict

    def close(self) -> Steps[None]:
        """Forgets the stream, here and there. Never fails, and does not wait long. May be called twice."""
        if self._conversation is None:
            return
        self._conversation = None
        self._transcript.forget()
        self._found.clear()
        yield from self._calls.delete(f"/v1/sessions/{self._session}?passed_tokens={self._passed}")

    # -- inside ---------------------------------------------------------------------------------------------------

    def _extend(self) -> Steps[list[Piece]]:
        """Sends what is not sent yet and orders the checks that it may make due."""
        transcript = self._transcript
        orders = [self._order(self.prefill_tokens + depth) for depth in transcript.due_next()]
        if self._final:
            orders.append(self._order(None))
        started = time.perf_counter()
        try:
            return (yield from self._advance(transcript.end, orders))
        except GenerationError:  # the source's fault, not the server's
            raise
        except AdaGuardError as error:
            self._failure = str(error)
        finally:
            self._waited_ms += (time.perf_counter() - started) * 1000.0
        # Not raised: what has come and will come must still be judged, and by the policy.
        return transcript.stand_ins(final=self._final)

    def _answer(self, depth: int, ask: Ask) -> Steps[tuple[float | Lookahead, bool]]:
        message = ask_message(ask)
        tries = [message]
        if isinstance(message, LookaheadAsk) and message.at_refusals:
            # Phrases of another version may have stopped it too early: then the whole of it.
            tries.append(LookaheadAsk(kind="lookahead", max_tokens=message.max_tokens))
        for each in tries:
            found = self._found.get((depth, each)) or (yield from self._fetch(depth, each))
            if found.error is not None:
                raise CheckError(found.error)
            if isinstance(ask, AskLookahead) and isinstance(found.answer, LookaheadAnswer):
                ahead = lookahead_of(found.answer, ask)
                if ahead is not None:
                    return ahead, found.partial_view
            elif isinstance(ask, AskProbe) and isinstance(found.answer, ProbeAnswer):
                return found.answer.harm_probability, found.partial_view
        raise CheckError("the sidecar server did not answer what it was asked")

    def _fetch(self, depth: int, ask: ProbeAsk | LookaheadAsk) -> Steps[_Found]:
        """Asks for a check that was not ordered ahead, and, since a request is made anyway, for those that follow."""
        if self._failure is not None:
            raise CheckError(self._failure)
        further = self._transcript.due_after(depth - self.prefill_tokens)
        orders = [CheckOrder(depth=depth, asks=[ask]), *(self._order(self.prefill_tokens + each) for each in further)]
        failure: str | None = None
        try:
            if (yield from self._advance(self._transcript.sent, orders)):
                self._failure = failure = "the sidecar server gave back text that was given it before"
        except AdaGuardError as error:
            failure = str(error)
        if failure is not None:
            raise CheckError(failure)
        found = self._found.get((depth, ask))
        if found is None:
            raise CheckError("the sidecar server did not make the check")
        return found

    def _order(self, depth: int | None) -> CheckOrder:
        return CheckOrder(depth=depth, asks=[self._usual])

    def _advance(self, up_to: int, orders: list[CheckOrder]) -> Steps[list[Piece]]:
        """Sends the transcript up to a place; makes the session again if the server has lost it."""
        transcript, fault = self._transcript, CallFault(CheckError("the sidecar server was not asked"))
        for _ in range(1 + REPLAYS):
            again = not self._in_step
            try:
                if again:
                    yield from self._open_again()
                # Until the answer is here, nobody knows whether the server has taken the request.
                self._in_step = False
                message = Advance(
                    seq=self._seq + 1,
                    parts=transcript.parts(0 if again else transcript.sent, up_to),
                    final=self._final,
                    checks=orders,
                )
                answer = yield from self._calls.call("POST", f"/v1/sessions/{self._session}/advance", Advanced, message)
            except CallFault as failure:
                fault = failure
                if fault.lost:
                    continue
                self._in_step = not (fault.applied or again)
                break
            if answer.seq != self._seq + 1:
                raise CheckError("the sidecar server answered another request")
            self._seq, self._in_step = self._seq + 1, True
            # Before the pieces are taken: what is taken and then not handed out would be lost to the stream.
            self._note(answer, orders, from_start=again)
            pieces = transcript.settle([each.piece() for each in answer.pieces], from_start=again)
            transcript.sent = up_to
            return pieces
        raise fault.error

    def _open_again(self) -> Steps[None]:
        assert self._conversation is not None
        opened = yield from self._calls.call("POST", "/v1/sessions", Opened, self._conversation)
        self._session, self._seq = opened.session, 0
        if _nameless(opened) != _nameless(self._opened):
            raise CallFault(CheckError("the sidecar server came back with another model or probe"))

    def _note(self, answer: Advanced, orders: list[CheckOrder], *, from_start: bool) -> None:
        asked = {order.depth: order.asks for order in orders}
        before = 0 if from_start else self._transcript.generated_tokens
        reached = self.prefill_tokens + before + sum(piece.is_token for piece in answer.pieces)
        for result in answer.checks:
            at_end = asked.get(None) if result.depth == reached else None
            asks = asked.get(result.depth) or at_end or []
            if result.depth > reached or not asks:
                raise CheckError("the sidecar server made a check that was not ordered")
            if result.error is None and len(result.answers) != len(asks):
                raise CheckError("the sidecar server did not answer what it was asked")
            for at, ask in enumerate(asks):
                self._found[result.depth, ask] = _Found(
                    answer=result.answers[at] if result.error is None else None,
                    error=result.error,
                    partial_view=result.partial_view,
                )


def _nameless(opened: Opened) -> Opened:
    """All but the session's name: what must be the same when it is made again."""
    return opened.model_copy(update={"session": ""})
