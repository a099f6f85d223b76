"""A sidecar in this process that follows streams which something else writes. Knows no source and no policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ada_guard.checking import LOOKAHEAD_TOKENS, Ask, Calibration, CheckContext, Checker
from ada_guard.delta import Fragment
from ada_guard.errors import CheckError
from ada_guard.local.model import LocalModel
from ada_guard.policy import Schedule
from ada_guard.session import Piece
from ada_guard.sidecar.answer import AnswerTokens
from ada_guard.sidecar.pool import Pool, PoolStats, Slot
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sidecar.view import View, view_of
from ada_guard.steps import Steps, Wait
from ada_guard.verdict import Verdict

__all__ = ["Companion", "LocalSidecar"]

CHECK_TIMEOUT_S = 60.0


class LocalSidecar:
    """A model in this process, judging any number of streams at once.

    Args:
        model: The model.
        check_timeout_s: Longest time a check may wait and run; then it counts as not made.
        pool: Keyword arguments of `Pool`: bounds of sessions, queue and KV memory.
    """

    def __init__(self, model: LocalModel, *, check_timeout_s: float = CHECK_TIMEOUT_S, **pool: Any) -> None:
        self.model = model
        self.check_timeout_s = check_timeout_s
        self._pool = Pool(model, **pool)

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def stats(self) -> PoolStats:
        """Sessions, queue, KV memory and work so far."""
        return self._pool.stats()

    def connect(self) -> Steps[Calibration | None]:
        """The thresholds of the model's probe."""
        yield from ()
        return None if self.model.probe is None else self.model.probe.calibration

    def open(self, conversation: Conversation, *, asks: frozenset[type[Ask]], schedule: Schedule) -> Steps[Companion]:
        """Begins to follow a stream; its prompt is read in the background from now on."""
        yield from ()
        del schedule  # a sidecar in this process is asked when a check is due
        return Companion(self, view_of(self.model, conversation), asks)

    def close(self) -> Steps[None]:
        """Stops the pool and frees its memory."""
        yield from ()
        self._pool.close()


class Companion:
    """One stream's place in a `LocalSidecar`.

    A check at depth d sees exactly the prompt and the first d settled ids, however the text was split.
    """

    def __init__(self, sidecar: LocalSidecar, view: View, asks: frozenset[type[Ask]]) -> None:
        prompt, model = view.prompt, sidecar.model
        ids = [*prompt.ids, *prompt.prefill_ids]
        self._reserve = len(model.spec.rethink.ids) + LOOKAHEAD_TOKENS
        model.require_room(len(ids), reserve=self._reserve)
        self._sidecar = sidecar
        self._partial = view.partial
        self.prompt_tokens = len(prompt.ids)
        self.prefill_tokens = len(prompt.prefill_ids)
        self.prefill_text = prompt.prefill_text
        self._tokens: AnswerTokens | None = AnswerTokens(model.tokenizer, model.spec)
        self._slot: Slot = sidecar._pool.open(ids, asks)

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
        target = self.prompt_tokens + context.depth
        limit = self._sidecar.model.context_tokens
        if limit is not None and target + self._reserve > limit:
            raise CheckError("the answer has outgrown the sidecar's context")
        try:
            verdict: Verdict = yield Wait(
                self._sidecar._pool.check(self._slot, target, checker, context), self._sidecar.check_timeout_s
            )
        except TimeoutError:
            raise CheckError("the check timed out") from None
        return replace(verdict, partial_view=True) if self._partial else verdict

    def close(self) -> Steps[None]:
        """Gives the place back and forgets the text. May be called twice."""
        yield from ()
        self._tokens = None
        self._slot.close()

    def _kept(self, pieces: list[Piece]) -> list[Piece]:
        self._slot.ids += [piece.token_id for piece in pieces if piece.is_token and piece.token_id is not None]
        return pieces
