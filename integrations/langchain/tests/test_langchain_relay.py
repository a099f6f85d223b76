"""What of a provider's chunks the guard sees, and that what it releases of them is they, no more and no less."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from pydantic import BaseModel

from ada_guard import Done, Halt, Policy, Release
from ada_guard.delta import Channel
from ada_guard.guard import Guard
from ada_guard.policy import Schedule
from ada_guard.testing import ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.fragments import MessageReader, split
from langchain_ada_guard.relay import Relay
from langchain_ada_guard.testing import ScriptedChatModel

Blocks = list[dict[str, Any]]
PROVIDER = {"model_provider": "openai"}
DONE = Done(
    finish_reason="stop",
    generated_tokens=1,
    released_tokens=1,
    unchecked_released_tokens=0,
    checks=1,
    check_ms=0.0,
    wall_ms=0.0,
    token_ids=(),
)


class Gate(Relay):
    """A relay told by channel and count what is released, instead of by a guard's events."""

    def release(self, channel: Channel, characters: int) -> list[ChatGenerationChunk]:
        return list(self.passed(Release(text="x" * characters, depth=1, channel=channel)))

    def finish(self) -> list[ChatGenerationChunk]:
        return list(self.passed(DONE))

    def drop(self) -> None:
        list(self.passed(Halt(depth=1, reason="flag", released_depth=0)))


class Answered(BaseModel):
    """What a provider may have parsed of an answer."""

    says: str


def chunk(content: str | Blocks = "", *, info: dict[str, Any] | None = None, **fields: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=content, id="m", **fields), generation_info=info)


