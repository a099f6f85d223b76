"""What of a LangChain message a guard must see, and where it stands in it. Knows no guard.

Providers put the words of a model into many places; which ones is data here. Whatever a user could read is seen, what
nobody reads (signatures, encrypted or encoded bytes, ids) is not, and neither are images and sounds: no guard here
judges those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from ada_guard.delta import Channel, Fragment, ToolCall

__all__ = ["CALLS", "MessageReader", "Place", "Seen", "arguments_text", "split"]

Place: TypeAlias = tuple[str, ...] | tuple[str, int, str]
"""The way to a text in a message: ``("content",)``, ``("content", 0, "text")``, ``("additional_kwargs", key)``."""
Message = TypeVar("Message", bound=BaseMessage)

_TEXTS: Mapping[str, tuple[Channel, tuple[str, ...]]] = {
    "text": ("text", ("text",)),
    "output_text": ("text", ("text",)),
    "text-plain": ("text", ("text",)),
    "refusal": ("refusal", ("refusal",)),
    "thinking": ("reasoning", ("thinking",)),
    "reasoning": ("reasoning", ("reasoning", "summary", "content")),
    "reasoning_content": ("reasoning", ("reasoning_content",)),
    "input_json_delta": ("text", ("partial_json",)),
    "server_tool_call_chunk": ("text", ("args",)),
}
"""Kinds of content blocks that hold a text, or pieces of one: the channel it belongs to, and its keys."""
_SERVED = frozenset(
    {
        *("server_tool_use", "server_tool_call", "server_tool_call_chunk", "server_tool_result", "tool_result"),
        *("mcp_tool_use", "mcp_tool_result", "mcp_call", "mcp_list_tools"),
        *("web_search_call", "web_search_tool_result", "web_fetch_tool_result", "file_search_call"),
        *("code_interpreter_call", "code_execution_tool_result", "bash_code_execution_tool_result"),
        *("text_editor_code_execution_tool_result", "executable_code", "code_execution_result"),
        *("tool_search_call", "tool_search_output", "tool_search_tool_result", "image_generation_call"),
        *("citation", "search_result", "compaction", "redacted_thinking", "guard_content"),
    }
)
"""Kinds that a provider has acted on itself: nothing runs because of them, so they pass as soon as they are checked."""
CALLS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "custom_tool_call"}
    | {"input_json_delta"}
)
"""Kinds of content blocks that stand a second time among the tool calls of a message."""
_MEDIA = frozenset({"image", "image_url", "audio", "video", "file", "media"})
_BYTES: Mapping[str, str] = {"image_generation_call": "result"}
"""Kinds in which a key that elsewhere holds words holds encoded bytes."""
_BESIDE: Mapping[str, Channel] = {
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "reasoning_details": "reasoning",
    "refusal": "refusal",
    "audio": "text",
}
"""Keys of ``additional_kwargs`` under which pieces of what a model said come; other keys hold something complete."""
_REPEATED = frozenset({"function_call", "tool_calls", "parsed"})
"""Keys of ``additional_kwargs`` that repeat what stands elsewhere."""
_TECHNICAL = frozenset(
    {
        *("type", "id", "index", "role", "phase", "status", "outcome", "format", "language", "mime_type", "media_type"),
        *("signature", "thought_signature", "data", "base64", "bytes", "encrypted_content", "encrypted_index"),
        *("encrypted_stdout", "call_id", "item_id", "tool_use_id", "tool_call_id", "file_id", "container_id"),
        *("cache_control", "source_type", "finish_reason", "stop_reason", "system_fingerprint", "model", "caller"),
    }
)
"""Keys whose texts nobody reads."""
_ARGUMENTS = frozenset({"input", "args", "arguments"})
"""Keys of what a model wrote with keys of its own choice."""
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,[\w+/=-]*", re.ASCII)
_KEPT_IN_BOTH = ("model_provider", "output_version")
"""Response metadata that say how content is to be read; LangChain merges equal ones to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one message, or one chunk, holds for the guard.

    Attributes:
        fragments: In the order in which they are to be read.
        place: Where the text stands, if there is exactly one and the message may be split in it.
        whole: Whether it may only be shown when the whole answer is: it holds a piece of a tool call, or something that
            nobody here knows.
    """

    fragments: tuple[Fragment, ...] = ()
    place: Place | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    fragment: Fragment
    place: Place | None = None
    known: bool = True


@dataclass(slots=True)
class MessageReader:
    """Reads the chunks of one answer in order."""

    _calls: list[tuple[object, object]] = field(default_factory=list, init=False)
    _served: set[object] = field(default_factory=set, init=False)

    def read(self, message: BaseMessage) -> Seen:
        """What the guard must see of the next chunk."""
        calls = list(self._tool_calls(message))
        found = [*_beside(message), *self._content(message, called=bool(calls))]
        whole = bool(calls) or not all(text.known for text in found)
        place = found[0].place if len(found) == 1 and not whole else None
        return Seen(fragments=(*(text.fragment for text in found), *calls), place=place, whole=whole)

    def _content(self, message: BaseMessage, *, called: bool) -> Iterator[_Found]:
        if isinstance(message.content, str):
            if message.content:
                yield _Found(Fragment(text=message.content), ("content",))
            return
        for block in message.content:
            if isinstance(block, str):
                if block:
                    yield _Found(Fragment(text=block))
                continue
            inner = block.get("value")
            if block.get("type") == "non_standard" and isinstance(inner, dict):
                yield from self._block({"index": block.get("index"), **inner}, called=called)
                continue
            for found in self._block(block, called=called):
                alone = len(message.content) == 1 and _merges(block.get("index"))
                yield found if alone else _Found(found.fragment, None, found.known)

    def _block(self, block: Mapping[str, Any], *, called: bool) -> Iterator[_Found]:
        kind, index = str(block.get("type", "text")), block.get("index")
        if kind in _SERVED:
            self._served.add(index)
        served = kind in _SERVED or (kind == "input_json_delta" and index in self._served)
        if kind in _MEDIA or (called and kind in CALLS and not served):
            return
        channel, keys = _TEXTS.get(kind, ("text", ()))
        for key in keys:
            text = block.get(key)
            if isinstance(text, str) and text:
                yield _Found(Fragment(text=text, channel=channel), ("content", 0, key), served or kind not in CALLS)
            elif words := "".join(_words(text)):
                yield _Found(Fragment(text=words, channel=channel))
        beside = {key: value for key, value in block.items() if key not in (*keys, _BYTES.get(kind))}
        if words := "\n".join(_words(beside)):
            fragment = Fragment(text=f"\n{words}\n", channel="reasoning" if channel == "reasoning" else "text")
            yield _Found(fragment, known=served or kind in _TEXTS)

    def _tool_calls(self, message: BaseMessage) -> Iterator[Fragment]:
        if not isinstance(message, AIMessage):
            return
        if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
            for chunk in message.tool_call_chunks:
                yield self._call(chunk.get("index"), chunk.get("id"), chunk.get("name"), chunk.get("args") or "")
            return
        found: list[Any] = [*message.tool_calls, *message.invalid_tool_calls]
        for call in found:
            yield self._call(None, call.get("id"), call.get("name"), arguments_text(call.get("args")))
        if found:
            return
        raw = message.additional_kwargs
        legacy = raw.get("function_call")
        for call in [*_dicts(raw.get("tool_calls")), *([{"function": legacy, "index": -1}] if legacy else [])]:
            function: Any = call.get("function")
            function = function if isinstance(function, dict) else {}
            said = arguments_text(function.get("arguments"))
            yield self._call(call.get("index"), call.get("id"), function.get("name"), said)

    def _call(self, index: object, id_: object, name: object, arguments: str) -> Fragment:
        call = ToolCall(
            index=self._number(index, id_),
            id=id_ if isinstance(id_, str) and id_ else None,
            name=name if isinstance(name, str) and name else None,
        )
        return Fragment(text=arguments, channel="tool_call", call=call)

    def _number(self, index: object, id_: object) -> int:
        """Calls are numbered as they appear, and told apart as LangChain does that when it adds chunks up."""
        for number, (known, known_id) in enumerate(self._calls if _merges(index) else ()):
            if known == index and (not known_id or not id_ or known_id == id_):
                self._calls[number] = (index, known_id or id_)
                return number
        self._calls.append((index, id_))
        return len(self._calls) - 1


def split(message: Message, place: Place, characters: int) -> tuple[Message, Message]:
    """A chunk as two that merge to it again; everything beside the text goes with the second.

    Args:
        message: The chunk.
        place: Where its text stands.
        characters: How many of it the first one gets.
    """
    text = _at(message, place)
    said = {key: message.response_metadata[key] for key in _KEPT_IN_BOTH if key in message.response_metadata}
    bare: dict[str, Any] = {"content": "" if isinstance(message.content, str) else []}
    bare |= {"additional_kwargs": {}, "response_metadata": said}
    bare |= {name: None for name in ("usage_metadata", "chunk_position") if name in type(message).model_fields}
    first = message.model_copy(update={**bare, **_put(message, place, text[:characters], alone=True)})
    return first, message.model_copy(update=_put(message, place, text[characters:], alone=False))


def arguments_text(arguments: object) -> str:
    """Arguments of a tool call as JSON text."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)


