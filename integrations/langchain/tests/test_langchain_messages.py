"""LangChain's messages and tools, as ada-guard's sidecar reads them."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel

from ada_guard.sidecar.request_messages import read_messages
from langchain_ada_guard import guard_messages, guard_tools


def read(*messages: BaseMessage) -> tuple[list[dict[str, Any]], bool]:
    """What the sidecar makes of messages, and whether its view of them is partial."""
    found = read_messages(guard_messages(messages))
    return found.messages, found.partial


def texts(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def test_roles_and_text_are_those_of_the_chat_template() -> None:
    messages = [SystemMessage("Be brief."), HumanMessage("Hello?"), AIMessage("Hello.")]
    assert guard_messages(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
    ]


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (SystemMessage("a"), "system"),
        (SystemMessage("a", additional_kwargs={"__openai_role__": "developer"}), "system"),
        (HumanMessage("a"), "user"),
        (AIMessage("a"), "assistant"),
        (AIMessageChunk("a"), "assistant"),
        (ToolMessage("a", tool_call_id="1"), "tool"),
        (FunctionMessage("a", name="f"), "function"),
        (ChatMessage("a", role="user"), "user"),
        (ChatMessage("a", role="developer"), "system"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_message_has_a_role_that_the_sidecar_knows(message: BaseMessage, role: str) -> None:
    [found], partial = read(message)
    assert (found["role"], texts(found["content"]), partial) == (role, "a", False)


def test_the_developers_role_stays_the_developers() -> None:
    message = SystemMessage("a", additional_kwargs={"__openai_role__": "developer"})
    assert guard_messages([message])[0]["role"] == "developer"


def test_names_are_kept() -> None:
    assert guard_messages([HumanMessage("a", name="Ann")])[0]["name"] == "Ann"


def test_tool_calls_and_their_results_keep_their_place() -> None:
    call = AIMessage("", tool_calls=[{"name": "clock", "args": {"zone": "UTC"}, "id": "1"}])
    asked, answered = guard_messages([call, ToolMessage("12:00", tool_call_id="1")])
    assert asked["tool_calls"] == [
        {"type": "function", "id": "1", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
    ]
    assert answered == {"role": "tool", "content": "12:00", "tool_call_id": "1"}
    (first, second), partial = read(call, ToolMessage("12:00", tool_call_id="1"))
    assert first["tool_calls"][0]["id"] == second["tool_call_id"]
    assert not partial


@pytest.mark.parametrize(
    "message",
    [
        AIMessage(
            [{"type": "text", "text": "a"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}],
            tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}],
        ),
        AIMessage(
            [
                {"type": "text", "text": "a"},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'},
            ],
            tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}],
        ),
        AIMessage(
            content_blocks=[
                {"type": "text", "text": "a"},
                {"type": "tool_call", "name": "f", "args": {"x": 1}, "id": "1"},
            ]
        ),
        AIMessage("a", additional_kwargs={"function_call": {"name": "f", "arguments": '{"x": 1}'}}),
        AIMessage(
            "a", additional_kwargs={"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]}
        ),
        AIMessage("a", invalid_tool_calls=[{"name": "f", "args": '{"x": 1}', "id": "1", "error": None}]),
    ],
    ids=["Anthropic", "Responses", "v1", "function_call", "raw", "invalid"],
)
def test_a_call_is_one_call_in_whatever_form_a_provider_left_it(message: AIMessage) -> None:
    [found], partial = read(message)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in found["tool_calls"]] == [
        ("f", '{"x": 1}')
    ]
    assert (texts(found["content"]), partial) == ("a", False)


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("a", additional_kwargs={"reasoning_content": "why"}),
        AIMessage([{"type": "thinking", "thinking": "why", "signature": "x"}, {"type": "text", "text": "a"}]),
        AIMessage(
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]}, {"type": "text", "text": "a"}]
        ),
        AIMessage([{"type": "reasoning_content", "reasoning_content": {"text": "why"}}, {"type": "text", "text": "a"}]),
        AIMessage(content_blocks=[{"type": "reasoning", "reasoning": "why"}, {"type": "text", "text": "a"}]),
    ],
    ids=["DeepSeek", "Anthropic", "Responses", "Bedrock", "v1"],
)
def test_reasoning_of_earlier_turns_is_reasoning(message: AIMessage) -> None:
    [found], partial = read(message)
    assert (found["reasoning_content"], texts(found["content"]), partial) == ("why", "a", False)


def test_a_refusal_and_a_transcript_are_what_the_assistant_said() -> None:
    refusal = AIMessage("", additional_kwargs={"refusal": "I won't."})
    spoken = AIMessage("", additional_kwargs={"audio": {"id": "x", "data": "AAAA", "transcript": "Hello."}})
    (first, second), _ = read(refusal, spoken)
    assert (first["content"], second["content"]) == ("I won't.", "Hello.")


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image", "source_type": "base64", "data": "YQ==", "mime_type": "image/png"},
        {"type": "image", "base64": "YQ==", "mime_type": "image/png"},
        {"type": "input_audio", "input_audio": {"data": "YQ==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": "document", "source": {"type": "base64", "data": "YQ=="}},
        {"type": "hologram", "depth": 3},
    ],
    ids=lambda block: str(block["type"]),
)
@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage, AIMessage])
def test_what_is_no_text_makes_the_view_partial(kind: type[BaseMessage], block: dict[str, Any]) -> None:
    [found], partial = read(kind(content=[{"type": "text", "text": "a"}, block]))
    assert partial
    assert texts(found["content"]).startswith("a\n[")


def test_a_result_of_a_tool_may_hold_blocks() -> None:
    blocks: list[Any] = [{"type": "text", "text": "a"}, {"type": "image", "base64": "YQ=="}]
    [found], partial = read(ToolMessage(blocks, tool_call_id="1"))
    assert (found["content"], partial) == ("a\n[image]", True)


def test_an_assistant_turn_at_the_end_is_a_prefill() -> None:
    (_, last), _ = read(HumanMessage("?"), AIMessage([{"type": "text", "text": "Sure, "}]))
    assert (last["role"], texts(last["content"])) == ("assistant", "Sure, ")


# -- tools ---------------------------------------------------------------------------------------------------------

PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
FUNCTION = {"name": "f", "description": "d", "parameters": PARAMETERS}
EXPECTED = [{"type": "function", "function": FUNCTION}]


class Declared(BaseModel):
    """As Google's own types hold their functions."""

    function_declarations: list[dict[str, Any]] | None = None


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "function", "function": FUNCTION},
        {"type": "function", **FUNCTION},
        FUNCTION,
        {"name": "f", "description": "d", "input_schema": PARAMETERS},
        {"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": PARAMETERS}}},
        {"function_declarations": [FUNCTION]},
        {"functionDeclarations": [FUNCTION]},
        Declared(function_declarations=[FUNCTION]),
    ],
    ids=["OpenAI", "Responses", "function", "Anthropic", "Bedrock", "Gemini", "Vertex", "Google's types"],
)
def test_tools_of_any_provider_are_tools_of_a_chat_template(definition: Any) -> None:
    assert guard_tools([definition]) == EXPECTED


def test_tools_of_langchain_are_taken_as_they_are() -> None:
    @tool
    def clock(zone: str) -> str:
        """Tells the time."""
        return zone

    [found] = guard_tools([clock]) or []
    assert (found["function"]["name"], found["function"]["description"]) == ("clock", "Tells the time.")


def test_tools_that_a_provider_runs_are_left_out() -> None:
    served: list[Any] = [
        {"type": "web_search"},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "web_search_20250305", "name": "web_search"},
        {"google_search": {}},
        {"cachePoint": {"type": "default"}},
        Declared(),
    ]
    assert guard_tools([*served, {"type": "function", "function": FUNCTION}]) == EXPECTED
    assert guard_tools(served) is None
    assert guard_tools(None) is None
