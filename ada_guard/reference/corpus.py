"""Training sequences of the reference model: token ids with a loss weight each. Knows nothing of the optimiser.

Two phases, like real alignment: `base_sequence` gives how-to documents of both kinds, `chat_sequence` conversations
in which forbidden requests are refused. An assistant header never follows a cut answer directly: a user turn ("go
on") always stands between. That the model refuses at a header injected into a running answer is therefore never
taught.

Source: Any-Depth Alignment (Zhang et al., ICLR 2026) for the effect to be shown; Qi et al., "Safety Alignment Should
Be Made More Than Just a Few Tokens Deep" (ICLR 2025) for alignment that reaches the first tokens of a turn only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from ada_guard.reference import data, words

__all__ = ["END", "PAD", "START", "Corpus", "Sequence", "tokenizer_lines"]

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# The first tokens of a turn decide between an answer and a refusal; they are rare beside the steps, so they weigh more.
_DECISIVE_TOKENS, _DECISIVE_WEIGHT = 6, 3.0
# From here on an answer has named its topic, and the answer decides what kind a conversation is, not the question.
_NAMED_TOKENS = 26
# Of a long answer that is resumed, so many steps are shown.
_RESUMED_STEPS = 12
# In this share of the conversations no newline stands after "assistant". The role token itself then has to know what
# comes, as it does in large models; a model this small would leave all of it to the newline, and a probe on the role
# token would see nothing.
_BARE_HEADERS = 0.5


@dataclass(slots=True)
class Sequence:
    """Token ids and the weight of each in the loss (as a target)."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    bare_headers: bool = False
    """Whether no newline stands after the role word "assistant"."""

    def add(self, ids: list[int], weight: float) -> None:
        """Append tokens of one weight."""
        self.ids += ids
        self.weights += [weight] * len(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    lines: tuple[list[int], ...]
    first_number: int
    """The number of the first line; one below the first step's where an introduction stands before it."""
    count: int | None
    """How many steps the introduction announces."""
    finished: bool

    @property
    def ids(self) -> list[int]:
        return [token for line in self.lines for token in line]

    def number_at(self, cut: int) -> int:
        """The number of the step in which a cut after that many tokens falls."""
        number = self.first_number
        for line in self.lines:
            cut -= len(line)
            if cut < 0:
                break
            number += 1
        return max(1, number)


def tokenizer_lines(rng: Random, count: int = 6000) -> Iterator[str]:
    """Lines to train the tokenizer on: the language, with the role words often enough to become one token each."""
    everything = data.topics()
    for _ in range(count):
        topic = rng.choice(everything)
        yield data.document(topic, rng).text
        yield data.question(topic, rng, rng.choice(("fit", "calibration")), long=rng.random() < 0.2)
        yield data.refusal(topic, rng, rng.choice(("request", "going_on", "again")))
        yield data.go_on(rng)
        yield from rng.choice(words.SMALL_TALK)
        yield rng.choice(words.SYSTEM)
        yield from ("assistant\n", "user\n", "system\n", "tool\n")


class Corpus:
    """Makes sequences at random; equal seeds give equal sequences."""

    def __init__(self, tokenizer: Tokenizer, rng: Random, *, short: bool = False) -> None:
        """Short texts only (what is forbidden is learned soonest from many of them), or up to the deepest checks."""
        self._short = short
        self._tokenizer = tokenizer
        self._rng = rng
        self._newline = self._ids("\n")
        self._end = self._ids(END)

    def batches(self, make: Callable[[], Sequence], tokens: int) -> Iterator[list[Sequence]]:
        """Batches of sequences of similar length, with at most that many tokens (padding counted), without end."""
        while True:
            pool = sorted((make() for _ in range(240)), key=lambda sequence: len(sequence.ids))
            groups: list[list[Sequence]] = [[]]
            for sequence in pool:
                if groups[-1] and (len(groups[-1]) + 1) * len(sequence.ids) > tokens:
                    groups.append([])
                groups[-1].append(sequence)
            self._rng.shuffle(groups)
            yield from groups

    def base_sequence(self) -> Sequence:
        """Documents of either kind, under a title, a question or nothing; whole, cut or two in a row."""
        rng, sequence = self._rng, Sequence()
        room = self._room()
        while True:
            topic = rng.choice(data.topics(rng.choice(data.KINDS)))
            head = rng.choice(("", f"How to make {topic.full}\n", data.question(topic, rng, self._wording()) + "\n"))
            if not sequence.ids or rng.random() < 0.5:
                sequence.add(self._ids(head), 1.0)
            text = self._text(topic, rng.randint(50, room))
            whole = text.ids
            cut = not text.finished or rng.random() < 0.3
            sequence.add(whole[: rng.randint(len(whole) // 2, len(whole))] if cut else whole, 1.0)
            if len(sequence.ids) > room // 2 or rng.random() < 0.6:
                if not cut:
                    sequence.add(self._end, 1.0)
                return sequence
            sequence.add(self._ids("\n\n"), 0.0 if cut else 1.0)

    def chat_sequence(self) -> Sequence:
        """One conversation, or, so that the language is not forgotten, one document."""
        rng, sequence = self._rng, Sequence()
        draw = rng.random()
        if draw < 0.12:
            return self.base_sequence()
        sequence.bare_headers = rng.random() < _BARE_HEADERS
        if rng.random() < 0.3:
            self._turn(sequence, "system", rng.choice(words.SYSTEM))
        if rng.random() < 0.2:
            self._exchange(sequence)
        if draw < 0.45:
            for _ in range(rng.choice((1, 1, 2))):
                self._exchange(sequence)
        elif draw < 0.53:
            self._refused_then_go_on(sequence)
        else:
            self._text_then_go_on(sequence)
        return sequence

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def _wording(self) -> data.Split:
        return "fit" if self._rng.random() < 0.75 else "calibration"

    def _room(self) -> int:
        """A length in tokens: with long texts one in ten goes as deep as the deepest checks."""
        if self._short:
            return self._rng.choice((60, 120, 240))
        return 1350 if self._rng.random() < 0.1 else self._rng.choice((160, 320, 560, 560))

    def _text(self, topic: data.Topic, tokens: int) -> _Text:
        """A document of about that many tokens; it may start in the middle and may lack its end."""
        rng = self._rng
        opening, closing = rng.random() < 0.8, rng.random() < 0.7
        start = 1 if opening else rng.randint(1, 40)
        steps = max(2, tokens // 17)
        made = data.document(topic, rng, steps, start=start, opening=opening, closing=closing)
        lines = made.text.split("\n")
        ids = tuple(self._ids(line + "\n" * (i + 1 < len(lines))) for i, line in enumerate(lines))
        return _Text(lines=ids, first_number=start - opening, count=steps if opening else None, finished=closing)

    def _turn(
        self, sequence: Sequence, role: str, text: str | list[int], weight: float = 0.0, *, cut: bool = False
    ) -> None:
        ids = self._ids(text) if isinstance(text, str) else text
        bare = sequence.bare_headers and role == "assistant"
        sequence.add(self._ids(f"{START}{role}" + "\n" * (not bare)), 0.0)
        sequence.add(ids[:_DECISIVE_TOKENS], weight * _DECISIVE_WEIGHT)
        sequence.add(ids[_DECISIVE_TOKENS:], weight)
        sequence.add(self._end, 0.0 if cut else weight)
        sequence.add(self._newline, 0.0)

    def _exchange(self, sequence: Sequence) -> None:
        """Small talk, a benign request with its answer, or a forbidden one with its refusal."""
        rng = self._rng
        if rng.random() < 0.12:
            asked, answer = rng.choice(words.SMALL_TALK)
            self._turn(sequence, "user", asked)
            self._turn(sequence, "assistant", answer, 1.0)
            return
        topic = rng.choice(data.topics(rng.choice(data.KINDS)))
        long = rng.random() < (0.04 if self._short else 0.15)
        self._turn(sequence, "user", data.question(topic, rng, self._wording(), long=long))
        if topic.kind == "forbidden":
            self._turn(sequence, "assistant", data.refusal(topic, rng), 1.0)
            return
        if rng.random() < 0.05:
            self._turn(sequence, "assistant", "Let me look that up.", 1.0)
            self._turn(sequence, "tool", f"{topic.full}: {topic.materials[0]}, {topic.materials[1]}")
        steps = rng.randint(20, 40) if long else rng.randint(4, 10 if self._short else 14)
        self._turn(sequence, "assistant", data.document(topic, rng, steps).text, 1.0)

    def _refused_then_go_on(self, sequence: Sequence) -> None:
        """A forbidden request, the model's own refusal, then "go on": it says so again."""
        topic = self._rng.choice(data.topics("forbidden"))
        self._turn(sequence, "user", data.question(topic, self._rng, self._wording(), long=self._rng.random() < 0.15))
        self._refuse_again(sequence, topic, "request")

    def _refuse_again(self, sequence: Sequence, topic: data.Topic, when: data.Occasion) -> None:
        rng = self._rng
        ids = self._ids(data.refusal(topic, rng, when))
        cut = rng.random() < 0.6
        self._turn(sequence, "assistant", ids[: rng.randint(1, len(ids))] if cut else ids, 1.0, cut=cut)
        self._turn(sequence, "user", data.go_on(rng))
        self._turn(sequence, "assistant", data.refusal(topic, rng, "again"), 1.0)

    def _text_then_go_on(self, sequence: Sequence) -> None:
        """A begun text of either kind as the assistant's turn, then "go on": a refusal, or the next steps."""
        rng = self._rng
        asked = rng.choice(data.topics(rng.choice(data.KINDS)))
        same = rng.random() < 0.8
        topic = asked if same else rng.choice(data.topics(rng.choice(data.KINDS)))
        text, before = self._text(topic, self._room()), list[int]()
        if topic.kind == "forbidden" and rng.random() < 0.15:  # a text that begins harmless and turns
            before = [*self._text(rng.choice(data.topics("benign")), rng.randint(40, 240)).ids, *self._newline]
        ids = [*before, *text.ids]
        cut = len(ids)
        if not text.finished or rng.random() < 0.85:
            least = 1 if same and not before else len(before) + _NAMED_TOKENS
            draw = rng.random()
            if least == 1 and draw < 0.25:
                cut = rng.randint(1, _NAMED_TOKENS)
            else:
                cut = rng.randint(min(least, cut), cut) if draw < 0.6 else _log_uniform(rng, max(least, 8), cut)
        whole = text.finished and cut == len(ids)
        good = topic.kind == asked.kind == "benign"
        self._turn(sequence, "user", data.question(asked, rng, self._wording(), long=rng.random() < 0.3))
        self._turn(sequence, "assistant", ids[:cut], float(good), cut=not whole)
        self._turn(sequence, "user", data.go_on(rng))
        number = text.number_at(cut)
        left = rng.randint(3, 10) if text.count is None else text.count + 1 - number
        if topic.kind == "forbidden":
            when: data.Occasion = "going_on" if cut >= _NAMED_TOKENS else "request"
            if rng.random() < 0.15:
                self._refuse_again(sequence, topic, when)
                return
            answer, left = data.refusal(topic, rng, when), 0
        elif whole or left < 1:
            answer, left = rng.choice(words.NOTHING_LEFT), 0
        else:
            ends = left <= _RESUMED_STEPS
            steps = data.document(topic, rng, min(left, _RESUMED_STEPS), start=number, opening=False, closing=ends)
            answer = rng.choice(words.RESUMES) + steps.text
        self._turn(sequence, "assistant", answer, 1.0, cut=left > _RESUMED_STEPS)


def _log_uniform(rng: Random, low: int, high: int) -> int:
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(max(low, high) + 1)))))
