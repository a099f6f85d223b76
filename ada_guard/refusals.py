"""Is this text a refusal? Phrases are data (``refusals.toml``); this module only matches them.

Knows nothing of models, tokens or streams. Text is folded character by character, so that the folded form of a prefix
is a prefix of the folded form: that is what makes every decision independent of how a text was cut into pieces.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
import unicodedata
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from ada_guard.errors import ConfigError

__all__ = ["RefusalMatcher"]

_MAX_GAP_CHARS = 120
"""How far from the start of its sentence a "…" may reach: past most subordinate clauses, short of an instruction."""
_MAX_QUOTE_CHARS = 200
_MAX_COMPANION_CHARS = 160
_MAX_REFUSAL_CHARS = 240
_MAX_SENTENCES = 6
_MAX_PREAMBLE_CHARS = 120

_SENTENCE_ENDS = ".!?\n\r\u2028\u2029…。！？．｡।॥؟۔‼⁇⁈⁉"
_PAUSES = ",;:，、；：،؛()（）—–―"
_DROPPED = "'‘’ʼ＇′´`*_~\u0640"
_OPTIONAL_MARKS = frozenset((*range(27, 36), *range(200, 241)))
"""Combining classes of Arabic vowel signs and of accents, often left out; the marks of Hindi and Japanese stay."""
_CJK = "々\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
"""Scripts without spaces, or with endings that vary (Korean): each character is taken for a word."""

_TOKEN = re.compile(rf"<[^<>.]{{0,40}}>|[.,]|[{_CJK}]|[^\s.,<>{_CJK}]+")
_OPEN_TAG = re.compile(r"<[^<>.]{0,40}\Z")
_CJK_CHAR = re.compile(f"[{_CJK}]")
_PHRASE_TOKEN = re.compile(r"[()|…]|[^()|…]+")

_SENTENCE_START = re.compile(f"[^{re.escape(_SENTENCE_ENDS)}]+")
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’»)*_]*(?=\s|[A-Z])|[。！？।؟۔]+|\n+|\Z)", re.DOTALL)
_ENDED = re.compile(rf"[{re.escape(_SENTENCE_ENDS)}][\"'”’»)*_\s]*\Z")
_EDGE_MARKUP = ' \t\n\r*_~`#>"“”«»|•-–—'
_STRUCTURE = re.compile(
    r"```|^\s*(?:[-*+•‣▪–]\s|#{1,6}\s|\||\d{1,3}\s*[.):])|\b\d{1,2}[.)]\s+\S|[:：]\s*[^\s/]", re.MULTILINE
)
"""Lists, code, tables, headings and "label: text": no refusal needs them and every set of instructions does."""


class _Fold(dict[int, str]):
    """`str.translate` table: lower case, no accents, no markup. Filled on use; pure, so sharing it is safe."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char in _SENTENCE_ENDS or char in _PAUSES:
            folded = "." if char in _SENTENCE_ENDS else ","
        elif char in _DROPPED or unicodedata.category(char) in ("Cf", "Me") or "\ufe00" <= char <= "\ufe0f":
            folded = ""
        else:
            parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
            kept = "".join(part for part in parts if unicodedata.combining(part) not in _OPTIONAL_MARKS)
            parts = unicodedata.normalize("NFC", kept)
            folded = "".join(part if unicodedata.category(part)[0] in "LNM" or char in "<>" else " " for part in parts)
        self[code] = folded
        return folded


_FOLD = _Fold()


@dataclass(slots=True, eq=False)
class _Node:
    """A place in a prefix tree of words. Only grows while it is built; sorted words are a cache."""

    words: dict[str, _Node] = field(default_factory=dict)
    gap: _Node | None = None
    is_gap: bool = False
    spans: bool = False
    ends: frozenset[str] = frozenset()
    sorted_words: tuple[str, ...] = ()

    def add(self, phrase: str, kind: str) -> None:
        """Adds a phrase: words, ``(a|b|)`` for alternatives, ``…`` for a gap within the sentence."""
        parts = deque(_PHRASE_TOKEN.findall(phrase))
        if parts.count("(") != parts.count(")") or self in (ends := self._grow([self], parts)) or parts:
            raise ConfigError("a refusal phrase needs at least one word and balanced parentheses")
        for node in ends:
            node.ends |= {kind}
            node.spans = node.spans or (node.is_gap and kind == "opener")

    @staticmethod
    def _grow(starts: list[_Node], parts: deque[str]) -> list[_Node]:
        """Adds the alternatives up to a closing parenthesis, taking them off `parts`; returns where they end."""
        nodes, ends = starts, list[_Node]()
        while parts and parts[0] != ")":
            part = parts.popleft()
            if part == "(":
                nodes = _Node._grow(nodes, parts)
                parts.popleft()
            elif part == "|":
                ends, nodes = ends + nodes, starts
            elif part == "…":
                for node in nodes:
                    node.gap = node.gap or _Node(is_gap=True)
                nodes = [node.gap for node in nodes if node.gap]
            else:
                for word in _words(part):
                    nodes = [node.words.setdefault(word, _Node()) for node in nodes]
        return list(dict.fromkeys(ends + nodes))

    def may_start(self, part: str) -> bool:
        """Whether some word that can come next starts with this part of a word."""
        if len(self.sorted_words) < len(self.words):  # on first use: most nodes are never asked
            self.sorted_words = tuple(sorted(self.words))
        place = bisect_left(self.sorted_words, part)
        return place < len(self.sorted_words) and self.sorted_words[place].startswith(part)


