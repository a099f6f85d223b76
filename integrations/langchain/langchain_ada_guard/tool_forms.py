"""The forms in which families of models write tool calls as text, as data; and what a text in them says.

Knows no tokenizer and no stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FORMS", "INNER", "OPENERS", "WrittenCall", "object_call", "read_calls"]


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
_MARKS = re.compile("|".join(re.escape(mark) for form in FORMS for mark in (form.opens, form.closes) if mark))
OPENERS = tuple(form.opens for form in FORMS)
INNER = ("[ARGS]", "[CALL_ID]")
"""Special tokens between a name and its arguments, in Mistral's form."""
_NAMED = re.compile(r"\s*+([\w.:/-]++)\s*+(?:\[CALL_ID\]\s*+(\w++)\s*+)?(?:\[ARGS\])?\s*+(?=\{)")
_BEGINS = re.compile(rf"\s*[\[{{]|{_NAMED.pattern}")
_BARE = re.compile(r"[\[{]\s*(?:\{\s*)?\"(?:name|type|parameters|arguments)\"")
_BARE_NAME = re.compile(r"\"name\"\s*:\s*\"([^\"]*)\"")
_BETWEEN = re.compile(r"\s*[,;]")


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


def read_calls(text: str, names: Collection[str]) -> tuple[str, list[WrittenCall]]:
    """The text around the calls in a whole answer, and the calls; the text counts only where there are calls.

    Args:
        text: The answer, markers included.
        names: Of the tools that are there.
    """
    first = _MARKS.search(text)
    if first is None:
        return "", _bare(text.strip(), names)
    around = text[: first.start()]
    found: list[WrittenCall] = []
    in_call = False
    for mark, body in _sections(text[first.start() :]):
        opens = mark in OPENERS
        if opens and (in_call := _BEGINS.match(body) is not None):
            calls, body = _calls(body)
            found += calls
        elif opens or not in_call:
            body = mark + body  # a text about markers
        around += body if body.strip() else ""
    return around if around.strip() else "", found


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


def _name_in(text: str, named: re.Match[str] | None) -> str | None:
    found = _BARE_NAME.search(text)
    return named[1] if named is not None else found[1] if found else None


def _text(value: Any) -> str:
    """Arguments as JSON text; some models write them as a text already."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bare(text: str, names: Collection[str]) -> list[WrittenCall]:
    """Calls without a marker: the whole answer is one, or a list of them, of tools that are there."""
    named = _BARE_NAME.search(text) if _BARE.match(text) else None
    if named is None or named[1] not in names:
        return []
    calls, rest = _calls(text)
    return [] if rest.strip() else calls


def _sections(raw: str) -> Iterator[tuple[str, str]]:
    """Each marker with the text behind it."""
    marks = [*_MARKS.finditer(raw)]
    ends = [*(mark.start() for mark in marks[1:]), len(raw)]
    for mark, end in zip(marks, ends, strict=True):
        yield mark[0], raw[mark.end() : end]


def _calls(body: str) -> tuple[list[WrittenCall], str]:
    """The calls behind a marker, and the text behind them.

    They are JSON values one after another, or names with their arguments. What begins like one and is none ends them.
    """
    found: list[WrittenCall] = []
    decoder, at = json.JSONDecoder(), 0
    while _BEGINS.match(body, at):
        named = _NAMED.match(body, at)
        begin = len(body) - len(body[at:].lstrip()) if named is None else named.end()
        try:
            value, end = decoder.raw_decode(body, begin)
        except (ValueError, RecursionError):
            return [*found, WrittenCall(name=_name_in(body[at:], named), arguments=body[at:].strip())], ""
        if named is not None:
            found.append(WrittenCall(name=named[1], arguments=_text(value), id=named[2]))
        else:
            found += map(object_call, value if isinstance(value, list) else [value])
        at = end
        if (between := _BETWEEN.match(body, end)) and _BEGINS.match(body, between.end()):
            at = between.end()
    return found, body[at:]
