"""The state machine of one guarded stream. Knows no model, clock, socket or event loop.

A driver feeds it `Piece` objects and `end`, looks at `due`, makes the check that is due and hands the outcome to
`resolve` or `fail`, and passes the events from `drain` on. Everything the promises say about release is decided here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from ada_guard.delta import Channel, Fragment, ToolCall, Usage
from ada_guard.errors import AdaGuardError, CheckError, ContentFlaggedError
from ada_guard.events import Check, CheckDecision, Done, Event, FinishReason, Halt, HaltReason, Release, Replace
from ada_guard.policy import DEFAULT_REPLACEMENT, Policy
from ada_guard.verdict import Decision, Verdict

__all__ = ["Piece", "StreamSession"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One settled token of the source and what it adds to the answer.

    Attributes:
        text: Text that becomes final with this token; empty while a character or a stop string is incomplete.
        others: Likewise of reasoning and tool calls, in order and before `text`.
        token_id: Its id, where known.
        is_token: False for text that settles without a new token (the flush at the end of a stream).
    """

    text: str = field(default="", repr=False)
    others: tuple[Fragment, ...] = ()
    token_id: int | None = field(default=None, repr=False)
    is_token: bool = True


class StreamSession:
    """Holds a stream back, says when a check is due, and releases or cuts it.

    Args:
        policy: Schedule and reactions.
        prefill_tokens: Assistant tokens that were in the context before the stream began. They count in every depth,
            are checked before the first token, and are never released.
        prefill_text: Their text.
        choice: Which of several answers this is; stands in every event.
    """

    def __init__(self, policy: Policy, *, prefill_tokens: int = 0, prefill_text: str = "", choice: int = 0) -> None:
        self._policy = policy
        # Asked at every token, and the same throughout.
        self._holds = policy.release == "hold"
        self._next_due = policy.schedule.next_due(0)
        self._choice = choice
        self._prefill_tokens = prefill_tokens
        self._texts: list[str] = [prefill_text]
        self._waiting: deque[Piece] = deque()
        self._held: deque[Piece] = deque()
        self._taken = 0
        self._released = 0
        self._passed = 0
        self._last_check: int | None = None
        self._unseen = False
        self._flags_in_a_row = 0
        self._pending_flag: Verdict | None = None
        self._token_ids: list[int] = []
        self._finish_reason: FinishReason | None = None
        self._due: int | None = None
        self._outcome: FinishReason | None = None
        self._was_cut = False
        self._dropped = 0
        self._error: AdaGuardError | None = None
        self._events: list[Event] = []
        self._checks = 0
        self._check_ms = 0.0
        if prefill_tokens or policy.check_prompt:
            self._due = 0

    # -- what a driver asks --------------------------------------------------------------------------------------

    @property
    def due(self) -> int | None:
        """The depth (prefill included) at which a check must be made now, or None."""
        return None if self._due is None else self._prefill_tokens + self._due

    @property
    def generated_tokens(self) -> int:
        """Generated tokens the next check would see."""
        return self._taken

    @property
    def produced_tokens(self) -> int:
        """Generated tokens that have come, also those behind a cut."""
        return self._taken + self._dropped

    @property
    def ended(self) -> bool:
        """Whether the stream is over: finished or cut."""
        return self._outcome is not None

    @property
    def cut(self) -> bool:
        """Whether the stream was cut, whatever its source says."""
        return self._was_cut

    @property
    def error(self) -> AdaGuardError | None:
        """What the driver must raise once the events are delivered; None in most policies."""
        return self._error

    def answer(self) -> str:
        """Prefill and generated text up to the depth that is due, released or not. Empty after a cut."""
        return "".join(self._texts)

    def drain(self) -> list[Event]:
        """The events since the last call, in order."""
        events, self._events = self._events, []
        return events

    # -- what a driver says --------------------------------------------------------------------------------------

    def push(self, piece: Piece) -> None:
        """Takes the next piece of the source. Ignored once the stream is cut."""
        if self._outcome is not None:
            return
        if self._due is None and not self._waiting:
            self._take(piece)
        else:
            self._waiting.append(piece)

    def end(self, finish_reason: FinishReason) -> None:
        """The source has ended by itself."""
        if self._outcome is None and self._finish_reason is None:
            self._finish_reason = finish_reason
            self._advance()

    def resolve(self, verdict: Verdict, *, elapsed_ms: float) -> None:
        """Hands over the verdict of the check that is due. An abstain settles nothing and counts as unchecked."""
        at = self._take_due()
        if verdict.decision is Decision.ABSTAIN:
            self._record(at, "unchecked", verdict.checker, verdict.reason or "abstain", elapsed_ms, verdict)
            self._unchecked(at, "the checker abstained")
            return
        if verdict.passed:
            self._record(at, "pass", verdict.checker, verdict.reason, elapsed_ms, verdict)
            self._clear(at)
        else:
            self._record(at, "flag", verdict.checker, verdict.reason, elapsed_ms, verdict)
            self._flags_in_a_row += 1
            self._pending_flag = verdict
            if self._flags_in_a_row >= self._policy.consecutive:
                self._cut(at, "flag", verdict)
        self._advance()

    def fail(self, error: str, *, checker: str, elapsed_ms: float) -> None:
        """The check that is due could not be made. `error` is a class name or a word, never text of a message."""
        at = self._take_due()
        self._record(at, "unchecked", checker, error, elapsed_ms, None)
        self._unchecked(at, error)

    def lose(self, error: str, *, checker: str) -> bool:
        """The sidecar cannot follow the stream any more. What is held back counts as unchecked, and the stream is cut.

        Returns:
            False if the policy does not fail closed: then nothing has happened.
        """
        if self._policy.release == "audit" or self._policy.on_error != "halt":
            return False
        if self._due is None:
            self._due = self._taken
        self.fail(error, checker=checker, elapsed_ms=0.0)
        return True

    def done(self, *, wall_ms: float, usage: Usage | None = None) -> Done:
        """The closing event; only once `ended`."""
        if self._outcome is None:
            raise RuntimeError("the stream has not ended")
        return Done(
            choice=self._choice,
            usage=usage,
            finish_reason=self._outcome,
            generated_tokens=self.produced_tokens,
            released_tokens=self._released,
            unchecked_released_tokens=max(0, self._released - self._passed),
            checks=self._checks,
            check_ms=self._check_ms,
            wall_ms=wall_ms,
            token_ids=tuple(self._token_ids),
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _take_due(self) -> int:
        if self._due is None:
            raise RuntimeError("no check is due")
        at, self._due = self._due, None
        self._last_check, self._unseen = at, False
        return at

    def _record(
        self,
        at: int,
        decision: CheckDecision,
        checker: str,
        reason: str | None,
        elapsed_ms: float,
        verdict: Verdict | None,
    ) -> None:
        self._checks += 1
        self._check_ms += elapsed_ms
        self._events.append(
            Check(
                choice=self._choice,
                partial_view=verdict.partial_view if verdict else False,
                depth=self._prefill_tokens + at,
                decision=decision,
                checker=checker,
                harm_probability=verdict.harm_probability if verdict else None,
                threshold=verdict.threshold if verdict else None,
                reason=reason,
                lookahead_tokens=verdict.lookahead_tokens if verdict else 0,
                elapsed_ms=elapsed_ms,
            )
        )

    def _clear(self, at: int) -> None:
        self._flags_in_a_row = 0
        self._pending_flag = None
        self._passed = at
        self._release(at)

    def _unchecked(self, at: int, why: str) -> None:
        if self._policy.release != "audit":
            if self._policy.on_error == "halt":
                self._cut(at, "error", None, why)
            elif self._pending_flag is None:
                self._release(at)
        self._advance()

    def _advance(self) -> None:
        """Takes waiting pieces up to the next depth at which a check is due, or to the end."""
        while self._outcome is None and self._due is None:
            if self._waiting:
                self._take(self._waiting.popleft())
            elif self._finish_reason is not None:
                self._finish()
            else:
                return

    def _take(self, piece: Piece) -> None:
        self._held.append(piece)
        if piece.others:
            self._texts += [other.text for other in piece.others]
        self._texts.append(piece.text)
        if not piece.is_token:
            self._unseen = True
        else:
            self._taken += 1
            if self._taken == self._next_due:
                self._due = self._taken
                self._next_due = self._policy.schedule.next_due(self._taken)
        if not self._holds:
            self._release_unchecked()

    def _finish(self) -> None:
        # Text without a token, at the very start, is text that no check has seen either.
        # Nor has the last one seen what came behind it without a token.
        if (self._taken or self._held) and (self._last_check != self._taken or self._unseen):
            self._due = self._taken
        elif self._pending_flag is not None and self._policy.release != "audit":
            self._cut(self._taken, "flag", self._pending_flag)
        else:
            self._release(self._taken)
            self._outcome = self._finish_reason

    def _release_unchecked(self) -> None:
        if self._policy.release == "audit":
            self._release(self._taken)
        elif self._policy.release == "window" and self._pending_flag is None:
            self._release(min(self._taken, self._passed + self._policy.window_tokens))

    def _release(self, up_to: int) -> None:
        """Releases the held pieces up to a depth in generated tokens; text without a token goes with the one before."""
        parts: list[tuple[Channel, ToolCall | None, str]] = []
        held = self._held
        while held and (self._released < up_to or not held[0].is_token):
            piece = held.popleft()
            if piece.others:
                parts += [(other.channel, other.call, other.text) for other in piece.others]
            if piece.text:
                parts.append(("text", None, piece.text))
            if piece.is_token:
                self._released += 1
                if piece.token_id is not None:
                    self._token_ids.append(piece.token_id)
        if not parts:
            return
        depth = self._prefill_tokens + self._released
        for (channel, call), run in groupby(parts, key=itemgetter(0, 1)):
            text = "".join([part[2] for part in run])
            self._events.append(Release(text=text, depth=depth, channel=channel, call=call, choice=self._choice))

    def _cut(self, at: int, reason: HaltReason, verdict: Verdict | None, why: str = "") -> None:
        if self._policy.release == "audit":
            return
        self._outcome, self._was_cut = "content_filter", True
        self._dropped = sum(piece.is_token for piece in self._waiting)
        for unsafe in (self._waiting, self._held, self._texts):
            unsafe.clear()
        self._pending_flag = None
        depth = self._prefill_tokens + at
        released_depth = self._prefill_tokens + self._released
        self._events.append(Halt(depth=depth, reason=reason, released_depth=released_depth, choice=self._choice))
        if self._policy.on_flag == "replace":
            self._events.append(Replace(text=self._replacement(verdict), choice=self._choice))
        elif self._policy.on_flag == "raise":
            self._error = (
                ContentFlaggedError(verdict) if verdict else CheckError(f"check at depth {depth} failed: {why}")
            )

    def _replacement(self, verdict: Verdict | None) -> str:
        """A function of the user's that fails must not undo the cut: the default text stands in, then it is raised."""
        try:
            return self._policy.replacement_for(verdict)
        except Exception as error:  # noqa: BLE001  # raised once the events are delivered
            self._error = AdaGuardError(f"the policy's replacement function failed: {type(error).__name__}")
            return DEFAULT_REPLACEMENT
