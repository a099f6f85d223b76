"""LangChain messages and tools as a guard takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from pydantic import BaseModel

from langchain_ada_guard.fragments import CALLS, MessageReader

__all__ = ["guard_messages", "guard_tools"]

_ROLES: Mapping[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
    FunctionMessage: "function",
}
_DECLARATIONS = ("function_declarations", "functionDeclarations")
"""Google puts several functions into one tool."""
_OWN_KINDS = (None, "function", "custom", "object")
"""What the ``type`` of a tool is that the application runs; every other is of one that a provider runs."""


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
    return [found for tool in tools or () for found in _guard_tool(tool)] or None


def _guard_message(message: BaseMessage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": _role(message), "content": message.content}
    if message.name:
        found["name"] = message.name
    if isinstance(message, ToolMessage):
        found["tool_call_id"] = message.tool_call_id
    return {**found, **_said(message)} if isinstance(message, AIMessage) else found


def _said(message: AIMessage) -> dict[str, Any]:
    """What a model has said, as it was shown to the guard when the model said it."""
    seen = MessageReader().read(message)
    found: dict[str, Any] = {}
    said = [fragment.text for fragment in seen.fragments if fragment.channel in ("text", "refusal")]
    if not isinstance(message.content, str):
        others = [block for block in message.content if isinstance(block, dict) and not _is_read(block)]
        found["content"] = [*({"type": "text", "text": text} for text in said), *others]
    elif said != [message.content]:
        found["content"] = "".join(said)
    if reasoning := "".join(fragment.text for fragment in seen.fragments if fragment.channel == "reasoning"):
        found["reasoning_content"] = reasoning
    calls = [(fragment.call, fragment.text) for fragment in seen.fragments if fragment.call is not None]
    if calls:
        found["tool_calls"] = [
            {
                "type": "function",
                "id": call.id or str(call.index),
                "function": {"name": call.name or "", "arguments": arguments},
            }
            for call, arguments in calls
        ]
    return found


def _is_read(block: dict[str, Any]) -> bool:
    """Whether the guard sees a block of a model's answer as text, or as a call."""
    if str(block.get("type")) in CALLS:
        return True
    alone = MessageReader().read(AIMessage(content=[block]))
    return bool(alone.fragments) and not alone.whole


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if message.additional_kwargs.get("__openai_role__") == "developer":
        return "developer"
    return next((role for kind, role in _ROLES.items() if isinstance(message, kind)), message.type)


def _guard_tool(tool: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tool, BaseModel) and any(hasattr(tool, name) for name in _DECLARATIONS):
        tool = tool.model_dump(exclude_none=True)
    declared = next((tool[name] for name in _DECLARATIONS if tool.get(name)), None) if isinstance(tool, dict) else None
    for one in [tool] if declared is None else declared:
        kind = one.get("type") if isinstance(one, dict) else None
        if kind not in _OWN_KINDS:
            continue
        if kind == "function" and "function" not in one:
            one = {name: value for name, value in one.items() if name != "type"}  # as the Responses API takes it
        try:
            found = convert_to_openai_tool(one)
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(found.get("function"), dict):
            yield found
