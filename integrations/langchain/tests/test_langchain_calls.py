"""The guard is shown the tool calls that LangChain makes of a stream, names and all."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from ada_guard import Guard, Policy
from ada_guard.errors import GenerationError
from ada_guard.policy import Schedule
from ada_guard.testing import UNSAFE, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.cut import cut_of
from langchain_ada_guard.fragments import MessageReader
from langchain_ada_guard.testing import ScriptedChatModel


def piece(index: int, args: str, name: str | None = None, call_id: str | None = None, **fields: Any) -> AIMessageChunk:
    call = {"index": index, "args": args, "name": name, "id": call_id, "type": "tool_call_chunk"}
    return AIMessageChunk(**{"content": "", "id": "m", "tool_call_chunks": [call], **fields})


def guarded(chunks: list[AIMessageChunk]) -> ChatAdaGuard:
    guard = Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=Schedule.every(2)))
    return ChatAdaGuard(inner=ScriptedChatModel(script=lambda _: chunks), guard=guard)


def test_a_name_in_pieces_is_shown_as_langchain_adds_it_up() -> None:
    chunks = [piece(0, "", "delete_", "c0"), piece(0, "", "all"), piece(0, '{"x": '), piece(0, "1}")]
    reader = MessageReader()
    names = [found.call.name for one in chunks for found in reader.read(one).fragments if found.call]
    assert names == ["delete_", *["delete_all"] * 3]
    assert reduce(add, chunks).tool_calls[0]["name"] == "delete_all"
    assert guarded(chunks).invoke("?").tool_calls[0]["name"] == "delete_all"


def test_a_harmful_name_in_pieces_cuts() -> None:
    half = len(UNSAFE) // 2
    answer = guarded([piece(0, "", UNSAFE[:half], "c0"), piece(0, "{}", UNSAFE[half:])]).invoke("?")
    assert cut_of(answer)
    assert not answer.tool_calls


BETWEEN = {"a call": piece(1, "{}", "other", "c1"), "text": AIMessageChunk(content="then", id="m")}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_a_name_that_goes_on_behind_its_whole_call_is_never_released(between: AIMessageChunk) -> None:
    chunks = [piece(0, "{}", "act", "c0"), between, piece(0, "", UNSAFE)]
    for shown in (lambda model: model.invoke("?"), lambda model: list(model.stream("?"))):
        with pytest.raises(GenerationError, match="name of a tool call"):
            shown(guarded(chunks))


def test_a_name_that_goes_on_before_its_call_is_whole_is_judged() -> None:
    chunks = [piece(0, "{", "act", "c0"), piece(1, "{}", "other", "c1"), piece(0, "}", UNSAFE)]
    assert cut_of(guarded(chunks).invoke("?"))


def raw(arguments: str, name: str = "act") -> dict[str, Any]:
    call = {"index": 0, "id": "c0", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"additional_kwargs": {"tool_calls": [call]}}


def test_calls_in_a_providers_form_beside_the_standard_one_are_read_where_they_differ() -> None:
    same = [piece(0, '{"x": "a', "act", "c0", **raw('{"x": "a')), piece(0, ' b"}', **raw(' b"}', ""))]
    reader = MessageReader()
    assert [found.channel for one in same for found in reader.read(one).fragments] == ["tool_call"] * 2
    whole = AIMessage("", tool_calls=[{"name": "act", "args": {"x": "a b", "n": 1}, "id": "c0"}])
    whole.additional_kwargs = raw('{"x":"a b","n":1}')["additional_kwargs"]
    assert len(MessageReader().read(whole).fragments) == 1
    other = piece(0, "{}", "act", "c0", **raw(f'{{"x": "{UNSAFE}"}}'))
    assert cut_of(guarded([other]).invoke("?"))
    assert cut_of(guarded([piece(0, "{}", "act", "c0", **raw("{}", UNSAFE))]).invoke("?"))
