"""What ada_guard's own sources say, as LlamaIndex's responses. Knows no source and no LLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from ada_guard import Done, Event, Halt, Release
from ada_guard.delta import Usage
from ada_guard.tool_forms import WrittenCall, call_id
from ada_guard.tool_text import CallReader
from llama_index.llms.ada_guard.cut import cut_chat
from llama_index.llms.ada_guard.structured import cut_error

__all__ = ["Spoken", "arguments_in", "as_completion"]

_WHOLE = frozenset({"stop", "tool_calls", "function_call"})
"""Why an answer ends that was not broken off."""


class Spoken:
    """One answer of a source of ada_guard. What is released passes at once; tool calls with the end of the answer.

    The last response has the token counts in ``raw`` under ``"usage"`` and, with the finish reason, in
    ``additional_kwargs``. A call whose arguments are no JSON object, because they are malformed or were broken off, is
    none that LlamaIndex could run: it stands there as text, under ``"invalid_tool_calls"``.

    Args:
        model_name: Stands in `raw` of the last response.
        raises: Whether the guard raises after a cut, so that nothing takes the place of the answer.
        wants_value: Whether a value is to be made of the answer, so that a cut is an error.
        reader: Finds calls in the text, where the model writes them there.
    """

    def __init__(
        self, *, model_name: str, raises: bool, wants_value: bool = False, reader: CallReader | None = None
    ) -> None:
        self._model_name = model_name
        self._raises = raises
        self._wants_value = wants_value
        self._reader = reader
        self._text = ""
        self._thinking = ""
        self._refusal = ""
        self._calls: list[WrittenCall] = []
        self._events: list[Event] = []

    def responses(self, event: Event) -> Iterator[ChatResponse]:
        """What passes with an event.

        Raises:
            ContentFlaggedError: The answer was cut, and a value was wanted.
            CheckError: It was cut because a check could not be made, and a value was wanted.
        """
        if isinstance(event, Release):
            yield from self._released(event)
            return
        self._events.append(event)
        if not isinstance(event, Done):
            return
        if not any(isinstance(each, Halt) for each in self._events):
            yield from self._end(event)
        elif not self._raises:
            if self._wants_value:
                raise cut_error(self._events)
            yield self._with_counts(cut_chat(self._events, bool(self._text.strip())), "content_filter", event.usage)

    def _released(self, event: Release) -> Iterator[ChatResponse]:
        if event.call is not None:
            self._calls.append(WrittenCall(name=event.call.name, arguments=event.text, id=event.call.id))
        elif event.channel == "reasoning":
            yield from self._thought(event.text)
        elif event.channel == "refusal":
            self._refusal += event.text
            yield self._so_far()
        else:
            yield from self._said(event.text if self._reader is None else self._reader.push(event.text))

    def _said(self, text: str) -> Iterator[ChatResponse]:
        self._text += text
        if text:
            yield self._so_far(text)

    def _thought(self, text: str) -> Iterator[ChatResponse]:
        self._thinking += text
        if text:
            response = self._so_far()
            response.additional_kwargs["thinking_delta"] = text
            yield response

    def _end(self, done: Done) -> Iterator[ChatResponse]:
        # A call without arguments that was broken off before them looks like one that takes none.
        broken = None if done.finish_reason in _WHOLE else len(self._calls) - 1
        if self._reader is not None:
            rest = self._reader.finish(done.token_ids)
            yield from self._thought(rest.reasoning)
            yield from self._said(rest.text)
            self._calls += rest.calls
        last, invalid = self._so_far(), []
        for at, call in enumerate(self._calls):
            values = None if at == broken and not call.arguments.strip() else call.values
            if call.name and values is not None:
                block = ToolCallBlock(tool_call_id=call_id(call), tool_name=call.name, tool_kwargs=values)
                last.message.blocks.append(block)
            else:
                invalid.append({"id": call.id, "name": call.name, "arguments": call.arguments})
        if invalid:
            last.additional_kwargs["invalid_tool_calls"] = invalid
        yield self._with_counts(last, done.finish_reason, done.usage)

    def _so_far(self, delta: str = "") -> ChatResponse:
        thinking = [ThinkingBlock(content=self._thinking)] if self._thinking else []
        message = ChatMessage(
            role=MessageRole.ASSISTANT,
            content=[*thinking, TextBlock(text=self._text)],
            additional_kwargs={"refusal": self._refusal} if self._refusal else {},
        )
        return ChatResponse(message=message, delta=delta)

    def _with_counts(self, response: ChatResponse, finish_reason: str, usage: Usage | None) -> ChatResponse:
        raw: dict[str, Any] = {"model": self._model_name, "finish_reason": finish_reason}
        counts: dict[str, Any] = {}
        if usage is not None:
            sent, said = usage.prompt_tokens or 0, usage.completion_tokens
            counts = {"prompt_tokens": sent, "completion_tokens": said, "total_tokens": sent + said}
            raw["usage"] = {**usage.details, **counts}
        about = {**response.additional_kwargs, "finish_reason": finish_reason, **counts}
        return response.model_copy(update={"raw": raw, "additional_kwargs": about})


def as_completion(response: ChatResponse) -> CompletionResponse:
    """The response to a completion that was asked for in a chat."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def arguments_in(block: ToolCallBlock) -> dict[str, Any] | None:
    """The arguments of a call; None where they are no JSON object: half a call is not repaired, nothing runs it."""
    if isinstance(block.tool_kwargs, dict):
        return block.tool_kwargs
    try:
        found = json.loads(block.tool_kwargs or "{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
