"""What of a LangChain message a guard must see, and where it stands in it. Knows no guard.

Providers put the words of a model into many places; which ones is data here. Whatever a user could read is seen, what
nobody reads (signatures, encrypted or encoded bytes, ids) is not, and neither are images and sounds: no guard here
judges those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from langchain_core.messages import BaseMessage

from ada_guard.delta import Channel, Fragment
from langchain_ada_guard.calls import Calls, is_merged, raw_calls, told_calls
from langchain_ada_guard.words import is_code, is_technical, repeats, words

__all__ = ["CALLS", "MessageReader", "Place", "Seen", "split"]

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
_MEDIA = frozenset({"image", "image_url", "audio", "input_audio", "video", "file", "media"})
_CAPTIONS = ("alt", "caption", "context", "description", "title", "transcript")
"""Keys of media that hold words."""
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
"""Keys of ``additional_kwargs`` that repeat what stands elsewhere, and are read where they do not."""
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

    _calls: Calls = field(default_factory=Calls, init=False)
    _served: set[object] = field(default_factory=set, init=False)
    _said: list[str] = field(default_factory=list, init=False)
    _name: str = field(default="", init=False)

    def read(self, message: BaseMessage) -> Seen:
        """What the guard must see of the next chunk.

        Raises:
            GenerationError: It goes on with the name of a tool call that was complete.
        """
        told = told_calls(message)
        found = [*self._beside(message), *self._content(message, called=bool(told))]
        if found:
            self._calls.leave()
        calls = self._calls.read(told)
        now = [text.fragment.text for text in found]
        now += [text for call in calls if call.call for text in (call.call.name or "", call.text)]
        self._said += now
        found += self._repeated(message, "\n".join(now))
        whole = bool(calls) or not all(text.known for text in found)
        place = found[0].place if len(found) == 1 and not whole else None
        return Seen(fragments=(*(text.fragment for text in found), *calls), place=place, whole=whole)

    def _beside(self, message: BaseMessage) -> Iterator[_Found]:
        """The words beside the content."""
        if message.name and message.name != self._name and not is_code(message.name):
            yield _Found(Fragment(text=f"\n{message.name}\n"))
        self._name = message.name or self._name
        held = message.additional_kwargs
        for key, value in held.items():
            if key in _REPEATED or is_technical(key, value, known=False):
                continue
            if key == "reasoning_details" and held.get("reasoning_content"):
                continue  # the same once more
            channel, known = _BESIDE.get(key, "text"), key in _BESIDE
            if isinstance(value, str) and value:
                yield _Found(Fragment(text=value, channel=channel), ("additional_kwargs", key))
            elif known and (texts := "".join(words(value))):
                yield _Found(Fragment(text=texts, channel=channel))
            elif texts := "\n".join(words(value, known=known)):
                yield _Found(Fragment(text=f"\n{texts}\n", channel=channel))
        if texts := "\n".join(words(message.model_extra or {}, known=False)):
            yield _Found(Fragment(text=f"\n{texts}\n"))

    def _repeated(self, message: BaseMessage, now: str) -> Iterator[_Found]:
        """What should repeat what was said, and does not."""
        beside = message.additional_kwargs
        again = [beside[key] for key in ("parsed",) if beside.get(key)]
        again += raw_calls(message)
        for value in again:
            # The whole answer is put together only where the chunk alone does not say it.
            if not (repeats(value, now) or repeats(value, "".join(self._said))):
                yield _Found(Fragment(text="\n".join(["", *words(value, known=False), ""])), known=False)

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
                alone = len(message.content) == 1 and is_merged(block.get("index"))
                yield found if alone else _Found(found.fragment, None, found.known)

    def _block(self, block: Mapping[str, Any], *, called: bool) -> Iterator[_Found]:
        kind, index = str(block.get("type", "text")), block.get("index")
        if kind in _SERVED:
            self._served.add(index)
        served = kind in _SERVED or (kind == "input_json_delta" and index in self._served)
        if kind in _MEDIA:
            # Pictures and sounds are not judged here, what is written beside them is.
            if texts := "\n".join(words([block.get(key) for key in _CAPTIONS], known=False)):
                yield _Found(Fragment(text=f"\n{texts}\n"))
            return
        if called and kind in CALLS and not served:
            return
        channel, keys = _TEXTS.get(kind, ("text", ()))
        for key in keys:
            text = block.get(key)
            if isinstance(text, str) and text:
                yield _Found(Fragment(text=text, channel=channel), ("content", 0, key), served or kind not in CALLS)
            elif texts := "".join(words(text)):
                yield _Found(Fragment(text=texts, channel=channel))
        beside = {key: value for key, value in block.items() if key not in (*keys, _BYTES.get(kind))}
        known = kind in _TEXTS or kind in _SERVED or kind in CALLS
        if texts := "\n".join(words(beside, known=known)):
            fragment = Fragment(text=f"\n{texts}\n", channel="reasoning" if channel == "reasoning" else "text")
            yield _Found(fragment, known=served or kind in _TEXTS)


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
    kept = {"type", "index", place[-1]} if alone else block.keys()
    return {"content": [{key: text if key == place[-1] else value for key, value in block.items() if key in kept}]}
