"""Which tool call a fragment belongs to, whatever way the server has of numbering them. Knows no socket."""

from __future__ import annotations

import json
from typing import Any

from ada_guard.delta import Fragment, ToolCall
from ada_guard.sources.wire import index_of, items_of, mapping_of, text_of

__all__ = ["ToolCalls"]


class ToolCalls:
    """The tool calls of one choice, by the place they have in the answer.

    Servers differ: id and name come once or with every fragment; the index is missing, or 0 for all calls of an answer;
    arguments come as a JSON text or as an object; the legacy ``function_call`` has neither index nor id.
    """

    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._places: dict[int, int] = {}
        self._begun: set[int] = set()

    def read(self, delta: dict[str, Any]) -> list[Fragment]:
        """The fragments of a delta's calls; one with an empty text where a call is only announced."""
        fragments = [self._fragment(mapping_of(item, "tool_calls")) for item in items_of(delta, "tool_calls")]
        if delta.get("function_call") is not None:
            function = mapping_of(delta["function_call"], "function_call")
            fragments.append(self._fragment({"index": 0, "function": function}))
        return fragments

    def _fragment(self, item: dict[str, Any]) -> Fragment:
        function = mapping_of(item.get("function") or {}, "function")
        id_, name, arguments = text_of(item, "id"), text_of(function, "name"), _arguments(function)
        place = self._place(item, id_, name)
        if place == len(self._calls):
            self._calls.append(ToolCall(index=place, id=id_ or None, name=name or None))
        else:
            known = self._calls[place]
            told = name and name != known.name  # a name that is not told again but goes on
            self._calls[place] = ToolCall(
                index=place, id=known.id or id_ or None, name=(known.name or "") + name if told else known.name
            )
        if arguments:
            self._begun.add(place)
        return Fragment(text=arguments, channel="tool_call", call=self._calls[place])

    def _place(self, item: dict[str, Any], id_: str, name: str) -> int:
        """Where the call stands: an old place, or the next one."""
        new = len(self._calls)
        if item.get("index") is None:
            if not id_:
                return new if not new or (name and new - 1 in self._begun) else new - 1
            return next((call.index for call in self._calls if call.id == id_), new)
        index = index_of(item, "index", default=0)
        place = self._places.setdefault(index, new)
        if place < new:
            known = self._calls[place].id
            # The next call under the number of the last one. An id that changes without a name is a server's slip.
            if id_ and name and known and id_ != known and place in self._begun:
                place = self._places[index] = next((call.index for call in self._calls if call.id == id_), new)
        return place


def _arguments(function: dict[str, Any]) -> str:
    value = function.get("arguments")
    if isinstance(value, dict):
        function = {"arguments": json.dumps(value, ensure_ascii=False)}
    return text_of(function, "arguments")
