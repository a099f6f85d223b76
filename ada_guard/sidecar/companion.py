"""A sidecar in this process that follows streams which something else writes. Knows no source and no policy."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ada_guard.checking import LOOKAHEAD_TOKENS, Ask, AskLookahead, Calibration, CheckContext, Checker
from ada_guard.delta import Fragment
from ada_guard.errors import CheckError, ConfigError
from ada_guard.local.model import LocalModel
from ada_guard.policy import Schedule
from ada_guard.session import Piece
from ada_guard.sidecar.answer import AnswerTokens
from ada_guard.sidecar.context_limit import ContextLimit, OnLongAnswer
from ada_guard.sidecar.pool import Pool
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sidecar.slot import Slot
from ada_guard.sidecar.stats import PoolStats
from ada_guard.sidecar.view import View, view_of
from ada_guard.steps import Steps, Wait, Work
from ada_guard.verdict import Verdict

__all__ = ["Companion", "LocalSidecar"]

CHECK_TIMEOUT_S = 60.0
_PROMPT_END_TOKENS = 16
"""Of the prompt, what is decoded to see how the assistant's turn has begun."""


class LocalSidecar:
    """A model in this process, judging any number of streams at once.

    Args:
        model: The model.
        check_timeout_s: Longest time a check may wait and run; then it counts as not made.
        on_long_answer: What is done when prompt and answer outgrow the model's context. ``"error"``: a prompt is
            refused, a check fails. ``"slide"``: checks see the prompt (at most half of the context: its beginning and
            its newest part) and the newest tokens of the answer; their verdicts say ``partial_view``, and a warning
            comes once.
        pool: Keyword arguments of `Pool`: bounds of sessions, queue and KV memory.

    Raises:
        ConfigError: An unknown `on_long_answer`, or a context too short for ``"slide"``; a bound that `Pool` refuses.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        check_timeout_s: float = CHECK_TIMEOUT_S,
        on_long_answer: OnLongAnswer = "error",
        **pool: Any,
    ) -> None:
        self.model = model
        self.check_timeout_s = check_timeout_s
        self.limit = ContextLimit(
            tokens=model.context_tokens,
            reserve=len(model.spec.rethink.ids) + LOOKAHEAD_TOKENS,
            policy=on_long_answer,
        )
        if not check_timeout_s > 0:
            raise ConfigError("check_timeout_s must be more than 0")
        self._pool = Pool(model, **pool)
        self._closing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ada-guard-close")
        self._has_warned = False

    @property
    def identity(self) -> str:
        """The model's."""
        return self.model.identity

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def reads_source_ids(self) -> bool:
        """Not by itself: say ``shared_tokenizer=True`` where it is so."""
        return False

    @property
    def stats(self) -> PoolStats:
        """Sessions, queue, KV memory and work so far."""
        return self._pool.stats()

    def connect(self) -> Steps[Calibration | None]:
        """The thresholds of the model's probe."""
        yield from ()
        self._pool.warm()
        return None if self.model.probe is None else self.model.probe.calibration

    def open(self, conversation: Conversation, *, asks: frozenset[type[Ask]], schedule: Schedule) -> Steps[Companion]:
        """Begins to follow a stream; its prompt is read in the background from now on.

        Raises:
            ConfigError: The checks ask for a lookahead, and only the model's lower blocks are loaded; the conversation
                cannot be shown to the model.
            CheckError: There is no room.
        """
        del schedule  # a sidecar in this process is asked when a check is due
        if AskLookahead in asks:
            self.model.require_whole()
        # A long conversation takes milliseconds to encode, which an event loop has not got.
        view: View = yield Work(lambda: view_of(self.model, conversation), self.model.worker)
        return Companion(self, view, asks)

    def close(self) -> Steps[None]:
        """Stops the pool and frees its memory, once the pass that is under way has ended."""
        yield Work(self._pool.close, self._closing)

    def warn_of_sliding(self) -> None:
        """Says once that a context was outgrown."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "a conversation has outgrown the sidecar's context: checks see its newest part only (partial_view)",
                stacklevel=2,
            )


class Companion:
    """One stream's place in a `LocalSidecar`.

    A check at depth d sees exactly the prompt and the first d settled ids, however the text was split; where they have
    outgrown the context and the sidecar slides, what is left of them.
    """

    def __init__(self, sidecar: LocalSidecar, view: View, asks: frozenset[type[Ask]]) -> None:
        prompt, model = view.prompt, sidecar.model
        ids = [*prompt.ids, *prompt.prefill_ids]
        if sidecar.limit.policy == "error":
            model.require_room(len(ids), reserve=sidecar.limit.reserve)
        self._sidecar = sidecar
        self._asks = asks
        self._partial = view.partial
        self._prompt = prompt.ids
        # The slot holds so many tokens of the prompt, then the answer's (prefill included) without the dropped ones.
        self._head_tokens = len(prompt.ids)
        self._dropped_tokens = 0
        self.prompt_tokens = len(prompt.ids)
        self.prefill_tokens = len(prompt.prefill_ids)
        self.prefill_text = prompt.prefill_text
        self._tokens: AnswerTokens | None = AnswerTokens(
            model.tokenizer,
            model.spec,
            eos_ids=model.eos_ids,
            prompt_end=model.tokenizer.decode(
                list(prompt.ids[-_PROMPT_END_TOKENS:]), skip_special_tokens=False, clean_up_tokenization_spaces=False
            ),
            prefill=prompt.prefill_text,
        )
        if not sidecar.limit.fits(len(ids) + 1):
            ids = self._newest(prompt.prefill_ids)
        self._slot: Slot = sidecar._pool.open(ids, asks)
        # Whoever drops a stream without closing it must not keep its place for ever.
        self._unless_closed = weakref.finalize(self, self._slot.close)

    def push(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> Steps[list[Piece]]:
        """Takes what the stream produced and returns what it settled."""
        yield from ()
        return [] if self._tokens is None else self._kept(self._tokens.push(fragments, token_ids))

    def flush(self) -> Steps[list[Piece]]:
        """The last pieces, once the stream has ended."""
        yield from ()
        return [] if self._tokens is None else self._kept(self._tokens.flush())

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        """Runs a checker behind the prefill and the first settled ids, ``context.depth`` together.

        Raises:
            CheckError: The model failed, the text has outgrown its context, the pool is full, or time ran out.
        """
        if self._tokens is None:
            raise CheckError("the stream is closed")
        seen = context.depth - self._dropped_tokens
        if not self._sidecar.limit.fits(self._head_tokens + seen):
            self._slide(seen)
        target = self._head_tokens + context.depth - self._dropped_tokens
        try:
            verdict: Verdict = yield Wait(
                self._sidecar._pool.check(self._slot, target, checker, context), self._sidecar.check_timeout_s
            )
        except TimeoutError:
            raise CheckError("the check timed out") from None
        return replace(verdict, partial_view=True) if self._partial else verdict

    def mark_passed(self, depth: int) -> None:
        """Says that the text up to a depth has passed, where whoever decides is not here."""
        self._slot.passed = max(self._slot.passed, self._head_tokens + depth - self._dropped_tokens)

    def ahead_ms(self) -> float:
        """Nothing is done ahead."""
        return 0.0

    def close(self) -> Steps[None]:
        """Gives the place back and forgets the text. May be called twice."""
        yield from ()
        self._tokens = None
        self._prompt = ()
        self._slot.close()

    def _slide(self, seen: int) -> None:
        """Begins a new context with the newest of the first `seen` tokens that the slot has of the answer."""
        if self._sidecar.limit.policy == "error":
            raise CheckError("the answer has outgrown the sidecar's context")
        answer = self._slot.ids[self._head_tokens :]
        self._slot.close()
        self._unless_closed.detach()
        self._slot = self._sidecar._pool.open(self._newest(answer[:seen]), self._asks)
        self._unless_closed = weakref.finalize(self, self._slot.close)
        # What is not due yet must not be read yet: it may be longer than the context.
        self._slot.ids += answer[seen:]

    def _newest(self, answer: Sequence[int]) -> list[int]:
        """A context that has room again: the prompt and the newest part of the answer."""
        limit = self._sidecar.limit
        head = limit.head(self._prompt)
        dropped = max(0, len(answer) - limit.newest(len(head)))
        self._head_tokens = len(head)
        self._dropped_tokens += dropped
        self._partial = True
        self._sidecar.warn_of_sliding()
        return [*head, *answer[dropped:]]

    def _kept(self, pieces: list[Piece]) -> list[Piece]:
        self._slot.ids += [piece.token_id for piece in pieces if piece.is_token and piece.token_id is not None]
        return pieces
