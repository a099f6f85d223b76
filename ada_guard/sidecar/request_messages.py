"""Messages as requests hold them, made into messages that templates take. Knows no template and no ids.

Accepted is what the OpenAI API accepts: contents that are null or lists of parts, arguments as JSON text, refusals, the
legacy ``function_call``. What is no text becomes a placeholder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ada_guard.errors import ConfigError
from ada_guard.prompt import ROLES

__all__ = ["RequestMessages", "arguments_as_object", "arguments_as_text", "read_messages"]

_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of parts that are text, and the field it stands in."""
_REASONING = {"thinking": "thinking", "reasoning": "reasoning"}
_PLACEHOLDERS = {
    "image": "[image]",
    "image_url": "[image]",
    "input_image": "[image]",
    "audio": "[audio]",
    "audio_url": "[audio]",
    "input_audio": "[audio]",
    "video": "[video]",
    "video_url": "[video]",
    "file": "[file]",
    "input_file": "[file]",
    "document": "[file]",
}
_UNKNOWN = "[content that is not text]"


@dataclass(slots=True)
class RequestMessages:
    """What was read.

    Attributes:
        messages: Each with a role that templates know (``developer`` is ``system``), a content that is a text or a list
            of text parts, and ``name``, ``tool_calls``, ``tool_call_id`` and ``reasoning_content`` where there are any.
            Arguments of calls are as they came; ids are replaced by short ones.
        partial: Whether something in them is no text.
    """

    messages: list[dict[str, Any]] = field(default_factory=list, repr=False)
    partial: bool = False


def read_messages(messages: Sequence[Mapping[str, Any]]) -> RequestMessages:
    """Reads the messages of a request.

    Raises:
        ConfigError: One has no role that is known, or a field of a wrong type.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not messages:
        raise ConfigError("messages is a list of at least one {'role': ..., 'content': ...}")
    read = RequestMessages()
    ids = _CallIds()
    for at, message in enumerate(messages):
        name = f"messages[{at}]"
        if not isinstance(message, Mapping):
            raise ConfigError(f"{name} is not a mapping with role and content")
        read.messages.append(_message(message, name, ids, read))
    return read


def _message(message: Mapping[str, Any], name: str, ids: _CallIds, read: RequestMessages) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ConfigError(f"{name} has no known role: use one of {', '.join(ROLES)}")
    calls = [_call(call, name, ids) for call in _calls_of(message, name)]
    content, reasoning = _content(message, name, read)
    if content is None:
        if not calls and role not in ("tool", "function"):
            raise ConfigError(f"{name} has no content")
        content = ""
    found: dict[str, Any] = {"role": "system" if role == "developer" else str.__str__(role), "content": content}
    if isinstance(message.get("name"), str):
        found["name"] = message["name"]
    if calls:
        found["tool_calls"] = calls
    if role in ("tool", "function", "ipython", "observation"):
        found["tool_call_id"] = ids.of_result(message.get("tool_call_id"))
    given = [message.get(key) for key in ("reasoning_content", "reasoning", "thinking")]
    reasoning = next((text for text in given if isinstance(text, str) and text), reasoning)
    if role == "assistant" and reasoning:
        found["reasoning_content"] = reasoning
    return found


def _content(message: Mapping[str, Any], name: str, read: RequestMessages) -> tuple[Any, str]:
    """The content, None if there is none, and reasoning among its parts."""
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if content is None and message.get("audio") is not None:
        read.partial = True
        content = _PLACEHOLDERS["audio"]
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, (list, tuple)):
        raise ConfigError(f"{name} has a content that is neither text nor a list of parts")
    texts: list[str] = []
    reasoning: list[str] = []
    all_text = True
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type", "text") if isinstance(part, Mapping) else None
        text = part if isinstance(part, str) else _text_of(part, kind)
        if text is not None and kind in _REASONING:
            reasoning.append(text)
        elif text is not None:
            texts.append(text)
        else:
            all_text = False
            texts.append(_PLACEHOLDERS.get(str(kind), _UNKNOWN))
    if not all_text:
        read.partial = True
        return "\n".join(texts), "".join(reasoning)
    return [{"type": "text", "text": text} for text in texts], "".join(reasoning)


def _text_of(part: Any, kind: Any) -> str | None:
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        return None
    key = {**_TEXTS, **_REASONING}.get(kind)
    text = None if key is None else part.get(key, part.get("text"))
    return text if isinstance(text, str) else None


def _calls_of(message: Mapping[str, Any], name: str) -> list[Any]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, (list, tuple)):
        raise ConfigError(f"{name} has tool_calls that are no list")
    legacy = message.get("function_call")
    return [*calls, *([{"function": legacy}] if isinstance(legacy, Mapping) else [])]


def _call(call: Any, name: str, ids: _CallIds) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(f"{name} has a tool call without a name")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, (str, Mapping)):
        raise ConfigError(f"{name} has a tool call whose arguments are neither JSON text nor an object")
    return {
        "id": ids.of_call(call.get("id")),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments if isinstance(arguments, str) else {**arguments}},
    }


class _CallIds:
    """Replaces ids of tool calls: no model needs a server's, and Mistral's templates take none but nine characters."""

    def __init__(self) -> None:
        self._ours: dict[Any, str] = {}
        self._unanswered: list[str] = []
        self._calls = 0

    def of_call(self, id_: Any) -> str:
        self._calls += 1
        ours = f"call{self._calls:05d}"
        self._unanswered.append(ours)
        if isinstance(id_, str):
            self._ours[id_] = ours
        return ours

    def of_result(self, id_: Any) -> str:
        """The call's id; without one, a result belongs to the first call that has none."""
        ours = self._ours.get(id_) if isinstance(id_, str) else None
        ours = ours or next(iter(self._unanswered), f"call{self._calls:05d}")
        if ours in self._unanswered:
            self._unanswered.remove(ours)
        return ours


def arguments_as_object(arguments: Any) -> Any:
    """Arguments as an object, where they are one or the JSON text of one; else as they are."""
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments


def arguments_as_text(arguments: Any) -> str:
    """Arguments as JSON text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
