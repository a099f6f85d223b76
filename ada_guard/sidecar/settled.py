"""Which tokens of a growing text are settled: no later text can change them. Knows no model.

The rule depends on the text alone, so that chunking cannot matter: the text is looked at character by character, and
everything before its last pre-token boundary is settled (after 64 characters without one, everything before the last
character is).
"""

from __future__ import annotations

from typing import Any

from ada_guard.prompt import encode_text
from ada_guard.session import Piece

__all__ = ["SettledTokens"]

FORCED_AFTER_CHARACTERS = 64


class SettledTokens:
    """Splits a stream of text into settled tokens.

    The text of a run of tokens is attributed to its last one, so that a release never passes text that a check has not
    seen whole.

    Args:
        tokenizer: Any transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._pre_tokenizer = getattr(backend, "pre_tokenizer", None)
        self._tail = ""
        self._before = ""
        self._half = ""

    def push(self, text: str) -> list[Piece]:
        """Adds text and returns the tokens that are settled by it."""
        pieces: list[Piece] = []
        text = self._half + text
        # A character outside the basic plane may arrive in two halves, which no tokenizer takes.
        self._half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        for character in _whole(text.removesuffix(self._half) if self._half else text):
            self._tail += character
            at = self._last_boundary()
            if at:
                pieces += self._settle(at)
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, once no more text will come."""
        self._tail, self._half = self._tail + _whole(self._half), ""
        return self._settle(len(self._tail))

    def _last_boundary(self) -> int:
        if len(self._tail) > FORCED_AFTER_CHARACTERS:
            return len(self._tail) - 1
        if self._pre_tokenizer is None:
            return max(self._tail.rfind(space) for space in " \n\t") if len(self._tail) > 1 else 0
        spans = self._pre_tokenizer.pre_tokenize_str(self._tail)
        return int(spans[-1][1][0]) if len(spans) > 1 else 0

    def _settle(self, length: int) -> list[Piece]:
        if length <= 0:
            return []
        chunk, self._tail = self._tail[:length], self._tail[length:]
        ids = self._ids(chunk)
        self._before = chunk
        if not ids:
            return [Piece(text=chunk, is_token=False)]
        return [*(Piece(text="", token_id=i) for i in ids[:-1]), Piece(text=chunk, token_id=ids[-1])]

    def _ids(self, chunk: str) -> list[int]:
        """Ids of a chunk as they are behind the one before: some tokenizers mark the beginning of every text."""
        before = encode_text(self._tokenizer, self._before)
        both = encode_text(self._tokenizer, self._before + chunk)
        return both[len(before) :] if both[: len(before)] == before else encode_text(self._tokenizer, chunk)


def _whole(text: str) -> str:
    """The text with pairs of surrogates joined; a lone one becomes the replacement character."""
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
