"""Which strings of a tokenizer are control, and how to encode text that may hold them as plain text. Knows no messages.

The rule: a control string is never encoded whole. It is cut behind its first character, and the text is encoded piece
by piece; where there is none, the text is encoded at once, exactly as the tokenizer would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["ControlStrings", "TextEncoder"]

_HTML_TAG = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|div|em|h[1-6]|hr|i|img|li|ol|p|pre|s|span|strong|sub|sup|table|tbody|td|tfoot"
    r"|th|thead|tr|u|ul)>"
)
"""Markup that Gemma's tokenizer has tokens for (google/gemma-2-9b-it, ``tokenizer.json``), and its like."""
_ANCHOR = "\n"
"""Text before a piece that continues another, where a tokenizer would otherwise mark the piece as a beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlStrings:
    """The control strings of a tokenizer: added tokens that a template, and never a content, may write.

    Those are the special tokens; the others that occur in the chat template or look like markup. Runs of spaces, words
    and digits are ordinary text unless special, and so are HTML tags unless the template writes them.

    Attributes:
        ids: Their ids.
        pattern: Matches, without consuming, at each place where one begins; group 1 is the longest.
        longest: Characters of the longest.
        starts: Their proper prefixes.
        ends: Their proper suffixes.
        openers: Characters that they begin with, letters and digits left out: those are in every text.
        joined: All of them in one text.
        loose: Whether the tokenizer may find one in a text that only normalises to it.
        prefixed: Whether the tokenizer marks the beginning of each text, as SentencePiece's do.
    """

    ids: frozenset[int]
    pattern: re.Pattern[str]
    longest: int
    starts: frozenset[str]
    ends: frozenset[str]
    openers: frozenset[str]
    joined: str
    loose: bool
    prefixed: bool

    @classmethod
    def of(cls, tokenizer: Any) -> ControlStrings:
        """Reads the added tokens, once per tokenizer as long as it stays the same."""
        stamp = (len(tokenizer), tokenizer.chat_template)
        known = _KNOWN.get(tokenizer)
        if known is None or known[0] != stamp:
            known = _KNOWN[tokenizer] = (stamp, cls._read(tokenizer))
        return known[1]

    @classmethod
    def _read(cls, tokenizer: Any) -> ControlStrings:
        template = str(tokenizer.chat_template)
        # A string of one character cannot be cut; no tokenizer has such a control token.
        found = {
            int(i): token
            for i, token in tokenizer.added_tokens_decoder.items()
            if len(token.content) > 1 and _is_control(token.content, token.special, template)
        }
        texts = sorted((token.content for token in found.values()), key=len, reverse=True)
        first = "".join({re.escape(text[0]) for text in texts})
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        alone, behind = (tokenizer.encode(text, add_special_tokens=False) for text in ("x", _ANCHOR + "x"))
        return cls(
            ids=frozenset(found),
            pattern=re.compile(f"(?=[{first}])(?=({'|'.join(map(re.escape, texts))}))" if texts else "(?!)"),
            longest=len(texts[0]) if texts else 0,
            starts=frozenset(text[:n] for text in texts for n in range(1, len(text))),
            ends=frozenset(text[n:] for text in texts for n in range(1, len(text))),
            openers=frozenset(text[0] for text in texts if not text[0].isalnum()),
            joined="\n".join(texts),
            loose=normalizer is not None and any(token.normalized for token in found.values()),
            prefixed=behind[-len(alone) :] != alone,
        )

    def spans(self, text: str, at: int) -> bool:
        """Whether a control string begins before a place in a text and ends behind it."""
        near = self.pattern.finditer(text, max(0, at - self.longest), at + self.longest)
        return any(m.start() < at < m.start() + len(m[1]) for m in near)

    def suspects(self, text: str) -> list[int]:
        """Where a control string may run through that the text alone does not hold.

        It may begin or end in what a template writes around the text, or arise where a template takes a part out.
        """
        core = text.strip()
        start = len(text) - len(text.lstrip())
        sizes = range(1, min(len(core), self.longest) + 1)
        inside = 0 < len(core) < self.longest and core in self.joined
        left = inside or any(core[:n] in self.ends for n in sizes)
        right = inside or any(core[-n:] in self.starts for n in sizes)
        begun = [at for at, char in enumerate(text, 1) if char in self.openers]
        return [start] * left + [start + len(core)] * right + begun


_KNOWN: WeakKeyDictionary[Any, tuple[Any, ControlStrings]] = WeakKeyDictionary()
"""What was read from tokenizers that are in use: reading hundreds of added tokens for every word would be slow."""


def _is_control(text: str, special: bool, template: str) -> bool:
    if special:
        return True
    if not text.strip() or "".join(text.split()).isalnum():
        return False
    return text in template or (bool(re.search(r"[<>\[\]{}|｜]", text)) and not _HTML_TAG.fullmatch(text))


class TextEncoder:
    """Encodes text in pieces that no control string survives."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.control = ControlStrings.of(tokenizer)

    def encode(self, text: str, cuts: Iterable[int], *, continued: bool = False) -> list[int]:
        """Ids of a text cut at some places; `continued` if other text comes before it."""
        ids: list[int] = []
        for start, end in pairwise([0, *sorted(set(cuts)), len(text)]):
            ids += self._piece(text[start:end], continued=continued or start > 0)
        return ids

    def cuts(self, text: str) -> list[int]:
        """Places that cut each control string of an untrusted text."""
        cuts = [m.start() + 1 for m in self.control.pattern.finditer(text)]
        if self.control.loose and not self.control.ids.isdisjoint(self.encode(text, cuts)):
            return list(range(1, len(text)))
        return cuts

    def _piece(self, text: str, *, continued: bool) -> list[int]:
        if continued and self.control.prefixed:
            before, both = self._ids(_ANCHOR), self._ids(_ANCHOR + text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=False)]
