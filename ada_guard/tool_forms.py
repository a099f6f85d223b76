"""The forms in which families of models write tool calls as text, as data; and what a text in them says.

Knows no tokenizer and no stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

__all__ = ["FORMS", "INNER", "OPENERS", "THOUGHTS", "WrittenCall", "call_id", "object_call", "read_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How a family writes a call: what opens it, and what closes it where anything does."""

    opens: str
    closes: str | None = None


FORMS = (
    CallForm(opens="<tool_call>", closes="</tool_call>"),  # Hermes 2 Pro, Qwen 2.5 and 3, SmolLM3: an object in tags
    CallForm(opens="[TOOL_CALLS]"),  # Mistral: a list of objects; from v11 on a name and its arguments
    CallForm(opens="<|python_tag|>"),  # Llama 3.1: an object behind it, or several with ";" between
)
"""Forms with a marker. Llama 3's plain form has none: the whole answer is one object."""
OPENERS = tuple(form.opens for form in FORMS)
_CLOSERS = {form.opens: form.closes for form in FORMS}
INNER = ("[ARGS]", "[CALL_ID]")
"""Special tokens between a name and its arguments, in Mistral's form."""
_NAMED = re.compile(r"\s*+([\w.:/-]++)\s*+(?:\[CALL_ID\]\s*+(\w++)\s*+)?(?:\[ARGS\])?\s*+(?=\{)")
_BEGINS = re.compile(rf"\s*[\[{{]|{_NAMED.pattern}")
THOUGHTS = {"<think>": "</think>", "[THINK]": "[/THINK]"}
"""Markers around thoughts, the latter Mistral's."""
_MARKS = re.compile(
    "|".join(re.escape(mark) for mark in (*OPENERS, *_CLOSERS.values(), *THOUGHTS, *THOUGHTS.values()) if mark)
)
_CALLS_AGAIN = re.compile(rf"\s*(?:{'|'.join(map(re.escape, OPENERS))})")
_SPACE = re.compile(r"\s*+")
_BETWEEN = re.compile(r"\s*[,;]")
_IS_JSON = re.compile(r"[\[{]\s*[\"{]")
_BARE_KEYS = frozenset({"name", "type", "id", "arguments", "parameters"})
_BESIDE = r"(?:\"(?:type|id)\"\s*:\s*\"[^\"]*\"\s*,\s*)*+"
_HALF_BARE = re.compile(
    rf"(?:\[\s*)?\{{\s*{_BESIDE}\"name\"\s*:\s*\"([^\"]*)\"\s*,\s*{_BESIDE}\"(?:arguments|parameters)\""
)
_NAME = re.compile(r"\"name\"\s*:\s*\"([^\"]*)\"")
_JSON = json.JSONDecoder(strict=False)
"""Models write line breaks into strings as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCall:
    """A call that a model wrote.

    Attributes:
        name: Of the tool; None where it could not be read.
        arguments: JSON text, or what the model wrote in its place.
        id: Where the model gave one.
    """

    name: str | None = field(repr=False)
    arguments: str = field(repr=False)
    id: str | None = field(default=None, repr=False)

    @property
    def values(self) -> dict[str, Any] | None:
        """The arguments, read; None if they are no JSON object or nothing was called by name: nothing may run that."""
        try:
            found = json.loads(self.arguments.strip() or "{}")
        except (ValueError, RecursionError):
            return None
        return found if self.name and isinstance(found, dict) else None


def read_calls(text: str, names: Collection[str]) -> tuple[str, list[WrittenCall]]:
    """The text around the calls in a whole answer, and the calls; the text counts only where there are calls.

    What stands in a call's arguments is part of them, whatever it looks like; what stands in thoughts is no call.
    Anywhere else a quoted call is a call: also in a fence of code, since models put real ones there too.

    Args:
        text: The answer, markers included.
        names: Of the tools that are there.
    """
    if _IS_JSON.match(text.lstrip()):
        values, begin = _values(text)
        if begin is None or not text[begin:].strip():
            return "", _bare(values, names) if begin is not None else _half_bare(text, names)
    else:
        begin = 0
    around, since, at = "", 0, begin
    found: list[WrittenCall] = []
    opener = closer = None
    while mark := _MARKS.search(text, at):
        at = mark.end()
        if mark[0] in THOUGHTS.values():  # the prompt has begun the thoughts, and all of this was among them
            around, since, found, opener, closer = "", 0, [], None, None
        elif mark[0] in THOUGHTS:
            end = text.find(THOUGHTS[mark[0]], at)
            at = len(text) if end < 0 else end + len(THOUGHTS[mark[0]])
        elif mark[0] == closer:
            around, since, closer = around + _kept(text[since : mark.start()]), at, None
        elif mark[0] in OPENERS and opener in (None, mark[0]) and _BEGINS.match(text, at):
            around += _kept(text[since : mark.start()])
            opener, closer = mark[0], _CLOSERS[mark[0]]
            calls, at = _calls(text, at)
            found, since = found + calls, at
    around += _kept(text[since:])
    return around, found


def call_id(call: WrittenCall) -> str:
    """The id of a call; a new one where the model gave none."""
    # Nine characters: the templates of Mistral's models take no other length.
    return call.id or uuid4().hex[:9]


def object_call(value: Any) -> WrittenCall:
    """A call from an object with a name and arguments."""
    if not isinstance(value, dict):
        return WrittenCall(name=None, arguments=_text(value))
    name, id_ = value.get("name"), value.get("id")
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    if not isinstance(name, str) or not name:
        return WrittenCall(name=None, arguments=_text(value))
    return WrittenCall(
        name=name,
        arguments="" if arguments is None else _text(arguments),
        id=id_ if isinstance(id_, str) and id_ else None,
    )


def _text(value: Any) -> str:
    """Arguments as JSON text; some models write them as a text already."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _kept(text: str) -> str:
    return text if text.strip() else ""


