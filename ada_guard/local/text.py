"""Turns token ids into text that never changes again. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["TextAssembler"]

_INCOMPLETE = "\ufffd"
_CONTEXT_TOKENS = 8
"""Ids before the first one that a decoder needs to see, so that a leading space after a prefill is kept."""


class TextAssembler:
    """Decodes one stream of ids piece by piece.

    Text is given out once it is final: never half a character, never the beginning of what may become a stop string.
    All pieces together are ``tokenizer.decode(ids, skip_special_tokens=True)``, cut before the stop string.

    Args:
        tokenizer: Any transformers tokenizer.
        context_ids: The ids of a prefill, if there is one.
        stop_strings: Strings that end the stream and are not part of it.
    """

    def __init__(self, tokenizer: Any, *, context_ids: Sequence[int] = (), stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context_ids[-_CONTEXT_TOKENS:])
        self._start = 0
        self._read = len(self._ids)
        self._stop_strings = tuple(stop_strings)
        self._tail = ""

    def push(self, token_id: int) -> str:
        """Adds an id and returns the text that became final with it."""
        self._ids.append(token_id)
        known = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if len(text) > len(known) and not text.endswith(_INCOMPLETE):
            self._tail += text[len(known) :]
            self._drop_read()
        return self._give_out(len(self._tail) - self._possible_stop())

    def finish(self) -> str:
        """The rest, once no more ids will come: incomplete characters, and what did not become a stop string."""
        known = self._decode(self._ids[self._start : self._read])
        self._tail += self._decode(self._ids[self._start :])[len(known) :]
        self._drop_read()
        found = [at for stop in self._stop_strings if (at := self._tail.find(stop)) >= 0]
        return self._give_out(min(found, default=len(self._tail)))

    def _drop_read(self) -> None:
        self._ids = self._ids[self._read :]
        self._start, self._read = 0, len(self._ids)

    def _give_out(self, length: int) -> str:
        text, self._tail = self._tail[:length], self._tail[length:]
        return text

    def _possible_stop(self) -> int:
        """Length of the tail that holds a stop string or may be the beginning of one."""
        held = 0
        for stop in self._stop_strings:
            at = self._tail.find(stop)
            if at >= 0:
                held = max(held, len(self._tail) - at)
                continue
            for length in range(min(len(stop) - 1, len(self._tail)), held, -1):
                if self._tail.endswith(stop[:length]):
                    held = length
                    break
        return held

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
