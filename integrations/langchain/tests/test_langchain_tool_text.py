"""Tool calls that a local model wrote, as LangChain streams them: what is no whole call is one that nothing runs."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from ada_guard.tool_forms import WrittenCall, read_calls
from langchain_ada_guard.tool_text import call_chunk

NAMES = ("weather",)
OBJECT = '{"name": "weather", "arguments": {"city": "K"}}'


def message(calls: list[WrittenCall]) -> AIMessageChunk:
    found = AIMessageChunk(content="")
    for index, call in enumerate(calls):
        found += call_chunk(call, index)
    return found


@pytest.mark.parametrize(
    ("arguments", "read"), [('{"city": "K\u00f6ln"}', {"city": "K\u00f6ln"}), ("", {}), (" {}\n", {})]
)
def test_a_whole_call_is_a_tool_call(arguments: str, read: dict[str, Any]) -> None:
    [call] = message([WrittenCall(name="weather", arguments=arguments)]).tool_calls
    assert (call["name"], call["args"]) == ("weather", read)
    assert call["id"]


def test_several_calls_keep_their_order_and_the_ids_that_the_model_wrote() -> None:
    calls = [WrittenCall(name="weather", arguments="{}", id=f"call{n}") for n in range(3)]
    assert [call["id"] for call in message(calls).tool_calls] == ["call0", "call1", "call2"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (f"<tool_call>{OBJECT[:-3]}", "weather"),
        ('<tool_call>{"name": "weather", "arguments": {"city": "K', "weather"),
        ('<tool_call>{"name": "weather", "arguments": {"city": "K}}</tool_call>', "weather"),
        ('<tool_call>{"arguments": {}}</tool_call>', None),
        ('<tool_call>{"name": "weather", "arguments": [1]}</tool_call>', "weather"),
        ('[TOOL_CALLS]weather[ARGS]{"city": "K', "weather"),
        ('[TOOL_CALLS][{"name": "weather", "arguments": {}}', "weather"),
        ('{"name": "weather", "parameters": {"city": ', "weather"),
    ],
)
def test_half_a_call_is_an_invalid_one_that_nothing_repairs(written: str, name: str | None) -> None:
    found = message(read_calls(written, NAMES)[1])
    assert not found.tool_calls
    [invalid] = found.invalid_tool_calls
    assert invalid["name"] == name
    last = found + AIMessageChunk(content="", chunk_position="last")
    assert not last.tool_calls
    assert last.invalid_tool_calls
