"""Detokenisation: text that is given out never changes, is never half a character, and never part of a stop string."""

from __future__ import annotations

import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from ada_guard.local.text import TextAssembler

TOKENIZER = tiny_models.tokenizer()


def assembled(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assembler = TextAssembler(TOKENIZER, stop_strings=stop)
    pieces = [assembler.push(i) for i in ids]
    return pieces, "".join(pieces) + assembler.finish()


@settings(deadline=None)
@given(st.text(max_size=40))
def test_pieces_add_up_to_the_whole_text(text: str) -> None:
    assert assembled(text)[1] == TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True)


@settings(deadline=None)
@given(st.text(alphabet="aé漢🙂", max_size=20))
def test_no_half_character_is_given_out(text: str) -> None:
    pieces, _ = assembled(text)
    assert "\ufffd" not in "".join(pieces)


@settings(deadline=None)
@given(
    st.text(alphabet="ab#", max_size=30),
    st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_are_trimmed_and_their_beginnings_held_back(text: str, stops: list[str]) -> None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(found)] if found else text
    assert assembled(text, tuple(stops))[1] == expected


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    first_byte = TOKENIZER.encode("é", add_special_tokens=False)[0]
    assembler = TextAssembler(TOKENIZER)
    assert assembler.push(first_byte) == ""
    assert assembler.finish() == "\ufffd"


def test_the_space_after_a_prefill_is_kept() -> None:
    context = TOKENIZER.encode("First,", add_special_tokens=False)
    assembler = TextAssembler(TOKENIZER, context_ids=context)
    assert "".join(assembler.push(i) for i in TOKENIZER.encode(" mix", add_special_tokens=False)) == " mix"