def call(index: Any, args: str, *, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    return {"index": index, "args": args, "name": name, "id": call_id, "type": "tool_call_chunk"}


# -- answers as providers stream them -----------------------------------------------------------------------------

pieces = st.lists(st.text("ab c\nü", min_size=1, max_size=9), min_size=1, max_size=5)


def _plain(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    for at, piece in enumerate(draw(pieces)):
        logprobs = {"logprobs": [{"token": piece}]} if draw(st.booleans()) else None
        yield chunk(piece, info=logprobs, response_metadata=PROVIDER if at else {})


def _beside(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    key = draw(st.sampled_from(["reasoning_content", "refusal", "thoughts"]))
    for piece in draw(pieces):
        yield chunk(additional_kwargs={key: piece})
    for piece in draw(pieces):
        yield chunk(additional_kwargs={"audio": {"transcript": piece, "data": "AAAA"}})


def _anthropic(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    yield chunk([], usage_metadata={"input_tokens": 9, "output_tokens": 0, "total_tokens": 9})
    for piece in draw(pieces):
        yield chunk([{"type": "thinking", "thinking": piece, "index": 0}])
    yield chunk([{"type": "thinking", "signature": "c2lnbmF0dXJl", "index": 0}])
    yield chunk([{"type": "text", "text": "", "index": 1}])
    for piece in draw(pieces):
        yield chunk([{"type": "text", "text": piece, "index": 1}], response_metadata=PROVIDER)
    yield chunk([{"type": "text", "citations": [{"type": "page", "cited_text": "b b", "title": "a"}], "index": 1}])


def _responses(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    yield chunk([{"type": "reasoning", "id": "rs_1", "summary": [], "index": 0}])
    for at, piece in enumerate(draw(pieces)):
        part = {"index": at % 2, "type": "summary_text", "text": piece}
        yield chunk([{"type": "reasoning", "summary": [part], "index": 0}])
    yield chunk([{"type": "text", "text": "", "phase": "final_answer", "index": 1}])
    for piece in draw(pieces):
        yield chunk([{"type": "text", "text": piece, "index": 1}])
    yield chunk([{"type": "text", "text": "", "id": "msg_1", "index": 1}])
    yield chunk([{"type": "web_search_call", "id": "ws", "status": "completed", "action": {"query": "ab"}, "index": 2}])


def _standard(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    version = {**PROVIDER, "output_version": "v1"}
    for piece in draw(pieces):
        yield chunk([{"type": "reasoning", "reasoning": piece, "index": "lc_rs_0"}], response_metadata=version)
    for piece in draw(pieces):
        block = {"type": "text", "text": piece, "index": "lc_txt_1", "id": "msg_1", "extras": {"phase": "x"}}
        yield chunk([block if draw(st.booleans()) else {**block, "annotations": []}], response_metadata=version)


def _unnumbered(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    for piece in draw(pieces):
        yield chunk(
            draw(
                st.sampled_from([[{"type": "text", "text": piece}], [piece], [{"type": "thinking", "thinking": piece}]])
            )
        )


def _nested(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    for piece in draw(pieces):
        yield chunk([{"type": "reasoning_content", "reasoning_content": {"text": piece}, "index": 0}])
    for piece in draw(pieces):
        yield chunk([{"type": "thinking", "thinking": [{"type": "text", "text": piece}], "index": 1}])
    for piece in draw(pieces):
        yield chunk([{"type": "text", "text": piece, "index": "own"}])


def _calls(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    indexes = draw(st.sampled_from([[0, 1], [3, 7], [None, None]]))
    yield chunk(tool_call_chunks=[call(index, "", name="f", call_id=f"c{at}") for at, index in enumerate(indexes)])
    for at in draw(st.lists(st.integers(0, 1), max_size=6)):
        block = {"type": "input_json_delta", "partial_json": "{", "index": at}
        yield chunk([block] if indexes == [0, 1] else "", tool_call_chunks=[call(indexes[at], draw(st.text("{}a1")))])


def _unknown(draw: st.DrawFn) -> Iterator[ChatGenerationChunk]:
    del draw
    yield chunk([{"type": "hologram", "says": "a b", "index": 7}])


known = [_plain, _beside, _anthropic, _responses, _standard, _unnumbered, _nested]


@st.composite
def answers(draw: st.DrawFn, kinds: Sequence[Any] = (*known, _calls, _unknown)) -> list[ChatGenerationChunk]:
    made = [found for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)) for found in kind(draw)]
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    end = chunk(info={"finish_reason": "stop"}, usage_metadata=usage, response_metadata={"model_name": "m"})
    return [*made, end]


def fresh(chunks: Sequence[ChatGenerationChunk]) -> list[ChatGenerationChunk]:
    return [found.model_copy(deep=True) for found in chunks]


def seen_texts(chunks: Sequence[ChatGenerationChunk]) -> dict[str, str]:
    """What a reader finds, by channel; tool calls with names."""
    reader = MessageReader()
    found: dict[str, str] = dict.fromkeys(("text", "reasoning", "refusal", "tool_call"), "")
    for one in chunks:
        for fragment in reader.read(one.message).fragments:
            found[fragment.channel] += fragment.text
    return found


@settings(max_examples=120, deadline=None)
@given(answers(), st.data())
def test_nothing_passes_beyond_what_is_released_and_all_of_it_is_what_came(
    chunks: list[ChatGenerationChunk], data: st.DataObject
) -> None:
    gate, before, passed = Gate(), fresh(chunks), []
    released: Counter[str] = Counter()
    waiting: list[tuple[Any, int]] = []
    whole = seen_texts(chunks)
    for one in chunks:
        waiting += [(part.channel, len(part.text)) for part in gate.take(one) if part.channel != "tool_call"]
        for _ in range(data.draw(st.integers(0, 2))):
            if waiting:
                channel, characters = waiting.pop(0)
                now = data.draw(st.integers(1, characters))
                waiting[:0] = [(channel, characters - now)] if now < characters else []
                released[channel] += now
                passed += gate.release(channel, now)
        shown = seen_texts(passed)
        assert not any(getattr(one.message, "tool_call_chunks", []) for one in passed)
        assert shown["tool_call"] == ""
        assert all(whole[name].startswith(text) and len(text) <= released[name] for name, text in shown.items())
    for channel, characters in waiting:
        passed += gate.release(channel, characters)
    passed += gate.finish()
    assert reduce(add, passed) == reduce(add, before)
    assert reduce(add, passed).generation_info == reduce(add, before).generation_info


@settings(max_examples=60, deadline=None)
@given(answers(known))
def test_what_is_all_released_is_all_shown_without_waiting_for_the_end(chunks: list[ChatGenerationChunk]) -> None:
    gate, passed = Gate(), []
    for one in chunks:
        for part in gate.take(one):
            passed += gate.release(part.channel, len(part.text))
    assert seen_texts(passed) == seen_texts(chunks)


@settings(max_examples=50, deadline=None)
@given(answers(known))
def test_text_that_can_be_split_is_shown_to_the_last_released_character(chunks: list[ChatGenerationChunk]) -> None:
    for one in chunks:
        seen = MessageReader().read(one.message)
        if seen.place is None:
            continue
        [fragment] = seen.fragments
        gate = Gate()
        gate.take(one.model_copy(deep=True))
        passed = [part for _ in fragment.text for part in gate.release(fragment.channel, 1)]
        assert [list(seen_texts([part]).values()) for part in passed] == [
            [text if channel == fragment.channel else "" for channel in ("text", "reasoning", "refusal", "tool_call")]
            for text in fragment.text
        ]
        assert reduce(add, passed) == one


def test_a_cut_drops_what_is_held_back() -> None:
    gate = Gate()
    gate.take(chunk("one two"))
    assert [str(one.message.content) for one in gate.release("text", 3)] == ["one"]
    gate.drop()
    assert list(gate.finish()) == []


def test_both_halves_say_how_their_content_is_to_be_read() -> None:
    blocks = [{"type": "thinking", "thinking": "one two", "index": 0}]
    metadata = {"model_provider": "anthropic", "model_name": "claude"}
    first, second = split(AIMessageChunk(content=blocks, response_metadata=metadata), ("content", 0, "thinking"), 3)
    assert first.content_blocks[0]["type"] == "reasoning"
    assert first.response_metadata == {"model_provider": "anthropic"}
    assert second.response_metadata == metadata


def test_metadata_that_mirror_a_text_pass_with_the_last_of_it() -> None:
    for early in (
        chunk(response_metadata={"raw": {"text": "one two"}}),
        chunk(info={"logprobs": [{"token": "one"}]}),
        chunk(response_metadata={"said": "one two"}),
    ):
        gate = Gate()
        for held in (chunk(response_metadata=PROVIDER), early, chunk("one two")):
            gate.take(held)
        assert list(gate.release("text", 3)) == []
        assert [passed.text for passed in gate.release("text", 4)] == ["", "", "one two"]


def test_a_chunk_that_only_says_who_speaks_does_not_hold_the_text_behind_it() -> None:
    gate = Gate()
    gate.take(chunk(response_metadata={**PROVIDER, "model_name": "gpt-4o-2024", "created": 1}))
    gate.take(chunk("one two"))
    assert [passed.text for passed in gate.release("text", 3)] == ["", "one"]


# -- what is seen of which provider --------------------------------------------------------------------------------

SEEN: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("text of any model", {"content": "a"}, [("text", "a")]),
    ("DeepSeek, Ollama, xAI: reasoning", {"additional_kwargs": {"reasoning_content": "a"}}, [("reasoning", "a")]),
    (
        "OpenRouter: reasoning twice",
        {
            "additional_kwargs": {
                "reasoning_content": "a",
                "reasoning_details": [{"type": "reasoning.text", "text": "a"}],
            }
        },
        [("reasoning", "a")],
    ),
    (
        "Responses v0: reasoning beside the content",
        {
            "additional_kwargs": {
                "reasoning": {"id": "r", "summary": [{"type": "summary_text", "text": "a", "index": 0}]}
            }
        },
        [("reasoning", "a")],
    ),
    ("OpenAI: refusal", {"additional_kwargs": {"refusal": "a"}}, [("refusal", "a")]),
    ("Responses: refusal", {"content": [{"type": "refusal", "refusal": "a"}]}, [("refusal", "a")]),
    (
        "OpenAI: audio",
        {"additional_kwargs": {"audio": {"id": "x", "data": "AAAA", "transcript": "a", "expires_at": 1}}},
        [("text", "a")],
    ),
    ("Gemini: audio", {"additional_kwargs": {"audio": b"RIFF"}}, []),
    ("parsed again", {"content": "a", "additional_kwargs": {"parsed": {"x": "a"}}}, [("text", "a")]),
    ("Anthropic: thinking", {"content": [{"type": "thinking", "thinking": "a", "index": 0}]}, [("reasoning", "a")]),
    ("Anthropic: signature", {"content": [{"type": "thinking", "signature": "YQ==", "index": 0}]}, []),
    ("Anthropic: redacted", {"content": [{"type": "redacted_thinking", "data": "YQ==", "index": 0}]}, []),
    (
        "Anthropic: citation",
        {"content": [{"type": "text", "citations": [{"cited_text": "a", "encrypted_index": "YQ=="}], "index": 0}]},
        [("text", "\na\n")],
    ),
    (
        "Anthropic: results of a search",
        {
            "content": [
                {
                    "type": "web_search_tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "web_search_result", "title": "a", "url": "b", "encrypted_content": "YQ=="}],
                    "index": 1,
                }
            ]
        },
        [("text", "\na\nb\n")],
    ),
    (
        "Bedrock: reasoning",
        {
            "content": [
                {"type": "reasoning_content", "reasoning_content": {"text": "a", "signature": "YQ=="}, "index": 0}
            ]
        },
        [("reasoning", "a")],
    ),
    (
        "Mistral: thinking",
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}], "index": 0}]},
        [("reasoning", "a")],
    ),
    (
        "Gemini 3: a signed text",
        {"content": [{"type": "text", "text": "a", "extras": {"signature": "YQ=="}, "index": 0}]},
        [("text", "a")],
    ),
    (
        "Gemini: code it ran",
        {"content": [{"type": "executable_code", "executable_code": "a", "language": "python", "id": "x"}]},
        [("text", "\na\n")],
    ),
    (
        "Gemini: signatures of calls",
        {"content": "a", "additional_kwargs": {"__gemini_function_call_thought_signatures__": {"x": "YQ=="}}},
        [("text", "a")],
    ),
    (
        "Responses: reasoning",
        {
            "content": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a", "index": 0}], "index": 0}
            ]
        },
        [("reasoning", "a")],
    ),
    (
        "Responses: encrypted reasoning",
        {"content": [{"type": "reasoning", "summary": [], "encrypted_content": "YQ==", "index": 0}]},
        [],
    ),
    (
        "Responses: code it ran",
        {
            "content": [
                {"type": "code_interpreter_call", "code": "a", "outputs": [{"type": "logs", "logs": "b"}], "index": 1}
            ]
        },
        [("text", "\na\nb\n")],
    ),
    (
        "Responses: an image it made",
        {"content": [{"type": "image_generation_call", "result": "iVBOR", "revised_prompt": "a", "index": 1}]},
        [("text", "\na\n")],
    ),
    ("an image", {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,YQ=="}}]}, []),
    (
        "arguments with any keys",
        {"content": [{"type": "mcp_tool_use", "id": "x", "input": {"data": "a", "id": "b"}, "index": 1}]},
        [("text", '\n{"data": "a", "id": "b"}\n')],
    ),
    (
        "a picture somewhere inside",
        {"content": [{"type": "server_tool_result", "output": ["a", "data:image/png;base64,YQ=="]}]},
        [("text", "\na\n")],
    ),
    (
        "text that begins as a picture's address does",
        {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "data: a"}], "index": 0}]},
        [("reasoning", "data: a")],
    ),
    ("Perplexity", {"additional_kwargs": {"related_questions": ["a", "b"]}}, [("text", "\na\nb\n")]),
    (
        "v1: what has no standard",
        {"content": [{"type": "non_standard", "value": {"type": "redacted_thinking", "data": "YQ=="}, "index": 0}]},
        [],
    ),
    ("v1: plain text", {"content": [{"type": "text-plain", "text": "a", "mime_type": "text/plain"}]}, [("text", "a")]),
]


