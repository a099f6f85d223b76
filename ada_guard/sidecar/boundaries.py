"""Where a growing text can be cut for good: at boundaries of the tokenizer's own that later text cannot move.

A rule of the text alone, so that it cannot matter how a text was split. Knows no ids and no model.
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Any

from tokenizers import PreTokenizedString, Regex, pre_tokenizers

__all__ = ["FORCED_AFTER_CHARACTERS", "Boundaries"]

FORCED_AFTER_CHARACTERS = 64
_LOOKED_AT_EVERY = 16
"""Characters after which a run of letters is looked at: some tokenizers cut inside of it, as at a change of script."""
_WORDS = r"\s*(?:[\p{L}\p{M}\p{N}_]+|[^\s\p{L}\p{M}\p{N}_]+)|\s+"
"""Stands in for a pre-tokenizer where there is none: the pieces of SentencePiece models cross none of these edges.

**Source**: ``split_by_unicode_script``, ``split_by_number`` and ``split_by_whitespace`` of SentencePiece's trainer
(``trainer_spec`` in ``src/sentencepiece_model.proto``), all on by default.
"""
_SAMPLE = "the quick (brown) fox\njumps"
_JOINER = "\u200d"


class Boundaries:
    """Finds the last boundary of a text that is final.

    A boundary is final once a new word has begun behind it, or another boundary has followed: before that, what comes
    next may still join both sides (``it`` and ``'`` become ``it's``). Never before a combining mark or inside of a
    joined emoji, nor in a number that goes on, since some tokenizers group digits from the right.

    Args:
        tokenizer: Any transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = getattr(backend, "normalizer", None)
        self._splitter: Any = getattr(backend, "pre_tokenizer", None)
        # Without one, and with one that sees no spaces because the normalizer replaces them, words are cut by rule.
        if self._splitter is None or len(self._starts(_SAMPLE)) < 2:
            self._normalizer = None
            self._splitter = pre_tokenizers.Split(Regex(_WORDS), "isolated")

    def last(self, text: str) -> int:
        """Where the text can be cut, given that this was asked after each of its characters; 0 for nowhere yet."""
        forced = len(text) > FORCED_AFTER_CHARACTERS
        if not forced and not _may_begin_something(text):
            return 0
        starts = self._starts(text)
        if not forced and len(starts) > 1 and not _begins_word(text, starts[-1]):
            starts.pop()
        for at in reversed(starts):
            if _separates(text, at):
                return at
        return _least_bad(text) if forced else 0

    def behind_spaces(self, text: str, length: int) -> list[int]:
        """Boundaries in the first `length` characters that come behind nothing but space.

        How a run of spaces is cut depends on what follows it: encoded without that, it would have to be cut here.
        """
        if not any(text[at].isspace() for at in (0, length - 1)):
            return []
        starts = [at for at in self._starts(text) if at <= length]
        return [end for start, end in pairwise(starts) if text[start:end].isspace() and end < length]

    def _starts(self, text: str) -> list[int]:
        if self._normalizer is None:
            spans = [span for _, span in self._splitter.pre_tokenize_str(text)]
        else:
            whole = PreTokenizedString(text)
            whole.normalize(self._normalizer.normalize)
            self._splitter.pre_tokenize(whole)
            spans = [span for _, span, _ in whole.get_splits("original", "char")]
        return sorted({start for start, _ in spans} | {0})


def _may_begin_something(text: str) -> bool:
    """Whether the last character can have made a boundary final; asking the tokenizer at each would be slow."""
    last = text[-1]
    if last.isspace():
        return False  # what spaces belong to is known only behind them
    return not (last.isalpha() and text[-2:-1].isalpha()) or len(text) % _LOOKED_AT_EVERY == 0


def _begins_word(text: str, at: int) -> bool:
    return at > 0 and (text[at].isspace() or text[at - 1].isspace()) and not text[at:].isspace()


def _separates(text: str, at: int) -> bool:
    if at <= 0 or _joins(text, at):
        return False
    return not (text[at - 1].isdigit() and text[at:].isdigit())


def _joins(text: str, at: int) -> bool:
    """Whether the characters on both sides are one to a reader."""
    return text[at - 1] == _JOINER or unicodedata.category(text[at]) in {"Mn", "Mc", "Me", "Cf"}


def _least_bad(text: str) -> int:
    """A cut where there is no boundary at all; a pile of marks is cut wherever it must."""
    places = range(len(text) - 1, FORCED_AFTER_CHARACTERS // 2, -1)
    return next((at for at in places if not _joins(text, at)), len(text) - 1)
