"""Chunks of the OpenAI API and its dialects, read into deltas; what cannot be read is an error without content."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ada_guard.delta import Delta, Usage
from ada_guard.errors import GenerationError
from ada_guard.sources.openai_chunks import API, Chunks
from ada_guard.sources.sse import ServerEvent

SECRET = "UNSAFE"


def chat(delta: Any = None, **choice: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]}


def read(*chunks: Any, api: API = "chat", choices: int = 1) -> list[Delta]:
    reader = Chunks(api, choices=choices)
    return [delta for chunk in chunks for delta in reader.read(ServerEvent(data=json.dumps(chunk)))]


def fragments(*chunks: Any, api: API = "chat") -> list[tuple[str, str]]:
    return [(f.channel, f.text) for delta in read(*chunks, api=api) for f in delta.fragments]


# -- what is read ----------------------------------------------------------------------------------------------------


def test_text_of_both_apis() -> None:
    assert fragments(chat({"content": "Hello"}), chat({"content": " you"})) == [("text", "Hello"), ("text", " you")]
    assert fragments({"choices": [{"text": "Hello"}]}, api="completions") == [("text", "Hello")]


def test_a_delta_that_adds_nothing_is_left_out() -> None:
    nothing = ({"role": "assistant"}, {"role": "assistant", "content": ""}, {"content": None}, {}, None)
    assert read(*map(chat, nothing)) == []


def test_reasoning_under_either_name_or_both() -> None:
    assert fragments(
        chat({"reasoning_content": "a"}), chat({"reasoning": "b"}), chat({"reasoning": "c", "reasoning_content": "c"})
    ) == [("reasoning", "a"), ("reasoning", "b"), ("reasoning", "c")]


def test_one_delta_with_every_channel_is_read_in_the_order_of_reading() -> None:
    delta = {
        "tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": "{}"}}],
        "refusal": "no",
        "content": "text",
        "reasoning": "why",
    }
    assert fragments(chat(delta)) == [("reasoning", "why"), ("text", "text"), ("refusal", "no"), ("tool_call", "{}")]


def test_content_in_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
        {"type": "refusal", "refusal": "no"},
        {"type": "image_url", "image_url": {"url": SECRET}},
    ]
    assert fragments(chat({"content": parts})) == [("reasoning", "hm"), ("text", "a"), ("refusal", "no")]


def test_finish_reason_comes_once() -> None:
    deltas = read(chat({"content": "a"}), chat({}, finish_reason="length"), chat({}, finish_reason="length"))
    assert [delta.finish_reason for delta in deltas] == [None, "length"]


def test_choices_are_kept_apart() -> None:
    reader = Chunks("chat", choices=2)
    both = {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}
    assert [d.choice for d in reader.read(ServerEvent(data=json.dumps(both)))] == [1, 0]
    reader.read(ServerEvent(data=json.dumps(chat({}, finish_reason="stop"))))
    assert not reader.ended
    reader.read(ServerEvent(data=json.dumps(chat({}, index=1, finish_reason="length"))))
    assert reader.ended
    assert reader.finish_reasons == {0: "stop", 1: "length"}


def test_token_ids_also_without_text() -> None:
    """vLLM sends the ids of a token whose text is not complete yet, or which a parser keeps."""
    deltas = read(chat({"content": "a"}, token_ids=[1, 2]), chat({}, token_ids=[3]))
    assert [delta.token_ids for delta in deltas] == [(1, 2), (3,)]


@pytest.mark.parametrize("where", ["message", "choice"])
def test_prompt_token_ids(where: str) -> None:
    reader = Chunks("completions")
    choice: dict[str, Any] = {"text": "a"}
    chunk: dict[str, Any] = {"choices": [choice]}
    (chunk if where == "message" else choice)["prompt_token_ids"] = [5, 6]
    reader.read(ServerEvent(data=json.dumps(chunk)))
    assert reader.prompt_token_ids == (5, 6)


def test_usage_alone_or_with_a_choice() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1, "x": SECRET}}
    final = read({"choices": [], "usage": usage})
    assert final == [
        Delta(
            usage=Usage(prompt_tokens=3, completion_tokens=2, details={"prompt_tokens_details": {"cached_tokens": 1}})
        )
    ]
    running = read({**chat({"content": "a"}), "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    assert running[0].usage == Usage(prompt_tokens=3, completion_tokens=1)
    assert read({**chat({"content": "a"}), "usage": None})[0].usage is None


def test_half_a_count() -> None:
    reader = Chunks("chat")
    assert reader.read(ServerEvent(data='{"choices": [], "usage": {"prompt_tokens": 3}}')) == []
    reader.read(ServerEvent(data='{"choices": [], "usage": {"completion_tokens": 3}}'))
    assert reader.usage == Usage(prompt_tokens=None, completion_tokens=3)


def test_running_usage_of_several_choices_is_added_up_and_marked() -> None:
    reader = Chunks("chat", choices=2)
    for index, count in ((0, 1), (1, 1), (0, 2)):
        chunk = {**chat({"content": "a"}, index=index), "usage": {"prompt_tokens": 3, "completion_tokens": count}}
        reader.read(ServerEvent(data=json.dumps(chunk)))
    assert reader.usage == Usage(prompt_tokens=3, completion_tokens=3, estimated=True)


def test_done_and_whatever_follows() -> None:
    reader = Chunks("chat")
    assert reader.read(ServerEvent(data=" [DONE] ")) == []
    assert reader.done
    assert reader.read(ServerEvent(data=json.dumps(chat({"content": SECRET})))) == []
    assert reader.read(ServerEvent(data="not JSON")) == []


def test_keep_alives_and_events_of_other_kinds_are_nothing() -> None:
    reader = Chunks("chat")
    assert reader.read(ServerEvent(data="  ")) == []
    assert reader.read(ServerEvent(data='{"type": "ping"}', type="ping")) == []


def test_half_a_character_does_not_travel_on() -> None:
    """JSON can escape one half of a pair, which nothing could encode again."""
    assert fragments(chat({"content": "\ud83e\ude81 \ud83e!"})) == [("text", "🪁 \ufffd!")]


# -- what cannot be read -----------------------------------------------------------------------------------------------

UNREADABLE = {
    "no JSON": SECRET,
    "cut JSON": '{"choices": [{"delta": {"content": "UNSAFE',
    "a list": f'["{SECRET}"]',
    "a number": "12",
    "too deep": "[" * 100_000,
    "choices missing": {"content": SECRET},
    "choices no list": {"choices": {"a": SECRET}},
    "choice no object": {"choices": [SECRET]},
    "delta no object": chat(SECRET),
    "delta missing": {"choices": [{"index": 0, "message": {"content": SECRET}}]},
    "content a number": chat({"content": 1}),
    "content an object": chat({"content": {"text": SECRET}}),
    "part no object": chat({"content": [SECRET]}),
    "part text a list of text": chat({"content": [{"type": "text", "text": [SECRET]}]}),
    "reasoning a list": chat({"reasoning": [SECRET]}),
    "refusal an object": chat({"refusal": {"a": SECRET}}),
    "tool calls an object": chat({"tool_calls": {"a": SECRET}}),
    "tool call a text": chat({"tool_calls": [SECRET]}),
    "arguments a list": chat({"tool_calls": [{"function": {"arguments": [SECRET]}}]}),
    "name a number": chat({"tool_calls": [{"function": {"name": 5}}]}),
    "index negative": chat({"tool_calls": [{"index": -1, "function": {"arguments": SECRET}}]}),
    "index true": chat({"content": SECRET}, index=True),
    "choice not asked for": chat({"content": SECRET}, index=1),
    "finish reason a number": chat({}, finish_reason=1),
    "token ids of text": chat({"content": SECRET}, token_ids=[SECRET]),
    "usage a list": {"choices": [], "usage": [SECRET]},
    "usage of text": {"choices": [], "usage": {"completion_tokens": SECRET}},
}


@pytest.mark.parametrize("chunk", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_chunk_is_an_error_that_shows_nothing_of_it(chunk: Any) -> None:
    data = chunk if isinstance(chunk, str) else json.dumps(chunk)
    with pytest.raises(GenerationError, match=r"^the endpoint sent a chunk that cannot be read") as caught:
        Chunks("chat").read(ServerEvent(data=data))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_text_behind_the_end_of_its_choice_is_an_error() -> None:
    with pytest.raises(GenerationError, match="behind the end"):
        read(chat({}, finish_reason="stop"), chat({"content": SECRET}))


REPORTED = {
    "an object": ({"error": {"message": SECRET, "type": "server_error", "code": 500}}, "(server_error)"),
    "a code": ({"error": {"message": SECRET, "type": "x", "code": "engine_dead"}}, "(engine_dead)"),
    "a text": ({"error": SECRET + " was said"}, ""),
    "vLLM's older form": ({"object": "error", "message": SECRET, "type": "BadRequestError"}, "(BadRequestError)"),
    "no identifier": ({"error": {"type": f"about {SECRET}"}}, ""),
    "with choices": ({"error": {"message": SECRET}, "choices": []}, ""),
}


@pytest.mark.parametrize(("chunk", "said"), REPORTED.values(), ids=REPORTED.keys())
def test_an_error_object_is_an_error_that_names_its_kind(chunk: Any, said: str) -> None:
    with pytest.raises(GenerationError) as caught:
        read(chunk)
    expected = f"the endpoint reported an error in mid-stream{' ' if said else ''}{said}: its own log has the reason"
    assert str(caught.value) == expected


def test_an_event_named_error_is_an_error_whatever_it_holds() -> None:
    with pytest.raises(GenerationError, match="reported an error"):
        Chunks("chat").read(ServerEvent(data='{"message": "UNSAFE"}', type="error"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "index", "delta", "content", "tool_calls", "function", "usage", "error", "id"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["chat", "completions"]))
def test_any_json_is_read_or_is_an_error_of_ours(value: Any, api: API) -> None:
    with suppress(GenerationError):
        Chunks(api).read(ServerEvent(data=json.dumps(value)))
