"""The tool calls of an answer, numbered and named as LangChain adds their chunks up. Knows no guard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from ada_guard.delta import Fragment, ToolCall
from ada_guard.errors import GenerationError
from ada_guard.sidecar.channels import Part
from langchain_ada_guard.words import arguments_text

__all__ = ["Calls", "Told", "is_merged", "raw_calls", "told_calls"]


@dataclass(frozen=True, slots=True)
class Told:
    """What one message tells of a tool call."""

    index: object
    id: object
    name: object
    arguments: str


@dataclass(slots=True)
class _Call:
    index: object
    id: object
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def complete(self) -> bool:
        """Whether the guard takes it for complete, once something else comes."""
        part = Part("tool_call", ToolCall(index=0))
        part.read("".join(self.arguments))
        return part.complete()


class Calls:
    """The tool calls of one answer, read from its chunks in order."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._latest: int | None = None

    def leave(self) -> None:
        """Notes that something else was written."""
        self._latest = None

    def read(self, told: Sequence[Told]) -> list[Fragment]:
        """What the guard must see of them: with each piece of a call its name as far as it is told.

        Raises:
            GenerationError: The name of a call goes on that was complete, and judged under what it was.
        """
        return [self._read(one) for one in told]

    def _read(self, told: Told) -> Fragment:
        number = self._number(told)
        call = self._calls[number]
        if isinstance(told.name, str) and told.name:
            if number != self._latest and call.complete():
                raise GenerationError("the model went on with the name of a tool call that was complete")
            call.name += told.name
        call.arguments.append(told.arguments)
        self._latest = number
        known = ToolCall(
            index=number, id=told.id if isinstance(told.id, str) and told.id else None, name=call.name or None
        )
        return Fragment(text=told.arguments, channel="tool_call", call=known)

    def _number(self, told: Told) -> int:
        """Calls are numbered as they appear, and told apart as LangChain does that when it adds chunks up."""
        for number, known in enumerate(self._calls if is_merged(told.index) else ()):
            if known.index == told.index and (not known.id or not told.id or known.id == told.id):
                known.id = known.id or told.id
                return number
        self._calls.append(_Call(told.index, told.id))
        return len(self._calls) - 1


def told_calls(message: BaseMessage) -> list[Told]:
    """What a message, or a chunk, tells of tool calls, wherever it does."""
    if not isinstance(message, AIMessage):
        return []
    if isinstance(message, AIMessageChunk) and message.tool_call_chunks:
        return [
            Told(chunk.get("index"), chunk.get("id"), chunk.get("name"), chunk.get("args") or "")
            for chunk in message.tool_call_chunks
        ]
    standard: list[Any] = [*message.tool_calls, *message.invalid_tool_calls]
    if standard:
        return [Told(None, call.get("id"), call.get("name"), arguments_text(call.get("args"))) for call in standard]
    return [Told(index, id_, name, arguments_text(arguments)) for index, id_, name, arguments in _raw(message)]


def raw_calls(message: BaseMessage) -> Iterator[tuple[object, object]]:
    """Names and arguments of the calls in a provider's own form, arguments as values where they are whole."""
    for _, _, name, arguments in _raw(message):
        try:
            yield name, json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            yield name, arguments


def is_merged(index: object) -> bool:
    """Whether LangChain adds blocks, or calls, of this index up to one."""
    return isinstance(index, int) or (isinstance(index, str) and index.startswith("lc_"))


def _raw(message: BaseMessage) -> Iterator[tuple[object, object, object, object]]:
    raw = message.additional_kwargs
    calls, legacy = raw.get("tool_calls"), raw.get("function_call")
    listed = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for call in [*listed, *([{"function": legacy, "index": -1}] if legacy else [])]:
        function: Any = call.get("function")
        function = function if isinstance(function, dict) else {}
        yield call.get("index"), call.get("id"), function.get("name"), function.get("arguments")