@pytest.mark.parametrize(("message", "expected"), [case[1:] for case in SEEN], ids=[case[0] for case in SEEN])
def test_what_a_user_could_read_is_seen_and_technical_bytes_are_not(
    message: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    for kind in (AIMessage, AIMessageChunk):
        seen = MessageReader().read(kind(**{"content": "", **message}))
        assert [(fragment.channel, fragment.text) for fragment in seen.fragments] == expected
        assert not seen.whole


@pytest.mark.parametrize(
    "block",
    [
        {"type": "hologram", "says": "a"},
        {"type": "computer_call", "action": {"type": "type", "text": "a"}},
        {"type": "apply_patch_call", "operation": {"diff": "a"}},
        {"type": "tool_use", "name": "a", "input": {}},
        {"type": "input_json_delta", "partial_json": "a", "index": 5},
    ],
    ids=lambda block: str(block["type"]),
)
def test_what_nobody_knows_or_a_client_would_run_is_seen_and_held_to_the_end(block: dict[str, Any]) -> None:
    gate = Gate()
    [fragment] = gate.take(chunk([block]))
    assert fragment.text.strip() == "a"
    assert list(gate.release("text", len(fragment.text))) == []
    assert len(list(gate.finish())) == 1


ANYWHERE: list[dict[str, Any]] = [
    *(
        {"additional_kwargs": {key: "a b"}}
        for key in ("data", "status", "__x", "format", "language", "model", "caller")
    ),
    {"additional_kwargs": {"parsed": "a b"}},
    {"additional_kwargs": {"parsed": Answered(says="a b")}},
    {"additional_kwargs": {"x": {"a b": 1}}},
    {"additional_kwargs": {"finish_reason": "a b"}},
    {"content": [{"type": "custom", "data": "a b"}]},
    {"content": [{"type": "custom", "deep": [{"status": "a b"}]}]},
    {"content": [{"type": "non_standard", "value": {"type": "x", "format": "a b"}}]},
    {"content": [{"type": "a b", "x": 1}]},
    {"content": [{"type": "image", "url": "u", "alt": "a b"}]},
    {"content": [{"type": "file", "file_id": "f", "title": "a b"}]},
    {"name": "a b"},
    {"thought": "a b"},
    {"thought": {"deep": ["a b"]}},
]


@pytest.mark.parametrize("message", ANYWHERE, ids=str)
def test_words_in_places_that_nobody_knows_are_seen(message: dict[str, Any]) -> None:
    for kind in (AIMessage, AIMessageChunk):
        seen = MessageReader().read(kind(**{"content": "", **message}))
        assert "".join(fragment.text for fragment in seen.fragments).strip() == "a b"


@pytest.mark.parametrize(
    "message",
    [
        {"additional_kwargs": {"id": "x y", "response_id": "r-1", "thought_signature": "YQ=="}},
        {"additional_kwargs": {"finish_reason": "stop", "x": {"encrypted_content": "YQ==", "id": "x"}}},
        {"content": [{"type": "custom", "data": "YQ==", "index": "lc_1", "signature": "YQ=="}]},
        {"name": "researcher"},
    ],
    ids=str,
)
def test_ids_signatures_bytes_and_codes_are_not_seen_wherever_they_are(message: dict[str, Any]) -> None:
    assert MessageReader().read(AIMessageChunk(**{"content": "", **message})).fragments == ()


def test_what_was_parsed_of_the_answer_is_not_seen_twice() -> None:
    reader = MessageReader()
    reader.read(AIMessageChunk('{"says": "a \\"b\\"'))
    reader.read(AIMessageChunk(', "deep": ["ü"]}'))
    parsed = {"says": 'a "b"', "deep": ["ü"]}
    assert reader.read(AIMessageChunk("", additional_kwargs={"parsed": parsed})).fragments == ()
    assert reader.read(AIMessageChunk("", additional_kwargs={"parsed": Answered(says='a "b"')})).fragments == ()


def test_a_name_is_seen_once_and_does_not_hold_the_text_beside_it() -> None:
    reader = MessageReader()
    assert len(reader.read(AIMessageChunk("a", name="Dr. Who")).fragments) == 2
    assert reader.read(AIMessageChunk("b", name="Dr. Who")).place == ("content",)


def test_arguments_of_a_tool_that_the_provider_runs_itself_pass_as_they_are_checked() -> None:
    gate = Gate()
    passed = []
    for block in (
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}, "index": 1},
        {"type": "input_json_delta", "partial_json": '{"query": "bread"}', "index": 1},
    ):
        for fragment in gate.take(chunk([block])):
            passed += gate.release(fragment.channel, len(fragment.text))
    assert len(passed) == 2


