"""Which tokens of a growing text are settled: no later text can change them. Knows no model and no channels.

The rule depends on the text alone, so that chunking cannot matter: the text is looked at character by character, and
whatever lies before its last final boundary is encoded, once and for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ada_guard.control import TextEncoder
from ada_guard.session import Piece
from ada_guard.sidecar.boundaries import Boundaries

__all__ = ["SettledTokens"]

_CONTEXT_CHARACTERS = 64
"""How much of what comes before a chunk its tokenizer is shown, where that makes a difference."""
_ANCHORS = ("\n", "a", ".", "0")
"""Shown instead where the tokenizer would join the chunk with it: one of them joins with no chunk."""


class SettledTokens:
    """Splits a stream of text into settled tokens.

    The text of a run of tokens is attributed to its last one, so that a release never passes text that a check has not
    seen whole. Text that the tokenizer drops has no token of its own and goes with the next one. The texts of all
    pieces together are what was pushed; half a surrogate pair counts as U+FFFD, as in `encode_text`.

    Args:
        tokenizer: Any transformers tokenizer.
        before: Text of a template that comes before.
    """

    def __init__(self, tokenizer: Any, *, before: str = "") -> None:
        self._encoder = TextEncoder(tokenizer)
        self._boundaries = Boundaries(tokenizer)
        self._tail = ""
        self._half = ""
        self._uncovered = ""
        self._before = before
        self._before_is_ours = True

    def push(self, text: str) -> list[Piece]:
        """Adds text and returns the tokens that are settled by it."""
        pieces: list[Piece] = []
        text = self._half + text
        # A character outside the basic plane may arrive in two halves, which no tokenizer takes.
        self._half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        for character in _whole(text.removesuffix(self._half) if self._half else text):
            self._tail += character
            at = self._boundaries.last(self._tail)
            if at:
                pieces += self._settle(at)
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, once no more text will come, or text of something else does."""
        self._tail, self._half = self._tail + _whole(self._half), ""
        pieces = self._settle(len(self._tail))
        if self._uncovered:
            pieces.append(Piece(text=self._uncovered, is_token=False))
            self._uncovered = ""
        return pieces

    def control(self, text: str) -> list[int]:
        """Ids of a template's own text, after a flush; what is pushed next comes behind it."""
        if not text:
            return []
        self._before, self._before_is_ours = text, True
        return self._encoder.encode(text, [], continued=True)

    def follow(self, text: str) -> None:
        """Says what text that is not the template's comes before."""
        self._before, self._before_is_ours = _whole(text[-_CONTEXT_CHARACTERS:]), False

    def _settle(self, length: int) -> list[Piece]:
        if length <= 0:
            return []
        cuts = self._boundaries.behind_spaces(self._tail, length)
        chunk, self._tail = self._tail[:length], self._tail[length:]
        ids = self._ids(chunk, cuts)
        text = self._uncovered + chunk
        self._uncovered = "" if ids else text
        self._before, self._before_is_ours = chunk[-_CONTEXT_CHARACTERS:], False
        return [Piece(text="" if n < len(ids) else text, token_id=i) for n, i in enumerate(ids, 1)]

    def _ids(self, chunk: str, cuts: Sequence[int]) -> Sequence[int]:
        """Ids of a chunk as they are behind what comes before: some tokenizers mark the beginning of every text."""
        encoder, before = self._encoder, self._before
        cuts = [*cuts, *encoder.cuts(chunk)]
        if not (encoder.control.prefixed and before):
            return encoder.encode(chunk, cuts)
        cuts_before = [] if self._before_is_ours else encoder.cuts(before)
        for anchor, inside in ((before, cuts_before), *((anchor, []) for anchor in _ANCHORS)):
            if encoder.control.spans(anchor + chunk, len(anchor)):
                continue
            alone = encoder.encode(anchor, inside)
            both = encoder.encode(anchor + chunk, [*inside, *(len(anchor) + cut for cut in cuts)])
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return encoder.encode(chunk, cuts)


def _whole(text: str) -> str:
    """The text with pairs of surrogates joined; a lone one becomes the replacement character."""
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
