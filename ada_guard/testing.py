"""Scripted doubles for tests of one's own: a guard, a source, a sidecar and an endpoint that need no model. Torch-free.

They run through the same session and drivers as the real ones, so what an application shows after a cut is what it
would show in earnest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ada_guard.checkers import ProbeChecker
from ada_guard.checking import Ask, AskProbe, Calibration, CheckContext, Checker, Lookahead, judge
from ada_guard.delta import Delta, Fragment, Usage
from ada_guard.events import FinishReason
from ada_guard.guard import Guard, Messages
from ada_guard.policy import Policy, Schedule
from ada_guard.session import Piece, StreamSession
from ada_guard.sidecar.channels import Move, Order
from ada_guard.sidecar.escapes import unescaped
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sidecar.rendered import whole_call
from ada_guard.steps import Steps, Work
from ada_guard.testing_endpoint import Chunk, Cut, Pause, Repeat, Reply, ScriptedEndpoint
from ada_guard.verdict import Verdict

__all__ = [
    "UNSAFE",
    "Chunk",
    "Cut",
    "Pause",
    "Repeat",
    "Reply",
    "ScriptedEndpoint",
    "ScriptedFollowing",
    "ScriptedGuard",
    "ScriptedHeader",
    "ScriptedModel",
    "ScriptedSidecar",
    "ScriptedSource",
    "words",
]

UNSAFE = "UNSAFE"
"""The word that a scripted guard takes for harmful, unless told otherwise."""


def words(text: str) -> list[Piece]:
    """One piece for each word with the space before it, ids counted from 0."""
    return [Piece(text=word, token_id=i) for i, word in enumerate(re.findall(r"\s*\S+", text))]


class ScriptedSource:
    """Gives out words one by one and remembers how many it was asked for.

    Args:
        text: What to give out, split into `words`; or the deltas themselves.
        finish_reason: Why it ends then.
        error: Raised instead of ending.
        worker: Where the steps run in async code; None: on the event loop's own thread.
    """

    usage: Usage | None = None

    def __init__(
        self,
        text: str | Sequence[Delta],
        *,
        finish_reason: FinishReason = "stop",
        error: Exception | None = None,
        worker: ThreadPoolExecutor | None = None,
    ) -> None:
        if isinstance(text, str):
            text = [
                Delta(fragments=(Fragment(text=piece.text),), token_ids=(piece.token_id or 0,)) for piece in words(text)
            ]
        self._deltas = list(text)
        self._ends_with = finish_reason
        self._error = error
        self._worker = worker
        self._ended = False
        self.given = 0
        self.closed = False

    def pull(self) -> Steps[Delta | None]:
        """The next delta."""
        if self._worker is None:
            yield from ()
            return self.next_delta()
        delta: Delta | None = yield Work(self.next_delta, self._worker)
        return delta

    def next_delta(self) -> Delta | None:
        """What a pull gives; to be overridden."""
        if self.given < len(self._deltas):
            self.given += 1
            return self._deltas[self.given - 1]
        if self._error is not None:
            raise self._error
        if self._ended:
            return None
        self._ended = True
        return Delta(finish_reason=self._ends_with)

    def close(self) -> Steps[None]:
        """Notes that it was closed."""
        yield from ()
        self.closed = True


@dataclass(slots=True)
class ScriptedHeader:
    """Answers a checker's requests from the script."""

    depth: int
    harm: Callable[[int], float]
    lookahead: Callable[[int], str]

    def answer(self, ask: Ask) -> float | Lookahead:
        """The scripted number or text."""
        if isinstance(ask, AskProbe):
            return self.harm(self.depth)
        said = ""
        pieces = words(self.lookahead(self.depth))[: ask.max_tokens]
        for count, piece in enumerate(pieces, start=1):
            said += piece.text
            if not ask.undecided(said):
                return Lookahead(text=said, tokens=count, ended=False)
        return Lookahead(text=said, tokens=len(pieces), ended=True)