def _values(text: str) -> tuple[list[Any], int | None]:
    """The JSON values that a text begins with, and where they end; None if the last of them does not."""
    values: list[Any] = []
    at = 0
    while _BEGINS.match(text, at) and not _NAMED.match(text, at):
        value, end = _decoded(text, at)
        if end is None:
            return values, None
        values += value if isinstance(value, list) else [value]
        at = _behind_separator(text, end)
    return values, at


def _bare(values: list[Any], names: Collection[str]) -> list[WrittenCall]:
    """Calls without a marker: the whole answer is one, or a list of them, of tools that are there.

    A list of tools, or an answer about one, is none.
    """
    for value in values:
        if not isinstance(value, dict) or not _BARE_KEYS.issuperset(value):
            return []
        name, schema = value.get("name"), value.get("parameters")
        if not isinstance(name, str) or name not in names:
            return []
        if isinstance(schema, dict) and schema.get("type") == "object" and "properties" in schema:
            return []
    if not any("arguments" in value or "parameters" in value for value in values):
        return []
    return [*map(object_call, values)]


def _half_bare(text: str, names: Collection[str]) -> list[WrittenCall]:
    """Likewise, where what would be calls is not whole."""
    named = _HALF_BARE.match(text.strip())
    return [WrittenCall(name=named[1], arguments=text.strip())] if named and named[1] in names else []


def _calls(text: str, at: int) -> tuple[list[WrittenCall], int]:
    """The calls behind a marker, and where they end.

    They are JSON values one after another, or names with their arguments. One that is malformed takes all the rest:
    what stands there may be quoted in it.
    """
    found: list[WrittenCall] = []
    while _BEGINS.match(text, at) and not (found and _CALLS_AGAIN.match(text, at)):
        named = _NAMED.match(text, at)
        value, end = _decoded(text, at if named is None else named.end())
        if end is None:
            half = named or _NAME.search(text, at)
            return [*found, WrittenCall(name=half and half[1], arguments=text[at:].strip())], len(text)
        if named is not None:
            found.append(WrittenCall(name=named[1], arguments=_text(value), id=named[2]))
        else:
            found += map(object_call, value if isinstance(value, list) else [value])
        at = _behind_separator(text, end)
    return found, at


def _decoded(text: str, at: int) -> tuple[Any, int | None]:
    """The JSON value that begins there, behind spaces, and where it ends; None where it is none."""
    space = _SPACE.match(text, at)
    try:
        return _JSON.raw_decode(text, space.end() if space else at)
    except (ValueError, RecursionError):
        return None, None


def _behind_separator(text: str, at: int) -> int:
    between = _BETWEEN.match(text, at)
    return between.end() if between and _BEGINS.match(text, between.end()) else at
