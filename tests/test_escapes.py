r"""``\uXXXX`` in a tool call's arguments hides nothing: it is judged as what will run, and released as it came."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import trained_tokenizer

from ada_guard import Check, Event, Guard, Halt, Policy, Release, Schedule
from ada_guard.delta import Fragment, ToolCall
from ada_guard.reference.data import chat, long_document, question, topics
from ada_guard.session import Piece
from ada_guard.sidecar.answer import AnswerTokens
from ada_guard.sidecar.escapes import Unescaping, unescaped
from ada_guard.spec import ModelSpec
from ada_guard.testing import UNSAFE, ScriptedSidecar

USER = [{"role": "user", "content": "Look it up."}]
CALL = ToolCall(index=0, id="call-1", name="find")
ESCAPED = st.characters().map(lambda c: "".join(f"\\u{unit:04x}" for unit in utf16(c)))
TEXTS = st.lists(
    ESCAPED | st.text(max_size=3) | st.sampled_from(["\\", "\\\\", "\\u", "\\u00", '\\"', "u0041", "\\n", "{", "}"]),
    max_size=12,
).map("".join)


def utf16(text: str) -> list[int]:
    data = text.encode("utf-16-le", "surrogatepass")
    return [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]


def escaped(text: str) -> str:
    """Arguments with every letter of a value escaped."""
    return '{"text": "' + "".join(f"\\u{unit:04X}" for unit in utf16(text)) + '"}'


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *sorted(min(cut, len(text)) for cut in cuts), len(text)])]


@given(text=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=12))
def test_what_is_decoded_does_not_depend_on_how_the_text_was_split(text: str, cuts: list[int]) -> None:
    def read(parts: list[str]) -> str:
        reading = Unescaping()
        return "".join(map(reading.push, parts)) + reading.flush()

    assert read(pieces_of(text, cuts)) == read([text])


@given(value=st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_arguments_read_as_the_same_ones_that_are_not(value: str) -> None:
    plain = json.dumps({"q": value}, ensure_ascii=False)
    assert unescaped(json.dumps({"q": value})) == unescaped(plain)  # control characters always come escaped


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("\\u0041\\u00e9", "Aé"),
        ("\\\\u0041", "\\\\u0041"),
        ("\\\\\\u0041", "\\\\A"),
        ("\\ud83d\\ude00", "😀"),
        ("\\n\\t\\/\\u00zz \\u004", "\\n\\t\\/\\u00zz \\u004"),
        ("\\u00\\u0041", "\\u00A"),
        ("no escapes", "no escapes"),
    ],
)
def test_what_is_decoded(text: str, read: str) -> None:
    assert unescaped(text) == read


@pytest.mark.parametrize("kind", ["gpt-2", "llama-2"])
@settings(max_examples=25, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=12))
def test_tokens_are_those_of_the_decoded_text_and_what_is_released_is_as_it_came(
    kind: str, text: str, cuts: list[int]
) -> None:
    text = "[" + text  # never a whole object, behind which a call may not go on

    def tokens(parts: list[str]) -> tuple[list[int | None], str]:
        tokenizer = trained_tokenizer(kind)
        answer = AnswerTokens(tokenizer, ModelSpec.derive(tokenizer))
        pieces = [
            piece for part in parts for piece in answer.push([Fragment(text=part, channel="tool_call", call=CALL)])
        ]
        pieces += answer.flush()
        released = "".join(other.text for piece in pieces for other in piece.others)
        return [piece.token_id for piece in pieces], released

    ids, released = tokens(pieces_of(text, cuts))
    assert released == text
    assert ids == tokens([text])[0] == tokens([unescaped(text)])[0]


@pytest.mark.parametrize("behind", ["", " Done."])
def test_where_ids_spell_escapes_out_the_decoded_arguments_are_tokens_before_the_call_is_released(behind: str) -> None:
    tokenizer: Any = trained_tokenizer("gpt-2")

    def pieces_for(arguments: str) -> list[Piece]:
        answer = AnswerTokens(tokenizer, ModelSpec.derive(tokenizer))
        pieces = []
        for part, call in [*((arguments[at : at + 5], CALL) for at in range(0, len(arguments), 5)), (behind, None)]:
            fragment = Fragment(text=part, channel="tool_call" if call else "text", call=call)
            pieces += answer.push([fragment] if part else [], tokenizer.encode(part))
        return [*pieces, *answer.flush()]

    shown = tokenizer.decode([piece.token_id for piece in pieces_for(escaped("so unsafe")) if piece.is_token])
    assert shown.endswith('\n{"text": "so unsafe"}')
    for arguments in (escaped("so unsafe"), '{"text": "so safe"}'):
        pieces = pieces_for(arguments)
        [at] = [n for n, piece in enumerate(pieces) if any(other.call for other in piece.others)]
        assert at == len(pieces) - 1
        assert [other.text for other in pieces[at].others if other.call] == [arguments]
    plain = [piece.token_id for piece in pieces_for('{"text": "so safe"}') if piece.is_token]
    assert tokenizer.decode(plain) == '{"text": "so safe"}' + behind


def test_where_ids_end_within_a_call_what_they_have_spelled_out_is_decoded_too() -> None:
    tokenizer: Any = trained_tokenizer("gpt-2")
    answer = AnswerTokens(tokenizer, ModelSpec.derive(tokenizer))
    arguments = escaped("so unsafe")
    pieces = answer.push([Fragment(text=arguments[:-12], channel="tool_call", call=CALL)], [5])
    pieces += answer.push([Fragment(text=arguments[-12:], channel="tool_call", call=CALL)])
    pieces += answer.flush()
    shown = tokenizer.decode([piece.token_id for piece in pieces if piece.is_token])
    assert "so unsafe" in shown
    assert [other.text for piece in pieces for other in piece.others] == [arguments]


def said(guard: Guard, arguments: str, messages: Any = USER) -> list[Event]:
    """What a guard makes of a call in small pieces."""
    session = guard.session(messages)
    events: list[Event] = []
    for at in range(0, len(arguments), 5):
        if not session.ended:
            events += session.push(Fragment(text=arguments[at : at + 5], channel="tool_call", call=CALL))
    return events + session.close()


def released(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Release))


def was_cut(events: list[Event]) -> bool:
    return any(isinstance(event, Halt) for event in events)


def test_an_escaped_word_is_found_and_a_harmless_one_is_released_as_it_came() -> None:
    guard = Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=Schedule.every(1), on_flag="halt"))
    events = said(guard, escaped(f"so {UNSAFE}"))
    assert (released(events), was_cut(events)) == ("", True)
    harmless = escaped("so safe 😀")
    events = said(guard, harmless)
    assert (released(events), was_cut(events)) == (harmless, False)


def test_the_reference_model_judges_an_escaped_document_as_it_is_read() -> None:
    guard = Guard.for_sidecar("reference", policy=Policy(schedule=Schedule.every(16), release="audit"))
    rng = Random(3)
    topic = rng.choice(topics("forbidden", "test"))
    messages, document = chat(question(topic, rng, long=False)), long_document(topic, rng, 60)
    events = said(guard, escaped(document), messages)
    plain = said(guard, f'{{"text": "{document}"}}', messages)
    guard.close()

    def checks(found: list[Event]) -> list[tuple[int, str, float | None]]:
        return [
            (event.depth, event.decision, event.harm_probability and round(event.harm_probability, 3))
            for event in found
            if isinstance(event, Check)
        ]

    assert len(checks(events)) > 2
    assert "flag" in {decision for _, decision, _ in checks(events)}
    assert checks(events) == checks(plain)