class ScriptedFollowing:
    """A stream's place in a sidecar whose answers are functions of the depth. One that raises is a check that fails.

    A delta with an id is a token; text without ids settles a word when the next one begins. Reasoning settles as it
    comes, a tool call when it is complete.

    Args:
        harm: Depth -> harm probability in [0, 1].
        lookahead: Depth -> what the model says behind its header.
        prefill: Assistant text that the conversation ends with.
    """

    prompt_tokens = 0

    def __init__(
        self,
        harm: Callable[[int], float] = lambda _: 0.0,
        lookahead: Callable[[int], str] = lambda _: "Sure.",
        prefill: str = "",
    ) -> None:
        self._harm = harm
        self._lookahead = lookahead
        self._tail = ""
        self._order = Order()
        self.pieces = words(prefill)
        self.prefill_tokens = len(self.pieces)
        self.prefill_text = prefill
        self.checked: list[int] = []
        self.closed = False

    def push(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> Steps[list[Piece]]:
        """Settles words, whole fragments of reasoning and whole tool calls."""
        yield from ()
        moves = [move for fragment in fragments for move in self._order.push(fragment)]
        if not token_ids:
            return self._settled(moves)
        text = "".join(move.text for move in moves if move.part.channel == "text")
        return self._take([Piece(text=text, others=tuple(_others(moves)), token_id=token_ids[0])])

    def flush(self) -> Steps[list[Piece]]:
        """What is left."""
        yield from ()
        return [*self._settled(list(self._order.flush())), *self._last_word()]

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        """Notes the depth."""
        yield from ()
        self.checked.append(context.depth)
        return judge(checker, context, ScriptedHeader(context.depth, self._harm, self._lookahead).answer)

    def ahead_ms(self) -> float:
        """Nothing is done ahead."""
        return 0.0

    def close(self) -> Steps[None]:
        """Notes that it was closed."""
        yield from ()
        self.closed = True

    def _settled(self, moves: Sequence[Move]) -> list[Piece]:
        pieces: list[Piece] = []
        for move in moves:
            if move.part.channel == "text":
                self._tail += move.text
                *words_, self._tail = re.findall(r"\s*\S+|\s+$", self._tail) or [""]
                pieces += self._numbered(Piece(text=word) for word in words_)
                pieces += self._last_word() if move.ends else []
            else:
                pieces += self._numbered(Piece(others=(other,)) for other in _others([move]))
        return pieces

    def _last_word(self) -> list[Piece]:
        tail, self._tail = self._tail, ""
        return self._numbered([Piece(text=tail)] if tail else [])

    def _numbered(self, pieces: Iterable[Piece]) -> list[Piece]:
        return [self._take([replace(piece, token_id=len(self.pieces))])[0] for piece in pieces]

    def _take(self, pieces: list[Piece]) -> list[Piece]:
        self.pieces += pieces
        return pieces


def _others(moves: Iterable[Move]) -> Iterator[Fragment]:
    """What moves release beside text."""
    for move in moves:
        if move.part.call is not None and move.ends:
            yield whole_call(move.part)
        elif move.part.call is None and move.part.channel != "text" and move.text:
            yield Fragment(text=move.text, channel=move.part.channel)


def _said(pieces: Iterable[Piece]) -> str:
    """All that pieces hold, names of tools too, and their arguments as they will be when they run."""
    said = []
    for piece in pieces:
        for other in piece.others:
            said += [other.call.name or "", unescaped(other.text)] if other.call else [other.text]
        said.append(piece.text)
    return "".join(said)


class ScriptedSidecar:
    """A sidecar that finds one word harmful. Every word is a token.

    Args:
        unsafe: The word.
    """

    name = "scripted"
    reads_source_ids = False

    def __init__(self, unsafe: str = UNSAFE) -> None:
        self.identity = f"scripted {unsafe}"
        self._unsafe = unsafe
        self.followed: list[ScriptedFollowing] = []

    def connect(self) -> Steps[Calibration | None]:
        """A probe with a threshold of 0.5."""
        yield from ()
        return _ScriptedProbe.calibration

    def open(
        self, conversation: Conversation, *, asks: frozenset[type[Ask]], schedule: Schedule
    ) -> Steps[ScriptedFollowing]:
        """Begins to follow."""
        yield from ()
        del asks, schedule

        def harm(depth: int) -> float:
            return 0.99 if self._unsafe in _said(following.pieces[:depth]) else 0.01

        following = ScriptedFollowing(harm, prefill=_prefill(conversation.messages))
        self.followed.append(following)
        return following

    def close(self) -> Steps[None]:
        """Nothing to free."""
        yield from ()


class _ScriptedProbe:
    calibration = Calibration(thresholds={1: 0.5}, low_thresholds={1: 0.1})


class ScriptedModel:
    """Stands where a guard keeps its model."""

    name = identity = "scripted"
    probe = _ScriptedProbe()
    tokenizer = encode = context_tokens = None


class ScriptedGuard(Guard):
    """A guard whose model says what it is told and finds one word harmful. Every word is a token.

    Args:
        answer: What the model generates.
        unsafe: The word from which on a check flags.
        policy: As in `Guard`.
        checker: As in `Guard`; None is a probe.
        finish_reason: Why the model ends.
    """

    def __init__(
        self,
        answer: str = "",
        *,
        unsafe: str = UNSAFE,
        policy: Policy | None = None,
        checker: Checker | None = None,
        finish_reason: FinishReason = "stop",
    ) -> None:
        model: Any = ScriptedModel()
        super().__init__(model, checker=checker or ProbeChecker(), policy=policy)
        self._sidecar = ScriptedSidecar(unsafe)
        self._answer = answer
        self._unsafe = unsafe
        self._finish_reason = finish_reason
        self.sources: list[ScriptedSource] = []

    def _open(self, conversation: Conversation, generation: object) -> tuple[Any, StreamSession]:
        prefill = _prefill(conversation.plain_messages())
        seen = [*words(prefill), *words(self._answer)]

        def harm(depth: int) -> float:
            return 0.99 if self._unsafe in "".join(piece.text for piece in seen[:depth]) else 0.01

        source = _JudgedSource(self._answer, self._finish_reason, harm, prefill)
        self.sources.append(source)
        return source, self._state(source, 0)


def _prefill(messages: Messages) -> str:
    return str(messages[-1]["content"]) if messages and messages[-1]["role"] == "assistant" else ""


class _JudgedSource(ScriptedSource, ScriptedFollowing):
    def __init__(self, answer: str, finish_reason: FinishReason, harm: Callable[[int], float], prefill: str) -> None:
        ScriptedFollowing.__init__(self, harm, prefill=prefill)
        ScriptedSource.__init__(self, answer, finish_reason=finish_reason)

    def close(self) -> Steps[None]:
        yield from ()
        self.closed = True
