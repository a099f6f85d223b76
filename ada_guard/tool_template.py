"""What a chat template makes of tools and of the calls in a conversation, observed from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ada_guard.errors import ConfigError
from ada_guard.template import render

__all__ = ["messages_for_template", "shows_tools"]

_SENTINEL = "qzjxvtool"
"""The name of a tool that no template writes by itself."""


def shows_tools(tokenizer: Any) -> bool:
    """Whether the chat template shows tools to the model; one that ignores them is of a model that calls none."""
    tool = {
        "type": "function",
        "function": {
            "name": _SENTINEL,
            "description": _SENTINEL,
            "parameters": {"type": "object", "properties": {}},
        },
    }
    return _SENTINEL in (_rendered(tokenizer, [{"role": "user", "content": "?"}], tools=[tool]) or "")


def messages_for_template(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any] | None = None
) -> list[Mapping[str, Any]]:
    """The messages as the template takes them: most want the arguments of a call as an object, some as text.

    Args:
        tokenizer: The model's.
        messages: Role/content mappings, the arguments of their calls as JSON text.
        template_kwargs: Variables of the template.
    """
    plain = list(messages)
    objects = [
        {**each, "tool_calls": [_with_object(call) for call in each["tool_calls"]]} if "tool_calls" in each else each
        for each in plain
    ]
    if objects == plain:
        return plain
    return plain if _rendered(tokenizer, objects, **(template_kwargs or {})) is None else objects


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str | None:
    """What the template makes of messages; None if it takes them neither with texts nor with lists of parts."""
    parts = [
        {**each, "content": [{"type": "text", "text": each["content"]}]} if isinstance(each["content"], str) else each
        for each in messages
    ]
    for form in (messages, parts):
        try:
            return render(tokenizer, form, add_generation_prompt=True, **kwargs)
        except (ConfigError, TypeError):  # the latter: variables that may not be set, which encoding says more clearly
            continue
    return None


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else dict(call)
