"""The JSON of ``/v1/chat/completions`` and ``/v1/completions`` streams, read into deltas. Knows no socket.

Lenient about what servers add and leave out, strict about what a guard must not guess: a field of the wrong type, text
behind an end, a choice nobody asked for are errors. Their messages name the field, never its content. Fields that only
mirror text (``logprobs``, ``provider_specific_fields``) are dropped.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

from ada_guard.delta import Channel, Delta, Fragment, Usage
from ada_guard.errors import GenerationError
from ada_guard.sources.faults import short_identifier
from ada_guard.sources.sse import ServerEvent
from ada_guard.sources.tool_calls import ToolCalls
from ada_guard.sources.wire import index_of, ints_of, items_of, mapping_of, text_of, unreadable

__all__ = ["API", "Chunks"]

API: TypeAlias = Literal["chat", "completions"]

PART_CHANNELS: dict[str, Channel] = {
    "text": "text",
    "output_text": "text",
    "thinking": "reasoning",
    "reasoning": "reasoning",
    "refusal": "refusal",
}
"""Kinds of content parts that are text. Others (images, references) are dropped: what is not seen is not released."""


class Chunks:
    """Reads the chunks of one response.

    Args:
        api: Which API answers.
        choices: How many choices were asked for.

    Attributes:
        finish_reasons: By choice, of those that have ended.
        usage: The server's last count, or None.
        prompt_token_ids: Where the server gives them.
        response_id: The server's id of the response, if it is a short identifier.
        done: Whether ``[DONE]`` has come.
    """

    def __init__(self, api: API, *, choices: int = 1) -> None:
        self._api: API = api
        self._choices = choices
        self._calls = [ToolCalls() for _ in range(choices)]
        self._usages: dict[int, Usage] = {}
        self.finish_reasons: dict[int, str] = {}
        self.usage: Usage | None = None
        self.prompt_token_ids: tuple[int, ...] | None = None
        self.response_id: str | None = None
        self.done = False

    @property
    def ended(self) -> bool:
        """Whether every choice has ended."""
        return len(self.finish_reasons) == self._choices

    def read(self, event: ServerEvent) -> list[Delta]:
        """What an event adds; empty for keep-alives, roles and ``[DONE]``.

        Raises:
            GenerationError: The server reports an error, or the chunk cannot be read.
        """
        data = event.data.strip()
        if data == "[DONE]":
            self.done = True
        if self.done or not data:
            return []
        chunk = _parse(data)
        if chunk is None:
            raise unreadable("it is not a JSON object")
        if event.type == "error" or chunk.get("error") or chunk.get("object") == "error":
            raise reported(chunk)
        if "choices" not in chunk and chunk.get("usage") is None:
            if event.type != "message":
                return []  # a ping, or another event of a kind that is not ours
            raise unreadable("field 'choices' is missing")
        self.response_id = self.response_id or short_identifier(chunk.get("id"))
        if chunk.get("prompt_token_ids") is not None:
            self.prompt_token_ids = ints_of(chunk, "prompt_token_ids")
        deltas = [self._choice(mapping_of(choice, "choices")) for choice in items_of(chunk, "choices")]
        usage = self._count(chunk, deltas)
        if usage is not None:
            last = deltas.pop() if deltas else Delta()
            deltas.append(_with_usage(last, usage))
        return [delta for delta in deltas if delta != Delta(choice=delta.choice)]

    def forget(self) -> None:
        """Drops the text that is kept to read further chunks."""
        self._calls = [ToolCalls() for _ in range(self._choices)]

    def _choice(self, choice: dict[str, Any]) -> Delta:
        index = index_of(choice, "index", default=0)
        if index >= self._choices:
            raise unreadable("field 'index' names a choice that was not asked for")
        fragments = self._delta(choice, index) if self._api == "chat" else _completion(choice)
        token_ids = ints_of(choice, "token_ids")
        if choice.get("prompt_token_ids") is not None:
            self.prompt_token_ids = ints_of(choice, "prompt_token_ids")
        said = text_of(choice, "finish_reason")
        # It is shown unchecked: whatever is no plain word says only that the answer has ended.
        finish_reason = (short_identifier(said) or "stop") if said else None
        if index in self.finish_reasons:
            if fragments:
                raise unreadable("text behind the end of its choice")
            return Delta(choice=index)  # some servers repeat the end
        if finish_reason is not None:
            self.finish_reasons[index] = finish_reason
        return Delta(fragments=tuple(fragments), choice=index, token_ids=token_ids, finish_reason=finish_reason)

    def _delta(self, choice: dict[str, Any], index: int) -> list[Fragment]:
        if choice.get("delta") is None and choice.get("message") is not None:
            raise unreadable("field 'delta' is missing")
        delta = mapping_of(choice.get("delta") or {}, "delta")
        # Servers that are renaming the field send the same text under both names.
        reasoning = text_of(delta, "reasoning_content") or text_of(delta, "reasoning")
        fragments = [Fragment(text=reasoning, channel="reasoning")] if reasoning else []
        content = delta.get("content")
        if isinstance(content, list):
            fragments += _parts(content)
        elif text := text_of(delta, "content"):
            fragments.append(Fragment(text=text))
        if refusal := text_of(delta, "refusal"):
            fragments.append(Fragment(text=refusal, channel="refusal"))
        return fragments + self._calls[index].read(delta)

    def _count(self, chunk: dict[str, Any], deltas: list[Delta]) -> Usage | None:
        """Takes the chunk's usage. With several choices in one response, a running count is that of its choice."""
        if chunk.get("usage") is None:
            return None
        usage = _usage(mapping_of(chunk["usage"], "usage"))
        if usage is None:
            return None
        if self._choices == 1 or not deltas:
            self.usage = usage
        else:
            self._usages[deltas[-1].choice] = usage
            completion_tokens = sum(each.completion_tokens for each in self._usages.values())
            self.usage = Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=completion_tokens, estimated=True)
        return self.usage


