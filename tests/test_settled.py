"""Settled tokens: the same however a text was split, none ever changed, and no text lost. Promise 3."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CORPUS, TRAINED, trained_tokenizer

from ada_guard.control import TextEncoder
from ada_guard.session import Piece
from ada_guard.sidecar.boundaries import FORCED_AFTER_CHARACTERS, Boundaries
from ada_guard.sidecar.settled import SettledTokens

FAMILY = "👨\u200d👩\u200d👧"
SNIPPETS = [
    "It's", " I'll", " don't", " naïve", " café", "e\u0301", " नमस्ते", "你好，世界。", "今天天气很好", "こんにちは",
    " 🙂", FAMILY, "🏳️\u200d🌈", "\n\n", "  ", "\t", "    return x[0]", "def f(a, b):\n", "->", "12345678", " 3.14",
    "======", "a" * 70, "好" * 70, " " * 70, "\u200b",
    "<|im_end|>", "<|im_", "end|>", "<|im_start|>assistant\n", "\u0301", "Ａ", "ﬁ", "\r\n", "x", ".", "\x00", "\u202e",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=6), max_size=12).map("".join)
KINDS = pytest.mark.parametrize("kind", TRAINED)
SETTINGS = settings(max_examples=25, deadline=None)


def whole(kind: str, text: str) -> list[Piece]:
    settled = SettledTokens(trained_tokenizer(kind))
    return settled.push(text) + settled.flush()


def halves(text: str) -> list[str]:
    """The text as JSON escapes would carry it: characters outside the basic plane as two."""
    data = text.encode("utf-16-le", "surrogatepass")
    return [data[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(data), 2)]


def split(text: str, data: st.DataObject) -> list[str]:
    units = halves(text)
    cuts = data.draw(st.lists(st.integers(0, len(units)), max_size=12))
    return ["".join(units[start:end]) for start, end in pairwise([0, *sorted(cuts), len(units)])]


@KINDS
@SETTINGS
@given(text=TEXTS, data=st.data())
def test_pieces_are_the_same_however_the_text_is_split(kind: str, text: str, data: st.DataObject) -> None:
    expected = whole(kind, text)
    settled = SettledTokens(trained_tokenizer(kind))
    pieces: list[Piece] = []
    for part in split(text, data):
        pieces += settled.push(part)
        # What is settled is the beginning of the final tokens, whatever comes.
        assert pieces == expected[: len(pieces)]
    assert pieces + settled.flush() == expected


@KINDS
@SETTINGS
@given(text=TEXTS)
def test_the_texts_of_the_pieces_are_the_text_and_stand_with_their_last_token(kind: str, text: str) -> None:
    pieces = whole(kind, text)
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.is_token == (piece.token_id is not None) for piece in pieces)
    assert all(piece.is_token for piece in pieces[:-1])


@KINDS
@SETTINGS
@given(text=TEXTS)
def test_control_strings_in_the_text_are_never_control_tokens(kind: str, text: str) -> None:
    tokenizer = trained_tokenizer(kind)
    ids = {piece.token_id for piece in whole(kind, text)}
    assert ids.isdisjoint(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|pad|>"]))


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind != "bare"])
def test_settled_ids_are_those_of_the_whole_text(kind: str) -> None:
    text = "".join(CORPUS[:2])
    ids = [piece.token_id for piece in whole(kind, text)]
    assert ids == trained_tokenizer(kind).encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", ["gpt-2", "llama-3", "nfc", "metaspace", "prefixed", "llama-2", "gemma"])
@SETTINGS
@given(text=TEXTS)
def test_settled_ids_read_as_the_text(kind: str, text: str) -> None:
    tokenizer = trained_tokenizer(kind)
    ids = [piece.token_id for piece in whole(kind, "x" + text)]
    plain = text.replace("▁", " ")
    if kind == "nfc":
        plain = str(tokenizer.backend_tokenizer.normalizer.normalize_str("x" + plain))[1:]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == ("x" + plain).strip()


@KINDS
def test_text_behind_the_templates_is_encoded_as_its_continuation(kind: str) -> None:
    tokenizer = trained_tokenizer(kind)
    before = "<|im_start|>assistant\n"
    settled = SettledTokens(tokenizer, before=before)
    ids = [piece.token_id for piece in settled.push("The menu was read.") + settled.flush()]
    assert tokenizer.encode(before, add_special_tokens=False) + ids == tokenizer.encode(
        before + "The menu was read.", add_special_tokens=False
    )


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        pytest.param("Hello", "", id="a word may go on"),
        pytest.param("Hello ", "", id="spaces belong to what follows"),
        pytest.param("Hello w", "Hello", id="a new word has begun"),
        pytest.param("it'", "", id="an apostrophe may join"),
        pytest.param("it's", "", id="one that has joined may go on"),
        pytest.param("foo(b,", "foo", id="two boundaries later"),
        pytest.param("a 12345678", "a ", id="a number may be grouped anew"),
        pytest.param("a 12345 b", "a 12345", id="a number that has ended"),
        pytest.param("x" * FORCED_AFTER_CHARACTERS, "", id="a long run"),
        pytest.param("x" * (FORCED_AFTER_CHARACTERS + 1), "x" * FORCED_AFTER_CHARACTERS, id="a longer one"),
        pytest.param("x" * 60 + "👨\u200d👩\u200d👧", "x" * 60, id="a family stays together"),
        pytest.param("e" + "\u0301" * 64, "e" + "\u0301" * 63, id="a pile of marks is cut somewhere"),
    ],
)
def test_what_is_settled_when(text: str, settled: str) -> None:
    tokens = SettledTokens(trained_tokenizer("llama-3"))
    assert "".join(piece.text for piece in tokens.push(text)) == settled


def test_a_lone_half_of_a_pair_counts_as_the_replacement_character() -> None:
    pieces = whole("gpt-2", "a\ud83d b\ude00")
    assert "".join(piece.text for piece in pieces) == "a\ufffd b\ufffd"


def test_dropped_text_goes_with_the_next_token_and_at_the_end_without_one() -> None:
    settled = SettledTokens(trained_tokenizer("dropping"))
    pieces = settled.push("\u0301" * 70 + " word two ") + settled.flush()
    assert [(piece.text, piece.is_token) for piece in pieces if piece.text] == [
        ("\u0301" * 70 + " word ", True),
        ("two ", True),
    ]
    pieces = settled.push("\u0301") + settled.flush()
    assert [(piece.text, piece.is_token) for piece in pieces] == [("\u0301", False)]


def test_letters_that_the_tokenizer_cuts_are_not_held_back_to_the_end() -> None:
    settled = SettledTokens(trained_tokenizer("dropping"))
    assert "".join(piece.text for piece in settled.push("好" * 40)) == "好" * 28


def test_a_tokenizer_without_a_backend_is_cut_by_rule() -> None:
    boundaries = Boundaries(object())
    assert boundaries.last("one two(") == len("one")
    assert boundaries.last("नमस्ते द") == len("नमस्ते")


@KINDS
def test_a_long_text_takes_work_in_proportion(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in characters that are looked at for boundaries and encoded, since clocks differ."""
    looked_at = 0
    last, encode = Boundaries.last, TextEncoder.encode

    def counted(self: Boundaries, text: str) -> int:
        nonlocal looked_at
        looked_at += len(text)
        return last(self, text)

    def encoded(self: TextEncoder, text: str, *rest: Any, **more: Any) -> list[int]:
        nonlocal looked_at
        looked_at += len(text)
        return encode(self, text, *rest, **more)

    monkeypatch.setattr(Boundaries, "last", counted)
    monkeypatch.setattr(TextEncoder, "encode", encoded)

    def work(text: str, step: int) -> int:
        nonlocal looked_at
        looked_at = 0
        settled = SettledTokens(trained_tokenizer(kind))
        for at in range(0, len(text), step):
            settled.push(text[at : at + step])
        settled.flush()
        return looked_at

    text = "".join(CORPUS) + "x" * 500 + "好" * 500
    for step in (4, 10**9):
        once = work(text, step)
        assert 0 < once < 200 * len(text)
        assert work(text * 4, step) < 5 * once
