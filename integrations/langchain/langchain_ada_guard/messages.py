"""LangChain messages and tools as a guard takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_ada_guard.fragments import arguments_text

__all__ = ["guard_messages", "guard_tools"]

_ROLES: Mapping[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
    FunctionMessage: "function",
}
_CALLS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "input_json_delta"}
)
"""Kinds of content blocks that stand a second time in ``tool_calls``."""


def guard_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Role/content mappings for `ada_guard.Guard`; tool calls and tool results keep their place.

    What is no text, such as an image, stays as it is: the guard's sidecar says then that its view is partial.

    Args:
        messages: LangChain messages in order. An `AIMessage` at the end is a prefill.
    """
    return [_guard_message(message) for message in messages]


def guard_tools(tools: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """Tool definitions, in whatever form the provider takes them, as chat templates take them.

    Tools that a provider runs on its own side have no such form; they are left out.

    Args:
        tools: The ``tools`` of a request, as ``bind_tools`` left them.
    """
    return [tool for tool in map(_guard_tool, tools or ()) if tool is not None] or None


def _guard_message(message: BaseMessage) -> dict[str, Any]:
    content = message.content
    if not isinstance(content, str):
        content = [part for part in content if not (isinstance(part, dict) and part.get("type") in _CALLS)]
    found: dict[str, Any] = {"role": _role(message), "content": content}
    if message.name:
        found["name"] = message.name
    if isinstance(message, ToolMessage):
        found["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage):
        calls = [
            {
                "type": "function",
                "id": call["id"] or str(index),
                "function": {"name": call["name"] or "", "arguments": arguments_text(call["args"])},
            }
            for index, call in enumerate([*message.tool_calls, *message.invalid_tool_calls])
        ]
        if calls:
            found["tool_calls"] = calls
        if isinstance(reasoning := message.additional_kwargs.get("reasoning_content"), str):
            found["reasoning_content"] = reasoning
    return found


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if message.additional_kwargs.get("__openai_role__") == "developer":
        return "developer"
    return next((role for kind, role in _ROLES.items() if isinstance(message, kind)), message.type)


def _guard_tool(tool: Any) -> dict[str, Any] | None:
    try:
        return convert_to_openai_tool(tool)
    except (ValueError, TypeError, KeyError):
        return None