def _parse(data: str) -> dict[str, Any] | None:
    # Nothing is raised from inside the handler: a JSON error carries the whole document.
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def reported(chunk: dict[str, Any]) -> GenerationError:
    """The error of an error object: its identifiers, if they are that, and never its message."""
    error = chunk.get("error")
    error = error if isinstance(error, dict) else chunk
    words = [short_identifier(error.get(name)) for name in ("code", "type")]
    word = next((word for word in words if word), None)
    return GenerationError(
        f"the endpoint reported an error in mid-stream{f' ({word})' if word else ''}: its own log has the reason"
    )


def _completion(choice: dict[str, Any]) -> list[Fragment]:
    text = text_of(choice, "text")
    return [Fragment(text=text)] if text else []


def _parts(content: list[Any]) -> list[Fragment]:
    fragments = []
    for item in content:
        part = mapping_of(item, "content")
        kind = text_of(part, "type")
        channel = PART_CHANNELS.get(kind)
        if channel is None:
            continue
        field = kind if kind in part else "text"
        inner = part.get(field)
        if isinstance(inner, list):  # Mistral nests the parts of a thought
            fragments += [Fragment(text=each.text, channel=channel) for each in _parts(inner)]
        elif text := text_of(part, field):
            fragments.append(Fragment(text=text, channel=channel))
    return fragments


def _usage(usage: dict[str, Any]) -> Usage | None:
    if usage.get("completion_tokens") is None:
        return None  # what has only begun to be counted
    return Usage(
        prompt_tokens=None if usage.get("prompt_tokens") is None else index_of(usage, "prompt_tokens", default=0),
        completion_tokens=index_of(usage, "completion_tokens", default=0),
        details=_numbers({key: usage[key] for key in usage.keys() - {"prompt_tokens", "completion_tokens"}}),
    )


def _numbers(details: dict[str, Any], *, depth: int = 0) -> dict[str, Any]:
    """The counts among the details: usage is kept after a cut, so no text may hide in it."""
    kept: dict[str, Any] = {}
    for key, value in details.items():
        if short_identifier(key) is None:
            continue
        if type(value) in {int, float}:
            kept[key] = value
        elif isinstance(value, dict) and depth < 2:
            kept[key] = _numbers(value, depth=depth + 1)
    return dict(sorted(kept.items()))


def _with_usage(delta: Delta, usage: Usage) -> Delta:
    return Delta(
        fragments=delta.fragments,
        choice=delta.choice,
        token_ids=delta.token_ids,
        finish_reason=delta.finish_reason,
        usage=usage,
    )