def test_calls_are_told_apart_as_langchain_adds_them_up() -> None:
    chunks = [
        call(0, '{"a"', name="f", call_id="1"),
        call(0, "{}", name="g", call_id="2"),  # some endpoints number all calls 0
        call(0, ":1}"),
        call(None, "{}", name="h", call_id="3"),
        call(2, "{", name="i", call_id="4"),
        call(2, "}"),
    ]
    reader = MessageReader()
    said: dict[int, str] = {}
    for one in chunks:
        for fragment in reader.read(AIMessageChunk(content="", tool_call_chunks=[one])).fragments:
            assert fragment.call is not None
            said[fragment.call.index] = said.get(fragment.call.index, "") + fragment.text
    added = reduce(add, [AIMessageChunk(content="", tool_call_chunks=[one]) for one in chunks])
    assert [*said.values()] == [one["args"] for one in added.tool_call_chunks]


def test_a_function_call_in_the_old_form_is_one_call_in_pieces() -> None:
    reader = MessageReader()
    indexes = set()
    for name, arguments in (("f", ""), (None, '{"a"'), (None, ":1}")):
        message = AIMessageChunk(
            content="", additional_kwargs={"function_call": {"name": name or "", "arguments": arguments}}
        )
        seen = reader.read(message)
        assert seen.whole
        indexes |= {fragment.call.index for fragment in seen.fragments if fragment.call}
    assert indexes == {0}


# -- through the whole model ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(answers())
def test_a_benign_stream_of_any_shape_adds_up_to_what_the_model_said(chunks: list[ChatGenerationChunk]) -> None:
    said = [one.message.model_copy(update={"response_metadata": {**one.message.response_metadata}}) for one in chunks]
    inner = ScriptedChatModel(script=lambda _: said)
    policy = Policy(schedule=Schedule.every(2))
    guarded = ChatAdaGuard(inner=inner, guard=Guard(sidecar=ScriptedSidecar(), policy=policy))
    assert reduce(add, guarded.stream("?")) == reduce(add, inner.stream("?"))
