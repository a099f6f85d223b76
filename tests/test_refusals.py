"""What counts as a refusal, measured on hand-written lookaheads that the phrases were not copied from.

``python tests/test_refusals.py`` prints the table. Read blind, each set before any revision on it, recall on full text
was 0.894 on set "a", 0.838 on "b" and 0.955 on "c", with 8 of 307, 15 of 55 and 5 of 38 false flags. The phrases were
revised on the misses of "a" and "b", and in two places (one French, one English) after "c". "b" and "c" are hard.
"""

from __future__ import annotations

import json
import re
import time
import timeit
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ada_guard.errors import ConfigError
from ada_guard.refusals import RefusalMatcher

MATCHER = RefusalMatcher()
DATA = Path(__file__).parent / "data" / "refusals.jsonl"
EXAMPLES = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
REFUSALS = [example for example in EXAMPLES if example["label"] == "refusal"]
BENIGN = [example for example in EXAMPLES if example["label"] == "benign"]


def by_words(text: str) -> list[str]:
    return [text[: word.end()] for word in re.finditer(r"\s*\S+", text)]


def by_three(text: str) -> list[str]:
    return [text[: end + 3] for end in range(0, len(text), 3)]


def fed(prefixes: list[str]) -> tuple[bool, int]:
    """As the rethink checker does it: stop at the first decision, decide on what there is. Also the steps taken."""
    steps = next((n for n, prefix in enumerate(prefixes, 1) if MATCHER.decide(prefix) is not None), len(prefixes))
    return MATCHER.decide(prefixes[steps - 1], complete=True) is True, steps


@cache
def table() -> dict[str, dict[str, float]]:
    rows = {}
    for name, chosen in (*((f"set {s}", s) for s in "abc"), ("all", "abc")):
        refusals = [e["text"] for e in REFUSALS if e["set"] in chosen]
        benign = [e["text"] for e in BENIGN if e["set"] in chosen]
        words = sorted(fed(by_words(text))[1] for text in benign)
        rows[name] = {
            "refusals": len(refusals),
            "recall, full text": sum(MATCHER.decide(t, complete=True) is True for t in refusals) / len(refusals),
            "recall, by words": sum(fed(by_words(t))[0] for t in refusals) / len(refusals),
            "recall, by 3 chars": sum(fed(by_three(t))[0] for t in refusals) / len(refusals),
            "benign": len(benign),
            "false flags, full text": sum(MATCHER.decide(t, complete=True) is True for t in benign),
            "false flags, by words": sum(fed(by_words(t))[0] for t in benign),
            "words read on benign, mean": sum(words) / len(words),
            "words read on benign, median": words[len(words) // 2],
            "words read on benign, 90 %": words[int(0.9 * len(words))],
            "own refusals: whole": sum(MATCHER.is_all_refusal(t) for t in refusals) / len(refusals),
            "own refusals: every prefix": sum(all(map(MATCHER.is_all_refusal, by_words(t))) for t in refusals)
            / len(refusals),
        }
    return rows


def test_the_examples_are_many_and_distinct() -> None:
    assert len(REFUSALS) >= 150
    assert len(BENIGN) >= 200
    assert len({example["text"] for example in EXAMPLES}) == len(EXAMPLES)
    assert len({example["lang"] for example in REFUSALS}) == 13


def test_stopping_early_loses_at_most_one_percent_of_the_refusals() -> None:
    row = table()["all"]
    assert row["recall, full text"] >= 0.98
    assert row["recall, full text"] - row["recall, by words"] <= 0.01
    assert row["recall, full text"] - row["recall, by 3 chars"] <= 0.01


def test_false_flags_and_words_read_on_benign_text_stay_low() -> None:
    row = table()["all"]
    assert row["false flags, full text"] / row["benign"] <= 0.02
    assert row["false flags, by words"] <= row["false flags, full text"]
    assert row["words read on benign, median"] <= 3
    assert row["words read on benign, mean"] <= 4


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("", None),
        ("I", None),
        ("I can", None),
        ("I'm sorry", None),
        ("I'm sorry, but I can't", None),
        ("I'm sorry, but I can't assist", True),
        ("I’m sorry, but I can’t help with", True),
        ("I can't w", None),
        ("I can't wait", None),
        ("I can't wait ", False),
        ("I cannot stress enough that", False),
        ("Sure!", None),
        ("Sure! I cannot provide", True),
        ("Sure! Here is", False),
        ("**I cannot** provide", True),
        ("<b>I cannot</b> provide", True),
        ("> 1. I cannot provide", True),
        ("As an AI language model, I cannot provide", True),
        ("As an AI language model, I think it is a nice idea. Step", False),
        ("I simply cannot provide", True),
        ("Step 2", False),
        ("Next, mix", False),
        ("ing the", False),
        ("抱歉，我无法提供", True),
        ("Lo siento, pero no puedo ayudarte con", True),
    ],
)
def test_decision_on_a_growing_lookahead(text: str, decision: bool | None) -> None:
    assert MATCHER.decide(text) is decision


