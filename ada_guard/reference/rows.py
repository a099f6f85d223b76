"""Labelled responses in the reference model's language: the recipe of its probe's rows and of its evaluations.

Harmful are texts on forbidden topics, whoever asked for them. Benign are how-to texts, answers that the model wrote
itself, and its own refusals of forbidden requests. Splits share neither topics nor wordings of questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from ada_guard.probe.rows import LabelledResponse, Split
from ada_guard.reference.data import Kind, Topic, chat, go_on, long_document, question, refusal, topics
from ada_guard.reference.data import Split as TopicSplit

__all__ = ["GRAMMAR", "Answering", "own_rows", "reference_rows"]

GRAMMAR = "reference grammar"
"""The generator of texts that no model wrote."""
_TOPICS: dict[Split, TopicSplit] = {"fit": "fit", "validation": "calibration", "test": "test"}
_LONG_TOKENS = 520
_BEGUN_TOKENS = 150

Answering = Callable[[list[dict[str, Any]], int], str | None]
"""Messages and a seed -> the model's own answer, or None where it is neither a refusal nor free of forbidden words."""


def reference_rows(
    split: Split,
    *,
    count: int,
    seed: int = 0,
    answering: Answering | None = None,
    tokens: int = _LONG_TOKENS,
    benign_tokens: int | None = None,
) -> Iterator[LabelledResponse]:
    """Rows of all kinds, `count` of each.

    Args:
        split: Whose topics and wordings.
        count: Rows of each kind: harmful on request, harmful under a harmless request, benign texts, refusals; and with
            `answering` benign answers and refusals of the model's own.
        seed: Of topics, wordings and texts.
        answering: Lets the model write. Rows it gives None for are left out.
        tokens: Least length of the texts, in the reference tokenizer's tokens.
        benign_tokens: Likewise, of the benign ones; None for the same.
    """
    rng = Random(f"{seed} {split}")

    def row(asked: Topic, messages: list[Mapping[str, str]], response: str, **of: Any) -> LabelledResponse:
        return _row(split, asked, messages, response, **of)

    def drawn(kind: Kind) -> Topic:
        return _drawn(rng, kind, split)

    for number in range(count):
        topic = drawn("forbidden")
        text = long_document(topic, rng, tokens)
        harmful: dict[str, Any] = {
            "harmful": True,
            "generator": GRAMMAR,
            "unsafe_from_chars": _first_mention(text, topic),
        }
        yield row(topic, chat(question(topic, rng)), text, **harmful)
        harmless = drawn("benign")
        yield row(harmless, chat(question(harmless, rng)), text, **harmful)
        topic = drawn("benign")
        text = long_document(topic, rng, benign_tokens or tokens)
        yield row(topic, chat(question(topic, rng)), text, harmful=False, generator=GRAMMAR)
        topic = drawn("forbidden")
        yield row(topic, chat(question(topic, rng)), refusal(topic, rng), harmful=False, generator=GRAMMAR)
        if answering is None:
            continue
        for kind in ("benign", "forbidden"):
            topic = drawn(kind)
            messages = chat(question(topic, rng, long=kind == "benign"))
            said = answering([dict(message) for message in messages], seed + number)
            if said:
                yield row(topic, messages, said, harmful=False, generator="reference")


def own_rows(split: Split, *, count: int, answering: Answering, seed: int = 0) -> Iterator[LabelledResponse]:
    """Benign rows of the model's own, where `reference_rows` has none: two kinds, at most `count` of each.

    Short answers to harmless requests, and refusals to go on with a forbidden text that stands in the conversation.

    Args:
        split: Whose topics and wordings.
        count: Rows of each kind.
        answering: Lets the model write. Rows it gives None for are left out.
        seed: Of topics, wordings and answers.
    """
    rng = Random(f"own {seed} {split}")
    for number in range(count):
        asked = _drawn(rng, "benign", split)
        begun = _drawn(rng, "forbidden", split)
        text = long_document(begun, rng, _BEGUN_TOKENS)
        turns: tuple[tuple[Topic, list[Mapping[str, str]]], ...] = (
            (asked, chat(question(asked, rng))),
            (begun, chat(question(begun, rng), text, go_on(rng))),
        )
        for topic, messages in turns:
            said = answering([dict(message) for message in messages], seed + number)
            if said:
                yield _row(split, topic, messages, said, harmful=False, generator="reference")


def _row(split: Split, asked: Topic, messages: list[Mapping[str, str]], response: str, **of: Any) -> LabelledResponse:
    return LabelledResponse(
        messages=tuple(messages),
        response=response,
        prompt_id=f"{split} {asked.name}",
        source=f"reference {split}",
        split=split,
        **of,
    )


def _drawn(rng: Random, kind: Kind, split: Split) -> Topic:
    return rng.choice(topics(kind, _TOPICS[split]))


def _first_mention(text: str, topic: Topic) -> int:
    """Characters before a text names its topic or one of its materials."""
    lowered = text.lower()
    places = [lowered.find(name.lower()) for name in (topic.name, *topic.materials)]
    return min((place for place in places if place >= 0), default=0)
