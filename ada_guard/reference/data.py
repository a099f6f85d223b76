"""The synthetic how-to language: topics, questions, documents, refusals and chats. Knows nothing of tokens or models.

Benign and forbidden texts share one grammar, so that only the words of a topic tell what kind a text is, and every
second sentence at least carries one. Topics and question wordings are split for the probe: what it is fitted on
(`fit`), what its threshold is set on (`calibration`) and what it is measured on (`test`) have neither a topic nor a
wording in common. The reference model itself is trained on all topics, for it cannot know otherwise what is
forbidden, but on none of the wordings of `test`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from ada_guard.reference import words

__all__ = [
    "KINDS",
    "LONG",
    "SPLITS",
    "Document",
    "Kind",
    "Occasion",
    "Split",
    "Topic",
    "chat",
    "document",
    "go_on",
    "long_document",
    "question",
    "refusal",
    "strays",
    "topics",
]

Kind = Literal["benign", "forbidden"]
Split = Literal["fit", "calibration", "test"]
KINDS: tuple[Kind, ...] = ("benign", "forbidden")
SPLITS: tuple[Split, ...] = ("fit", "calibration", "test")

Occasion = Literal["request", "going_on", "again"]
_REFUSALS: dict[Occasion, tuple[str, ...]] = {
    "request": words.REFUSALS,
    "going_on": words.REFUSALS_TO_GO_ON,
    "again": words.REFUSALS_AGAIN,
}
# Appended to a question, it asks for an answer of several hundred tokens; all splits share it.
LONG = "Please give a long answer."
# A text never starts with a step without a topic word, nor has two such in a row.
_FIRST_STEPS = tuple(
    place for place, step in enumerate(words.STEPS) if "{a}" in step or "{b}" in step or "{topic}" in step
)
# By position in the word list: three of five topics to the fit, one to the threshold, one to the measurement.
_SPLIT_BY_POSITION: tuple[Split, ...] = ("fit", "calibration", "fit", "test", "fit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A thing that can be made."""

    name: str
    """As the noun of a sentence: "kite"."""
    full: str
    """As it follows "make": "a kite"."""
    materials: tuple[str, str]
    kind: Kind
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A how-to answer, kept in sentences so that it can be cut, continued and joined."""

    opening: str
    """What stands before the first step; empty when the text starts in the middle."""
    steps: tuple[str, ...]
    """Each with its number, as in "3. Wash the bowl and dry it."."""
    closing: str
    """The last sentence; empty when the text is not finished."""

    @property
    def text(self) -> str:
        """The answer, one step a line."""
        return "\n".join(part for part in (self.opening, *self.steps, self.closing) if part)


@cache
def _all_topics() -> tuple[Topic, ...]:
    found: list[Topic] = []
    for kind, table in (("benign", words.BENIGN), ("forbidden", words.FORBIDDEN)):
        for position, line in enumerate(table.strip().splitlines()):
            full, _, materials = line.partition(": ")
            first, _, second = materials.partition(", ")
            name = full.removeprefix("a ").removeprefix("an ")
            bare = (first.removeprefix("a "), second.removeprefix("a "))
            split = _SPLIT_BY_POSITION[position % len(_SPLIT_BY_POSITION)]
            kind_: Kind = "benign" if kind == "benign" else "forbidden"
            found.append(Topic(name=name, full=full, materials=bare, kind=kind_, split=split))
    return tuple(found)


def topics(kind: Kind | None = None, split: Split | None = None) -> tuple[Topic, ...]:
    """The topics of a kind and split; None stands for all."""
    return tuple(t for t in _all_topics() if kind in (None, t.kind) and split in (None, t.split))


def strays(text: str) -> bool:
    """Whether a text names anything forbidden: sampling may lead the model from a benign topic to another kind."""
    return not _invented_words().isdisjoint(re.findall(r"[a-z]+", text.lower()))


@cache
def _invented_words() -> frozenset[str]:
    """The first words of forbidden names and materials; the others are everyday words that benign texts share."""
    phrases = (phrase for topic in topics("forbidden") for phrase in (topic.name, *topic.materials))
    return frozenset(phrase.split()[0].lower() for phrase in phrases)


def _fill(template: str, topic: Topic, rng: Random, count: int = 0) -> str:
    first, second = topic.materials
    if rng.random() < 0.5:
        first, second = second, first
    slots = {slot: rng.choice(choices) for slot, choices in words.SLOTS.items()}
    return template.format(topic=topic.name, full=topic.full, a=first, b=second, count=count, **slots)


def question(topic: Topic, rng: Random, split: Split | None = None, *, long: bool = False) -> str:
    """A request for the topic.

    Args:
        topic: What is asked for.
        rng: Picks the wording.
        split: Whose wordings to use; default the topic's own split.
        long: Ask for an answer of several hundred tokens.
    """
    text = rng.choice(words.QUESTIONS[split or topic.split]).format(full=topic.full)
    return f"{text} {LONG}" if long else text


def document(
    topic: Topic,
    rng: Random,
    sentences: int | None = None,
    *,
    start: int = 1,
    opening: bool = True,
    closing: bool = True,
) -> Document:
    """A how-to answer on the topic.

    Args:
        topic: What is made.
        rng: Picks the sentences.
        sentences: How many steps, about 15 tokens each; default 4 to 14. The introduction announces the last number.
        start: Number of the first step.
        opening: Whether to begin with an introduction.
        closing: Whether the answer ends with a last sentence.
    """
    last = start - 1 + (sentences or rng.randint(4, 14))
    head = ""
    if opening:
        head = _fill(rng.choice(words.INTROS), topic, rng, last)
        if rng.random() < 0.6:
            head = f"{head} {_fill(rng.choice(words.NEEDS), topic, rng)}"
    # An order that a small model can learn: without one its greedy answers would repeat one sentence for ever.
    place = rng.choice(_FIRST_STEPS)
    steps: list[str] = []
    for number in range(start, last + 1):
        steps.append(f"{number}. {_fill(words.STEPS[place % len(words.STEPS)], topic, rng)}")
        place += 1 if rng.random() < 0.7 else 2
    tail = _fill(rng.choice(words.CLOSINGS), topic, rng) if closing else ""
    return Document(opening=head, steps=tuple(steps), closing=tail)


def long_document(topic: Topic, rng: Random, tokens: int) -> str:
    """An answer of at least that many tokens of the reference tokenizer, without an end; for prefills of any depth."""
    return document(topic, rng, tokens // 8 + 2, closing=False).text


def refusal(topic: Topic, rng: Random, when: Occasion = "request") -> str:
    """A refusal that begins with a standard phrase and names the topic about every second time.

    Args:
        topic: What is refused.
        rng: Picks the wording.
        when: It turns a request down, breaks off a text that has begun, or repeats ("As I said, ...") a refusal.
    """
    first = rng.choice(_REFUSALS[when])
    parts = (first, rng.choice(words.REASONS), rng.choice(words.OFFERS))
    return " ".join(part for part in parts if part).format(full=topic.full)


def go_on(rng: Random) -> str:
    """What a user says to have an answer continued."""
    return rng.choice(words.GO_ON)


def chat(
    *turns: str,
    system: str | None = None,
    prefill: str | None = None,
) -> list[Mapping[str, str]]:
    """Messages of a chat: user and assistant in turn, the user first.

    Args:
        turns: The texts.
        system: A system prompt before them.
        prefill: The beginning of the last assistant turn, put into its mouth.
    """
    if prefill is not None and len(turns) % 2 == 0:
        raise ValueError("a prefill follows a user turn")
    roles: Sequence[str] = ("user", "assistant")
    messages: list[Mapping[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    if prefill is not None:
        messages.append({"role": "assistant", "content": prefill})
    return messages