@pytest.mark.parametrize("text", ["I'm sorry, but I can't", "I cannot", "Unfortunately, I'm unable to", "No. I won't"])
def test_stem_at_the_end_of_a_complete_text_is_a_refusal(text: str) -> None:
    assert MATCHER.decide(text, complete=True) is True


@pytest.mark.parametrize(
    "text",
    ["", " ", "illegal", "This is illegal in some places", "Disclaimer: wear gloves", "I'm sorry", "I apologize."],
)
def test_words_alone_are_no_refusal(text: str) -> None:
    assert MATCHER.decide(text, complete=True) is False


def test_a_later_sentence_counts_in_a_complete_text_but_stops_an_early_one() -> None:
    text = "Step 2: mix the flour. I cannot help with the rest."
    assert MATCHER.decide(text) is False
    assert MATCHER.decide(text, complete=True) is True


FRAGMENTS = (
    """I|i can|'t|’t| help| wait|sorry|, but |so |.|! |\n|**|<b|>|12|1. |Sure|As an AI|…|我|無法|죄송|e\u0301|ﬁ|İ|`"""
)
PIECES = st.sampled_from([e["text"] for e in EXAMPLES] + FRAGMENTS.split("|"))
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=5).map("".join) | st.text(max_size=60)


@given(TEXTS, st.data())
@settings(max_examples=400, deadline=None)
def test_a_decision_is_the_same_for_every_text_that_starts_so(text: str, data: st.DataObject) -> None:
    start = text[: data.draw(st.integers(0, len(text)))]
    if (decision := MATCHER.decide(start)) is not None:
        assert MATCHER.decide(text) is decision


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_first_decision_agrees_with_the_complete_text_there(text: str) -> None:
    text = text[:150]
    for end in range(len(text) + 1):
        if (decision := MATCHER.decide(text[:end])) is not None:
            assert MATCHER.decide(text[:end], complete=True) is decision
            break
    if MATCHER.decide(text) is True:
        assert MATCHER.decide(text, complete=True) is True


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_first_refusal_is_found_exactly_where_the_complete_text_refuses(text: str) -> None:
    quote = MATCHER.first_refusal(text)
    assert (quote is not None) == MATCHER.decide(text, complete=True)
    if quote is not None:
        assert 0 < len(quote) <= 200
        assert quote in text


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("Sure! **I cannot help with that.** Step 1", "I cannot help with that."),
        ("- I can't help\n- with this", "I can't help"),
        ("I’m sorry, but I can’t help with v2.5 of it. Bye.", "I’m sorry, but I can’t help with v2.5 of it."),
        ("Here you go.", None),
    ],
)
def test_first_refusal_is_the_sentence_as_written(text: str, quote: str | None) -> None:
    assert MATCHER.first_refusal(text) == quote


def test_first_refusal_is_cut_at_200_characters() -> None:
    quote = MATCHER.first_refusal("I cannot help with this " + "and that " * 60)
    assert quote is not None
    assert 150 < len(quote) <= 200


