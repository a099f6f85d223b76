"""Scripted doubles for tests of one's own: a guard, a source and a sidecar that need no model. Torch-free.

They run through the same session and drivers as the real ones, so what an application shows after a cut is what it
would show in earnest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ada_guard.checkers import ProbeChecker
from ada_guard.checking import Ask, AskProbe, Calibration, Checker, Lookahead
from ada_guard.events import FinishReason
from ada_guard.guard import Guard, Messages
from ada_guard.policy import Policy
from ada_guard.session import Piece, StreamSession

__all__ = ["UNSAFE", "ScriptedGuard", "ScriptedHeader", "ScriptedModel", "ScriptedSidecar", "ScriptedSource", "words"]

UNSAFE = "UNSAFE"
"""The word that a scripted guard takes for harmful, unless told otherwise."""


def words(text: str) -> list[Piece]:
    """One piece for each word with the space before it, ids counted from 0."""
    return [Piece(text=word, token_id=i) for i, word in enumerate(re.findall(r"\s*\S+", text))]


class ScriptedSource:
    """Gives out pieces one by one and remembers how many it was asked for.

    Args:
        pieces: What to give out; a text is split into `words`.
        finish_reason: Why it ends then.
        error: Raised instead of ending.
    """

    def __init__(
        self, pieces: str | Sequence[Piece], *, finish_reason: FinishReason = "stop", error: Exception | None = None
    ) -> None:
        self._pieces = words(pieces) if isinstance(pieces, str) else list(pieces)
        self._ends_with: FinishReason = finish_reason
        self._error = error
        self.finish_reason: FinishReason | None = None
        self.given = 0
        self.closed = False

    def next_piece(self) -> Piece | None:
        """The next piece."""
        if self.given < len(self._pieces):
            self.given += 1
            return self._pieces[self.given - 1]
        if self._error is not None:
            raise self._error
        self.finish_reason = self._ends_with
        return None

    def close(self) -> None:
        """Notes that it was closed."""
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


class ScriptedSidecar:
    """A sidecar whose answers are functions of the depth. A function that raises is a check that fails.

    Args:
        harm: Depth -> harm probability in [0, 1].
        lookahead: Depth -> what the model says behind its header.
    """

    def __init__(
        self, harm: Callable[[int], float] = lambda _: 0.0, lookahead: Callable[[int], str] = lambda _: "Sure."
    ) -> None:
        self._harm = harm
        self._lookahead = lookahead
        self.checked: list[int] = []
        self.closed = False

    @contextmanager
    def reinjected(self, asks: frozenset[type[Ask]], *, depth: int) -> Iterator[ScriptedHeader]:
        """Notes the depth."""
        del asks
        self.checked.append(depth)
        yield ScriptedHeader(depth, self._harm, self._lookahead)

    def close(self) -> None:
        """Notes that it was closed."""
        self.closed = True


class _ScriptedProbe:
    calibration = Calibration(thresholds={1: 0.5}, low_thresholds={1: 0.1})


class ScriptedModel:
    """Stands where a guard keeps its model."""

    probe = _ScriptedProbe()

    def __init__(self) -> None:
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ada-guard-scripted")


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
        self._answer = answer
        self._unsafe = unsafe
        self._finish_reason: FinishReason = finish_reason
        self.sources: list[ScriptedSource] = []

    def _open(self, messages: Messages, *_: object) -> Any:
        prefill = words(_prefill(messages))
        seen = [*prefill, *words(self._answer)]
        source = _JudgedSource(self._answer, self._finish_reason, lambda depth: self._harm(seen, depth))
        self.sources.append(source)
        text = "".join(piece.text for piece in prefill)
        return source, StreamSession(self.policy, prefill_tokens=len(prefill), prefill_text=text)

    def _companion(self, messages: Messages, *_: object) -> Any:
        return _ScriptedCompanion(_prefill(messages), self._harm)

    def _harm(self, pieces: Sequence[Piece], depth: int) -> float:
        return 0.99 if self._unsafe in "".join(piece.text for piece in pieces[:depth]) else 0.01


def _prefill(messages: Messages) -> str:
    return str(messages[-1]["content"]) if messages and messages[-1]["role"] == "assistant" else ""


class _JudgedSource(ScriptedSource, ScriptedSidecar):
    def __init__(self, answer: str, finish_reason: FinishReason, harm: Callable[[int], float]) -> None:
        ScriptedSidecar.__init__(self, harm)
        ScriptedSource.__init__(self, answer, finish_reason=finish_reason)

    def close(self) -> None:
        self.closed = True


class _ScriptedCompanion(ScriptedSidecar):
    """Settles a word when the next one begins."""

    def __init__(self, prefill: str, harm: Callable[[Sequence[Piece], int], float]) -> None:
        super().__init__(lambda depth: harm(self._pieces, depth))
        self._pieces = words(prefill)
        self.prefill_tokens = len(self._pieces)
        self.prefill_text = prefill
        self._tail = ""

    def push(self, text: str) -> list[Piece]:
        self._tail += text
        *settled, self._tail = re.findall(r"\s*\S+|\s+$", self._tail) or [""]
        return self._take(settled)

    def flush(self) -> list[Piece]:
        tail, self._tail = self._tail, ""
        return self._take([tail] if tail else [])

    def _take(self, texts: Sequence[str]) -> list[Piece]:
        pieces = [Piece(text=text, token_id=len(self._pieces) + i) for i, text in enumerate(texts)]
        self._pieces += pieces
        return pieces
