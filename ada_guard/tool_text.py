"""Tool calls that local models write as text, found while it streams. Knows no guard and runs nothing.

A server parses them before its clients see them; of a local model the text itself is all there is. Which form a model
was trained on is not asked: the forms are told apart by their markers. A quoted call is a call; what cannot be told
from an answer about tools is text.

The model was judged by what it wrote: escaped characters in such a call were judged as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ada_guard.tool_forms import FORMS, INNER, OPENERS, THOUGHTS, WrittenCall, object_call, read_calls

__all__ = ["CallReader", "WrittenAnswer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenAnswer:
    """The end of an answer, read.

    Attributes:
        text: What is left of it to show.
        reasoning: Thoughts that the tokenizer's own parser told from the text.
        calls: In order.
    """

    text: str = field(default="", repr=False)
    reasoning: str = field(default="", repr=False)
    calls: tuple[WrittenCall, ...] = ()


class CallReader:
    """Reads the text of one answer: what comes before a call may be shown at once, the rest waits for the end.

    Decoding drops special tokens, and in some families markers are such. They are found by their ids then, at the end;
    until then everything is held back from where such a call could begin. A tokenizer with a ``response_template`` of
    its own reads the answer itself; it needs all of it, so that nothing is shown before the end.

    Args:
        tokenizer: The model's.
        tools: Tool definitions in OpenAI's form.
        prompt: What the model was given, as ``parse_response`` wants it.
    """

    def __init__(self, tokenizer: Any, tools: Sequence[dict[str, Any]], *, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tools = tools
        self._prompt = prompt
        self._names = frozenset(str(tool.get("function", {}).get("name")) for tool in tools)
        self._own_parser = getattr(tokenizer, "response_template", None) is not None
        special = [*getattr(tokenizer, "all_special_tokens", ())]
        marks = [mark for form in FORMS for mark in (form.opens, form.closes) if mark]
        marks += [mark for pair in THOUGHTS.items() for mark in pair]
        self._hidden = {tokenizer.convert_tokens_to_ids(m): m for m in [*marks, *INNER] if m in special}
        self._openers = OPENERS
        if {*self._hidden.values()} - {*THOUGHTS, *THOUGHTS.values()}:
            self._openers += ("[{", '{"', *(f"{name}{{" for name in self._names))
        # Behind a name there may be the id of the call, between markers that decoding drops.
        named = "|".join(map(re.escape, self._names)) if INNER[1] in self._hidden.values() else ""
        self._named = re.compile(rf"(?:{named})\w{{1,32}}(?:\{{|\Z)") if named else None
        self._text = ""
        self._shown = 0

    def push(self, text: str) -> str:
        """Takes the next text of the answer; returns what may be shown of it."""
        self._text += text
        if self._own_parser:
            return ""
        until = self._certain()
        shown, self._shown = self._text[self._shown : until], max(self._shown, until)
        return shown

    def finish(self, token_ids: Sequence[int] = ()) -> WrittenAnswer:
        """The rest, once the answer has ended.

        Args:
            token_ids: Those of the answer. Without them, or where they are another tokenizer's, only what stands in
                the text is read.
        """
        if self._own_parser:
            return self._parsed(self._own(token_ids))
        raw, cut = self._with_hidden(self._own(token_ids) if self._hidden else ())
        before, calls = read_calls(raw, self._names)
        if not calls:
            return WrittenAnswer(text=self._text[self._shown :])
        for mark in self._hidden.values():
            before = before.replace(mark, "")
        return WrittenAnswer(text=before[max(0, self._shown + cut) :], calls=tuple(calls))

    def _own(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The ids, if they are this tokenizer's: where another model judges, depth is counted in that one's."""
        decoded = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return token_ids if decoded.strip().startswith(self._text.strip()) else ()

    def _certain(self) -> int:
        """Up to where no call can have begun."""
        start = len(self._text) - len(self._text.lstrip())
        if self._text[start : start + 1] in ("", "{", "["):
            return 0  # the whole answer may be a call
        found = [at for opener in self._openers if (at := self._text.find(opener)) >= 0]
        if self._named and (named := self._named.search(self._text)):
            found.append(named.start())
        if found:
            return min(found)
        end = len(self._text)
        longest = max(map(len, self._openers))
        begun = (
            at
            for at in range(max(0, end - longest + 1), end)
            if any(o.startswith(self._text[at:]) for o in self._openers)
        )
        return next(begun, end)

    def _with_hidden(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """The text with the markers that decoding dropped, and by how much its beginning is shorter than the text's."""
        if not any(token in self._hidden for token in token_ids):
            return self._text, 0
        parts: list[str] = []
        ids: list[int] = []
        for token in [*token_ids, None]:
            if token is None or token in self._hidden:
                parts += [self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)]
                parts += [self._hidden[token]] if token is not None else []
                ids = []
            else:
                ids.append(token)
        raw = "".join(parts)
        decoded = "".join(parts[::2])
        # A stop string at the end is in the ids, and not in the text.
        surplus = len(decoded.strip()) - len(self._text.strip())
        raw = raw.rstrip()[:-surplus] if surplus > 0 else raw
        # Some tokenizers drop a space before the first token when they see nothing before it.
        return raw, _leading(raw) - _leading(self._text) if parts[0].strip() else 0

    def _parsed(self, token_ids: Sequence[int]) -> WrittenAnswer:
        try:
            said = [*token_ids] or self._text
            parsed = self._tokenizer.parse_response(said, prefix=[*self._prompt], tools=[*self._tools])
        except Exception:  # noqa: BLE001  # whatever a foreign parser raises of a foreign text: it is no call then
            parsed = {}
        found = [call for call in parsed.get("tool_calls") or () if isinstance(call, dict)]
        if not found:
            return WrittenAnswer(text=self._text)
        thought = parsed.get("reasoning_content") or parsed.get("thinking") or ""
        return WrittenAnswer(
            text=_within(parsed.get("content") or "", self._text),
            reasoning=_within(thought, self._text),
            calls=tuple(object_call(call.get("function", call)) for call in found),
        )


def _leading(text: str) -> int:
    return len(text) - len(text.lstrip())


def _within(part: Any, text: str) -> str:
    """What a parser found, as far as it stands in the text that was released: a stop string cuts that short."""
    if not isinstance(part, str) or not part.strip():
        return ""
    if (whole := part.strip()) in text:
        return whole
    start = text.find(whole[:1])
    length = next((n for n in range(len(whole), 0, -1) if text.startswith(whole[:n], start)), 0)
    return whole[:length]
