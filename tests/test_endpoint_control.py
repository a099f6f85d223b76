"""The official client as the control: on the same stream it must come to the same answer as our source."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import openai
import pytest
from endpoint_drives import ASK, Drive, both, loopback, pulled, served

from ada_guard.delta import Delta, Usage
from ada_guard.errors import GenerationError
from ada_guard.sources import Endpoint
from ada_guard.testing_endpoint import Chunk, Repeat, Reply

pytestmark = [loopback]


def call(index: int, **fields: Any) -> Chunk:
    return Chunk(delta={"tool_calls": [{"index": index, **fields}]})


REPLIES = {
    "text": Reply(items=("Fold", " the", " paper", "\u2028", " 日本 🪁", "\n\ndata: [DONE]\n\n")),
    "length": Reply(items=("a", " b"), finish_reason="length"),
    "nothing": Reply(),
    "one page": Reply(items=("x" * 300_000,)),
    "long": Reply(items=(Repeat((" word",), times=500),)),
    "without DONE": Reply(items=("a",), done=False),
    "comments, CR LF": Reply(
        items=("a", b": keep-alive\r\n\r\n", b'data: {"id":"i",\r\ndata: "choices":[]}\r\n\r\n', " b")
    ),
    "refusal": Reply(items=(Chunk(delta={"refusal": "I can"}), Chunk(delta={"refusal": "not."}))),
    "tool calls": Reply(
        items=(
            call(0, id="a", type="function", function={"name": "fold", "arguments": ""}),
            call(0, function={"arguments": '{"paper": '}),
            call(1, id="b", type="function", function={"name": "fly", "arguments": '{"wind"'}),
            call(0, function={"arguments": "1}"}),
            call(1, function={"arguments": ": 2}"}),
        ),
        finish_reason="tool_calls",
    ),
    "usage with details": Reply(
        items=("a",),
        usage={
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    ),
}


def by_openai(endpoint: Endpoint, n: int) -> dict[str, Any]:
    """What an application that uses the official client has in the end."""
    answer = blank()
    with openai.OpenAI(base_url=endpoint.base_url, api_key="none", max_retries=0) as client:
        asked: Any = ASK
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        for chunk in client.chat.completions.create(model="scripted", messages=asked, n=n, **options):
            if chunk.usage is not None:
                answer["usage"] = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            for choice in chunk.choices:
                answer["text"][choice.index] += choice.delta.content or ""
                answer["refusal"][choice.index] += choice.delta.refusal or ""
                answer["finish"][choice.index] = choice.finish_reason or answer["finish"][choice.index]
                for each in choice.delta.tool_calls or []:
                    said = answer["calls"][each.index]
                    said["id"] = each.id or said["id"]
                    said["name"] = (each.function and each.function.name) or said["name"]
                    said["arguments"] += (each.function and each.function.arguments) or ""
    return answer


def by_us(deltas: list[Delta], usage: Usage | None) -> dict[str, Any]:
    answer = blank()
    assert usage is not None
    answer["usage"] = (usage.prompt_tokens, usage.completion_tokens)
    for delta in deltas:
        for fragment in delta.fragments:
            if fragment.call is not None:
                said = answer["calls"][fragment.call.index]
                said["id"], said["name"] = fragment.call.id, fragment.call.name
                said["arguments"] += fragment.text
            else:
                answer[fragment.channel][delta.choice] += fragment.text
        answer["finish"][delta.choice] = delta.finish_reason or answer["finish"][delta.choice]
    return answer


def blank() -> dict[str, Any]:
    return {
        "text": defaultdict(str, {0: ""}),
        "refusal": defaultdict(str, {0: ""}),
        "finish": defaultdict(lambda: None),
        "calls": defaultdict(lambda: {"id": None, "name": None, "arguments": ""}),
        "usage": None,
    }


def filled(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: said for key, said in value.items() if said} if isinstance(value, dict) else value
        for name, value in answer.items()
    }


@both
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES.keys())
async def test_same_answer_as_the_official_client(drive: Drive, reply: Reply) -> None:
    async with served(drive, reply) as (endpoint, _):
        expected = by_openai(endpoint, n=1)
        stream = endpoint.open(ASK)
        assert filled(by_us(await pulled(drive, stream), stream.usage)) == filled(expected)


@both
async def test_same_choices_as_the_official_client(drive: Drive) -> None:
    items = ("a", Chunk(delta={"content": "b"}, choice=1), " c", Chunk(delta={"content": " d"}, choice=1))
    async with served(drive, Reply(items=items)) as (endpoint, _):
        expected = by_openai(endpoint, n=2)
        stream = endpoint.open(ASK, n=2)
        assert filled(by_us(await pulled(drive, stream), stream.usage)) == filled(expected)


@both
async def test_the_control_fails_where_we_do(drive: Drive) -> None:
    reply = Reply(items=("one", {"error": {"message": "gone", "type": "server_error"}}))
    async with served(drive, reply) as (endpoint, _):
        with pytest.raises(openai.APIError):
            by_openai(endpoint, n=1)
        with pytest.raises(GenerationError, match="reported an error"):
            await pulled(drive, endpoint.open(ASK))