def _beside(message: BaseMessage) -> Iterator[_Found]:
    """The words in ``additional_kwargs``."""
    held = message.additional_kwargs
    for key, value in held.items():
        if key in _TECHNICAL or key in _REPEATED or key.startswith("__"):
            continue
        if key == "reasoning_details" and held.get("reasoning_content"):
            continue  # the same once more
        channel = _BESIDE.get(key, "text")
        if isinstance(value, str) and value:
            yield _Found(Fragment(text=value, channel=channel), ("additional_kwargs", key))
        elif key in _BESIDE and (words := "".join(_words(value))):
            yield _Found(Fragment(text=words, channel=channel))
        elif words := "\n".join(_words(value)):
            yield _Found(Fragment(text=f"\n{words}\n", channel=channel))


def _words(value: object) -> Iterator[str]:
    """The texts in a nested value, those of technical keys aside."""
    if isinstance(value, str):
        if value and not _DATA_URL.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _ARGUMENTS and isinstance(inner, Mapping | list):
                yield from [arguments_text(inner)] if inner else []
            elif key not in _TECHNICAL:
                yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _merges(index: object) -> bool:
    """Whether LangChain adds blocks, or calls, of this index up to one."""
    return isinstance(index, int) or (isinstance(index, str) and index.startswith("lc_"))


def _at(message: BaseMessage, place: Place) -> str:
    if place == ("content",):
        return str(message.content)
    if place[0] == "additional_kwargs":
        return str(message.additional_kwargs[str(place[1])])
    block = message.content[0]
    assert isinstance(block, dict)
    return str(block[place[-1]])


def _put(message: BaseMessage, place: Place, text: str, *, alone: bool) -> dict[str, Any]:
    if place == ("content",):
        return {"content": text}
    if place[0] == "additional_kwargs":
        others = {} if alone else message.additional_kwargs
        return {"additional_kwargs": {**others, str(place[1]): text}}
    block = message.content[0]
    assert isinstance(block, dict)
    others = {key: block[key] for key in ("type", "index") if key in block} if alone else block
    return {"content": [{**others, str(place[-1]): text}]}