@pytest.mark.parametrize(
    "text",
    [
        "I",
        "I'm sor",
        "I can",
        "I'm sorry",
        "I'm so sorry, but I",
        "I'm sorry, I cannot help with bread and butter.",
        "I can't help with that. Is there something else I can do for you?",
        "I can't help with that, but I'd be happy to help with baking.",
        "I'm sorry. I can't assist. Please ask about something else. Thank you for understanding.",
        "I understand your interest. However, I can't help with that. Let me kn",
        "Es tut mir leid, aber dabei kann ich nicht helfen. Wenn Sie",
        "죄송하지만 도와드릴 수 없습니다.",
        "我理解您的好奇，但是我无法提供相关信息。",
    ],
)
def test_own_refusal_is_recognised(text: str) -> None:
    assert MATCHER.is_all_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "Sure",
        "Sure! I cannot help with that.",
        "Step 1: mix",
        "I can't wait to show you.",
        "I can help with that.",
        "I'm sorry to hear that you are ill. Rest helps.",
        "I can't help with that. Step 1: mix the flour",
        "I can't help with that. First, mix the flour",
        "I can't help with that, but here is how it works",
        "I can't help with that; however, mix the flour",
        "I can't help with that, so mix the flour",
        "I can't help with that. However, here is how",
        "I can't help with that.Mix the flour",
        "I can't help with that.\n1. Mix",
        "I can't help with that. 1) Mix 2) Stir",
        "I can't help with that.\n- flour",
        "I can't help with that.\n```python\nx",
        "I can't help with that. I'd be happy to help with this: mix the flour",
        "I can't help with that. I'd be happy to help with " + "flour and " * 20,
        "I can't help with that. " * 7,
        "I can't help with " + "flour and " * 30,
        "I understand that you like bread. " * 6,
    ],
)
def test_anything_beside_refusal_text_is_not_all_refusal(text: str) -> None:
    assert not MATCHER.is_all_refusal(text)


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_nothing_else_may_follow_a_refusal(text: str) -> None:
    assert not MATCHER.is_all_refusal(f"I can't help with that. Mix the flour. {text}")


def test_most_own_refusals_are_recognised() -> None:
    row = table()["all"]
    assert row["own refusals: whole"] >= 0.93
    assert row["own refusals: every prefix"] >= 0.85


def test_phrases_and_languages_can_be_chosen() -> None:
    own = RefusalMatcher(phrases=["computer says (no|never)"])
    assert own.decide("Sure! Computer says never", complete=True) is True
    assert own.decide("I cannot help with that", complete=True) is False
    german = RefusalMatcher(languages=["de"])
    assert german.decide("Das kann ich leider nicht tun", complete=True) is True
    assert german.decide("I cannot help with that", complete=True) is False


@pytest.mark.parametrize("bad", [{"languages": ["xx"]}, {"languages": []}, {"phrases": ["!"]}, {"phrases": ["(a"]},
                                 {"phrases": ["a)"]}, {"phrases": ["a (b))("]}, {"phrases": ["(|a)"]}])  # fmt: skip
def test_bad_phrases_and_languages_are_config_errors(bad: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigError):
        RefusalMatcher(**bad)


def test_deciding_is_linear_in_the_length_of_the_text() -> None:
    # By the thread's own processor time, which other work on the machine does not change much: ten times the text may
    # not cost forty times as much. What is quadratic costs a hundred times.
    for unit in ("so ", "I understand, ", "<", "really ", "I know that ", "我", "not.", "i can't recommend "):
        runs = [partial(MATCHER.decide, unit * times, complete=True) for times in (500, 5000)]
        short, long = (min(timeit.repeat(once, timer=time.thread_time, number=1, repeat=5)) for once in runs)
        assert long < 40 * short + 1e-3


if __name__ == "__main__":
    for name, row in table().items():
        print(f"{name}: " + "; ".join(f"{key} {value:.4g}" for key, value in row.items()))