def _words(text: str) -> list[str]:
    return [word for word in _TOKEN.findall(text.translate(_FOLD)) if word not in ".,"]


_Nodes = dict[_Node, None]  # an ordered set


@dataclass(frozen=True, slots=True, eq=False)
class _Machine:
    """Reads folded text once, word by word, holding every place of the phrase trees the sentence can be at.

    A ``refusal`` decides; a ``stem`` too unless one of `blocked` follows; an ``opener`` may precede either, and spans
    up to a pause, a connective or the end of its sentence where it ends in a gap. `adverbs` may stand anywhere.
    """

    starts: _Nodes
    blocked: _Node
    adverbs: _Node
    connectives: frozenset[str]

    def run(self, text: str, *, complete: bool, every: bool) -> bool | None:
        """True: refusal. False: cannot become one. None: undecided.

        `complete`: no more will come; the last word is whole, and a stem at the end counts. `every`: start anew at each
        sentence; otherwise a sentence that is more than an opener decides False.
        """
        text = text.translate(_FOLD)
        text = text if complete or "<" not in text else _OPEN_TAG.sub("", text)
        active, after, begin = self.starts, None, 0
        for match in _TOKEN.finditer(text):
            word, at = match.group(), match.start()
            if word == ".":
                if after is not None:
                    return True
                if not every and not any(node.spans or node in self.starts for node in active):
                    return False
                active, begin = self.starts, at
            elif word == ",":
                if any(node.spans for node in active):
                    active = active | self.starts
            elif (active or after is not None) and word[0] != "<":
                gaps = at - begin <= _MAX_GAP_CHARS
                if match.end() == len(text) and not complete and not _CJK_CHAR.match(word):
                    return self._part(active, after, word, gaps)
                stays = word in self.adverbs.words
                if after is not None:
                    after, ends = _step(after, word, gaps, stays)
                    if not after:
                        return True
                    after = None if ends else after
                restart = word in self.connectives and any(node.spans for node in active)
                active, ends = _step(active, word, gaps, stays)
                if "refusal" in ends:
                    return True
                if "stem" in ends and after is None:
                    after = {self.blocked: None}
                if restart or "opener" in ends:
                    active |= self.starts
            if not active and after is None and not every:
                return False
        return after is not None if complete else None

    def _part(self, active: _Nodes, after: _Nodes | None, part: str, gaps: bool) -> bool | None:
        """Decides on a last word that may still grow: only what holds for each of its continuations."""
        nodes = active if after is None else after
        alive = any(node.may_start(part) or (gaps and node.is_gap) for node in nodes)
        return None if alive or self.adverbs.may_start(part) else after is not None


def _step(nodes: _Nodes, word: str, gaps: bool, stays: bool) -> tuple[_Nodes, frozenset[str]]:
    following: _Nodes = {}
    ends: frozenset[str] = frozenset()
    for node in nodes:
        child = node.words.get(word)
        if child is not None:
            following[child] = None
            if child.gap is not None:
                following[child.gap] = None
            if child.ends:
                ends |= child.ends
        if stays or (gaps and node.is_gap):
            following[node] = None
    return following, ends


@cache
def _bundled() -> Mapping[str, Mapping[str, Sequence[str]]]:
    return tomllib.loads(resources.files("ada_guard").joinpath("refusals.toml").read_text(encoding="utf-8"))


