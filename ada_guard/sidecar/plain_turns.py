"""Conversations made simpler, step by step, for templates that know fewer kinds of messages. Knows no template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.chat_template_utils import get_json_schema

from ada_guard.errors import ConfigError
from ada_guard.sidecar.request_messages import arguments_as_text
from ada_guard.sidecar.turn import CallForm

__all__ = ["STEPS", "Talk", "text_of"]

_RESULTS = ("tool", "function", "ipython", "observation")
_BEGINNING = "[beginning of the conversation]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """Messages as `request_messages` gives them, and tool definitions."""

    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    tools: Sequence[Any] | None = field(default=None, repr=False)


def text_of(content: Any) -> str:
    """A content as one text."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _tools_completed(talk: Talk) -> Talk:
    """Tool definitions with all the fields that the API lets be left out and templates count on."""
    tools = []
    for tool in talk.tools or ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping):
            parameters = function.get("parameters")
            parameters = {"type": "object", "properties": {}, **(parameters if isinstance(parameters, Mapping) else {})}
            tool = {"type": "function", **tool, "function": {"description": "", **function, "parameters": parameters}}
        tools.append(tool)
    return Talk(messages=talk.messages, tools=tools or None)


def _tools_as_text(talk: Talk) -> Talk:
    """Tool definitions as JSON in the system message."""
    if not talk.tools:
        return talk
    text = "\n".join(["Tools that can be called:", *map(_definition, talk.tools)])
    first, *rest = talk.messages
    if first["role"] == "system":
        return Talk(messages=[{**first, "content": f"{text_of(first['content'])}\n\n{text}"}, *rest])
    return Talk(messages=[{"role": "system", "content": text}, *talk.messages])


def _definition(tool: Any) -> str:
    if callable(tool):
        try:
            tool = get_json_schema(tool)
        except Exception:  # noqa: BLE001  # it reads a user's docstring
            tool = {"name": getattr(tool, "__name__", "tool")}
    try:
        return json.dumps(tool, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError("tools hold plain data or documented functions") from None


def _calls_as_text(talk: Talk) -> Talk:
    """Tool calls as text of the assistant's, results as turns of the user's."""
    form = CallForm()
    messages: list[Mapping[str, Any]] = []
    for message in talk.messages:
        if message["role"] in _RESULTS:
            messages.append({"role": "user", "content": f"Tool result: {text_of(message['content'])}"})
        elif "tool_calls" in message:
            text = text_of(message["content"])
            for call in message["tool_calls"]:
                function = call["function"]
                opening = form.open_behind_text if text else form.open
                text += opening + function["name"] + form.middle + arguments_as_text(function["arguments"])
            messages.append({"role": "assistant", "content": text})
        else:
            messages.append(message)
    return Talk(messages=messages, tools=talk.tools)


def _system_as_user(talk: Talk) -> Talk:
    """System messages at the beginning as the beginning of the user's first turn, others as turns of the user's."""
    leading: list[str] = []
    messages: list[Mapping[str, Any]] = []
    for message in talk.messages:
        if message["role"] == "system" and not messages:
            leading.append(text_of(message["content"]))
        elif message["role"] == "system":
            messages.append({"role": "user", "content": message["content"]})
        elif leading and message["role"] == "user":
            text = "\n\n".join([*leading, text_of(message["content"])])
            messages.append({**message, "content": text})
            leading = []
        else:
            if leading:
                messages.append({"role": "user", "content": "\n\n".join(leading)})
                leading = []
            messages.append(message)
    if leading:
        messages.append({"role": "user", "content": "\n\n".join(leading)})
    return Talk(messages=messages, tools=talk.tools)


def _merged(talk: Talk) -> Talk:
    """Turns of the same side in a row as one, and the user's turn first."""
    messages: list[Mapping[str, Any]] = []
    for message in talk.messages:
        last = messages[-1] if messages else {}
        if last.get("role") == message["role"] in ("user", "assistant", "system") and "tool_calls" not in last:
            text = f"{text_of(last['content'])}\n\n{text_of(message['content'])}"
            messages[-1] = {**last, **message, "content": text}
        else:
            messages.append(message)
    first = next((at for at, message in enumerate(messages) if message["role"] != "system"), None)
    if first is not None and messages[first]["role"] == "assistant" and len(messages) > first + 1:
        messages.insert(first, {"role": "user", "content": _BEGINNING})
    return Talk(messages=messages, tools=talk.tools)


STEPS: tuple[Callable[[Talk], Talk], ...] = (_tools_completed, _tools_as_text, _calls_as_text, _system_as_user, _merged)
"""In the order in which they are to be taken; each alone leaves what it is not about as it is."""
