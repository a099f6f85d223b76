"""What of a LangChain message a guard must see, and where it stands in it. Knows no guard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from ada_guard.delta import Channel, Fragment, ToolCall

__all__ = ["MessageReader", "Place", "Seen", "arguments_text", "split"]

Place: TypeAlias = tuple[str, ...] | tuple[str, int, str]
"""The way to a text in a message: ``("content",)``, ``("content", 0, "text")``, ``("additional_kwargs", key)``."""
Message = TypeVar("Message", bound=BaseMessage)

_BLOCKS: Mapping[str, tuple[str, Channel]] = {
    "text": ("text", "text"),
    "output_text": ("text", "text"),
    "refusal": ("refusal", "refusal"),
    "thinking": ("thinking", "reasoning"),
    "reasoning": ("reasoning", "reasoning"),
}
"""Kinds of content blocks that hold one text: its key, and the channel it belongs to."""
_KWARGS: Mapping[str, Channel] = {"reasoning_content": "reasoning", "reasoning": "reasoning", "refusal": "refusal"}
"""Keys of ``additional_kwargs`` under which chat models keep what the model said beside its text."""
_CALLS = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "input_json_delta"}
)
_MEDIA = frozenset({"image", "image_url", "audio", "video", "file", "image_generation_call"})
_TECHNICAL = frozenset(
    {"type", "id", "index", "signature", "encrypted_content", "data", "base64", "mime_type", "status"}
)
"""Keys whose texts nobody reads."""


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


@dataclass(slots=True)
class MessageReader:
    """Reads the chunks of one answer in order."""

    _calls: list[object] = field(default_factory=list, init=False)

    def read(self, message: BaseMessage) -> Seen:
        """What the guard must see of the next chunk."""
        calls = list(self._tool_calls(message))
        texts = [*_beside(message), *_content(message, called=bool(calls))]
        fragments = tuple(fragment for fragment, _ in texts)
        whole = bool(calls) or any(place is None for _, place in texts)
        place = texts[0][1] if len(texts) == 1 and not calls and _splits(message, texts[0][1]) else None
        return Seen(fragments=(*fragments, *calls), place=place, whole=whole)

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
        for call in [*_dicts(raw.get("tool_calls")), *([{"function": legacy}] if legacy else [])]:
            function: Any = call.get("function")
            function = function if isinstance(function, dict) else {}
            said = arguments_text(function.get("arguments"))
            yield self._call(call.get("index"), call.get("id"), function.get("name"), said)

    def _call(self, index: object, id_: object, name: object, arguments: str) -> Fragment:
        """Calls are numbered as they appear; without an index each is one of its own."""
        key = object() if index is None else index
        if key not in self._calls:
            self._calls.append(key)
        call = ToolCall(
            index=self._calls.index(key),
            id=id_ if isinstance(id_, str) and id_ else None,
            name=name if isinstance(name, str) and name else None,
        )
        return Fragment(text=arguments, channel="tool_call", call=call)


def split(message: Message, place: Place, characters: int) -> tuple[Message, Message]:
    """A chunk as two that merge to it again; everything beside the text goes with the second.

    Args:
        message: The chunk.
        place: Where its text stands.
        characters: How many of it the first one gets.
    """
    text = _at(message, place)
    bare = {"additional_kwargs": {}, "response_metadata": {}, "content": "" if isinstance(message.content, str) else []}
    for name in ("usage_metadata", "chunk_position"):
        if name in type(message).model_fields:
            bare[name] = None  # type: ignore[assignment]  # the fields are of several types
    first = message.model_copy(update={**bare, **_put(message, place, text[:characters], alone=True)})
    return first, message.model_copy(update=_put(message, place, text[characters:], alone=False))


def arguments_text(arguments: object) -> str:
    """Arguments of a tool call as JSON text."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)


def _content(message: BaseMessage, *, called: bool) -> Iterator[tuple[Fragment, Place | None]]:
    if isinstance(message.content, str):
        if message.content:
            yield Fragment(text=message.content), ("content",)
        return
    for at, block in enumerate(message.content):
        if isinstance(block, str):
            if block:
                yield Fragment(text=block), ("content", at, "")
            continue
        kind = str(block.get("type"))
        key, channel = _BLOCKS.get(kind, ("", "text"))
        text = block.get(key)
        if isinstance(text, str):
            if text:
                yield Fragment(text=text, channel=channel), ("content", at, key)
            block = {name: value for name, value in block.items() if name not in (key, "annotations", "extras")}
        elif kind in _MEDIA or (called and kind in _CALLS):
            continue
        # A kind that nobody here knows, or more than the text of one that is known: its words are read like text.
        words = "\n".join(_words(block))
        if words:
            yield Fragment(text=words, channel="reasoning" if channel == "reasoning" else "text"), None


def _beside(message: BaseMessage) -> Iterator[tuple[Fragment, Place | None]]:
    for key, channel in _KWARGS.items():
        value = message.additional_kwargs.get(key)
        if isinstance(value, str) and value:
            yield Fragment(text=value, channel=channel), ("additional_kwargs", key)
        elif value and (words := "\n".join(_words(value))):
            yield Fragment(text=words, channel=channel), None
    audio = message.additional_kwargs.get("audio")
    if isinstance(audio, dict) and isinstance(audio.get("transcript"), str) and audio["transcript"]:
        yield Fragment(text=audio["transcript"]), None


def _words(value: object) -> Iterator[str]:
    """The texts in a nested value, those of technical keys aside."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in _TECHNICAL:
                yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _splits(message: BaseMessage, place: Place | None) -> bool:
    """Whether two halves merge to the whole again: blocks do where they have an index and nothing beside their text."""
    if place is None or place[0] != "content" or len(place) == 1:
        return place is not None
    block = message.content[0]
    return (
        len(message.content) == 1
        and isinstance(block, dict)
        and block.get("index") is not None
        and set(block) == {"type", "index", place[-1]}
    )


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
    return {"content": [{**block, place[-1]: text}]}