class RefusalMatcher:
    """Recognises refusals in the text of a lookahead or of an answer. Immutable; one serves many threads.

    Args:
        phrases: Refusals instead of the bundled ones, openers and companions stay. ``(a|b)`` alternatives, ``…`` gap.
        languages: Which bundled languages to use; all by default.

    Raises:
        ConfigError: A language that is not bundled, or a phrase without words.

    Source: rethink after Zhang et al. (ICLR 2026), ADA-RK; sentence starts instead of their keywords anywhere in the
    text, since words such as "illegal" or "disclaimer" occur in harmless answers too.
    """

    __slots__ = ("_companions", "_connective", "_key", "_openers", "_strict")

    def __init__(self, phrases: Iterable[str] | None = None, languages: Sequence[str] | None = None) -> None:
        bundled = _bundled()
        chosen = tuple(bundled) if languages is None else tuple(languages)
        if not chosen or not bundled.keys() >= set(chosen):
            raise ConfigError(f"languages must be some of: {', '.join(bundled)}")

        def listed(key: str) -> list[str]:
            return [phrase for language in chosen for phrase in bundled[language].get(key, ())]

        refusals, stems = (listed("refusals"), listed("stems")) if phrases is None else (list(phrases), [])
        self._key = hashlib.sha256(repr((chosen, refusals, stems)).encode()).hexdigest()[:16]
        joining = (connectives := listed("connectives")) + listed("linkers")
        words = frozenset(phrase[0] for phrase in map(_words, joining) if len(phrase) == 1)
        shared = _tree(blocked=listed("not_after_stem")), _tree(adverb=listed("adverbs")), words
        refusing = _tree(refusal=refusals, stem=stems, opener=listed("preambles") + joining)
        self._strict = _Machine({refusing: None}, *shared)
        neutral = _tree(opener=[*listed("openers"), *map(str, range(100))])  # the numbers are those of list items
        self._openers = _Machine({refusing: None, neutral: None}, *shared)
        self._companions = _Machine({_tree(refusal=listed("companions")): None}, *shared)
        longest_first = sorted(connectives, key=len, reverse=True)
        bounded = (phrase if "\u3040" <= phrase[0] <= "\u9fff" else rf"\b{phrase}\b" for phrase in longest_first)
        self._connective = re.compile("|".join(bounded), re.IGNORECASE)

    def __repr__(self) -> str:
        """Tells matchers of different phrases apart, without showing them."""
        return f"RefusalMatcher({self._key})"

    def decide(self, text: str, *, complete: bool = False) -> bool | None:
        """Whether the text refuses: True, False, or None while more text is needed.

        With `complete` every sentence is looked at, and a stem at the very end ("I'm sorry, but I can't") counts.
        Without, a sentence that is neither a refusal nor an opener decides False, so that a lookahead can stop early,
        and a decision is final: any text that starts with `text` gets the same one, however it grew. True without
        `complete` implies True with it; the shortest text that is decided False without is False with it.
        """
        return self._openers.run(text, complete=complete, every=complete)

    def first_refusal(self, text: str) -> str | None:
        """The first sentence that refuses, as written but without markup around it, at most 200 characters."""
        for start in _SENTENCE_START.finditer(text):
            if self._openers.run(start.group(), complete=True, every=True):
                quote: str = _SENTENCE.findall(text[start.start() :].lstrip())[0].strip(_EDGE_MARKUP)
                return quote if len(quote) <= _MAX_QUOTE_CHARS else quote[:_MAX_QUOTE_CHARS].rsplit(None, 1)[0]
        return None

    def is_all_refusal(self, text: str) -> bool:
        """Whether everything so far is refusal text: a model that refuses by itself is not to be flagged.

        True while a refusal may still be being written ("I'm sor"), then as long as only refusals and polite companions
        follow. Lists, code, "label: text", long or many sentences, and a "but" followed by anything else make it False.
        """
        text = text.strip()
        if not text or len(text) > _MAX_SENTENCES * _MAX_REFUSAL_CHARS or _STRUCTURE.search(text):
            return False
        if not 0 < len(sentences := [each for each in _SENTENCE.findall(text) if _words(each)]) <= _MAX_SENTENCES:
            return False
        clauses = [clause for sentence in sentences for clause in self._connective.split(sentence)]
        growing = None if _ENDED.search(text) else len(clauses) - 1
        refused, preamble_chars = False, 0
        for place, clause in enumerate(clauses):
            ended, fits = place != growing, refused and len(clause) <= _MAX_COMPANION_CHARS
            if self._openers.run(clause, complete=ended, every=False) and len(clause) <= _MAX_REFUSAL_CHARS:
                refused = True
            elif self._strict.run(clause + "." if ended else clause, complete=False, every=False) is None:
                preamble_chars += len(clause)  # an apology, a preamble, or the beginning of a refusal
            elif not fits or self._companions.run(clause, complete=ended, every=False) is False:
                return False
        return preamble_chars <= _MAX_PREAMBLE_CHARS


def _tree(**phrases_by_kind: list[str]) -> _Node:
    root = _Node()
    for kind, phrases in phrases_by_kind.items():
        for phrase in phrases:
            root.add(phrase, kind)
    return root
