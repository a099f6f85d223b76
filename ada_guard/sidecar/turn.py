"""How a chat template writes reasoning and tool calls in an assistant's turn, observed from outside. Knows no stream.

Turns of sentinel words are rendered, as in `ada_guard.template`. What a template cannot write is plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ada_guard.errors import ConfigError
from ada_guard.spec import ModelSpec
from ada_guard.template import render

__all__ = ["CallForm", "Place", "ThinkForm", "TurnForm", "opened_block"]

Place: TypeAlias = Literal["start", "text", "think", "call"]
"""What stands last in the turn."""

_USER, _ANSWER, _NAMES, _VALUE, _THOUGHT = "qzjxv1", "qzjxv2", ("qzjxv3", "qzjxv4"), "qzjxv6", "qzjxv7"
_ARGUMENTS = {"qzjxv5": _VALUE}
_ARGUMENTS_WRITTEN = re.compile(r'\{\s*"qzjxv5"\s*:\s*"qzjxv6"\s*\}')
_CALL_IDS = ("call00001", "call00002")
"""Nine letters and digits: Mistral's templates take no other ids, and write them."""
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_EMPTY_BLOCK = re.compile(r"(<([^/<>\s]+)>)(\s*)(</\2>\s*)$")
"""Thinking that a prompt closes at once."""
_OPENED = re.compile(r"<([^/<>|\s]+)>\s*$")
_EMPTY_BEGINNING = re.compile(r"\s*<([^/<>\s]+)>\s*</\1>\s*")
_BLOCK_NAMES = ("think", "thinking", "thought", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkForm:
    """What is around reasoning. By default that of templates that know none.

    Attributes:
        open: Before reasoning at the beginning of the turn.
        reopen: Before reasoning behind anything else.
        close: Between reasoning and what follows.
    """

    open: str = ""
    reopen: str = "\n\n"
    close: str = "\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """What is around tool calls. By default that of templates that know none.

    Attributes:
        open: Before the first call's name, at the beginning of the turn.
        open_behind_text: Likewise, behind an answer.
        middle: Between name and arguments.
        between: Between arguments and the next call's name.
        end: Behind the last call's arguments.
    """

    open: str = "Tool call "
    open_behind_text: str = "\nTool call "
    middle: str = ": "
    between: str = "\nTool call "
    end: str = "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnForm:
    """What a template writes between the parts of an assistant's turn.

    Attributes:
        think: Around reasoning.
        call: Around tool calls.
    """

    think: ThinkForm = ThinkForm()
    call: CallForm = CallForm()

    @classmethod
    def observed(cls, tokenizer: Any, spec: ModelSpec) -> TurnForm:
        """Renders the turns; never fails, since there is a plain form for everything."""
        turns = _Turns(tokenizer, spec)
        return cls(think=turns.think(), call=turns.call())

    def leading(self, last: Place, following: Place) -> str:
        """What comes between what stands last in the turn and what follows."""
        if last == following:
            return self.call.between if last == "call" else ""
        closing = {"think": self.think.close, "call": self.call.end}.get(last, "")
        if following == "think":
            return closing + (self.think.open if last == "start" else self.think.reopen)
        if following == "call":
            return closing + (self.call.open if last in ("start", "think") else self.call.open_behind_text)
        return closing

    def place_behind(self, prompt: str) -> Place:
        """Where a prompt leaves off: some open the reasoning themselves."""
        opening = self.think.open.strip()
        return "think" if opening and prompt.rstrip().endswith(opening) else "start"


class _Turns:
    """Renders assistant turns with a tokenizer's template."""

    def __init__(self, tokenizer: Any, spec: ModelSpec) -> None:
        self._tokenizer = tokenizer
        self._added: Mapping[str, int] = tokenizer.get_added_vocab()
        self._spec = spec
        # Where a turn is made of messages of its own for each channel, another channel needs another header.
        header = spec.generation_prompt
        self._new_header = (spec.end_of_turn + header) if header and header in spec.prompt_suffix else ""

    def think(self) -> ThinkForm:
        """How reasoning is written."""
        for name in _REASONING_FIELDS:
            body = self._body({"content": _ANSWER, name: _THOUGHT})
            if body is not None and (parts := _between(body, _THOUGHT, _ANSWER)):
                opening = self._new_header + parts[0]
                return ThinkForm(open=opening, reopen=opening, close=parts[1])
        block = _EMPTY_BLOCK.search(self._spec.generation_prompt + self._spec.prompt_suffix)
        if block:
            space = len(block[3]) // 2
            opening = block[1] + block[3][:space]
            return ThinkForm(open=opening, reopen=opening, close=block[3][space:] + block[4])
        for name in _BLOCK_NAMES:
            if f"<{name}>" in self._added and f"</{name}>" in self._added:
                return ThinkForm(open=f"<{name}>\n", reopen=f"<{name}>\n", close=f"\n</{name}>\n\n")
        return ThinkForm()

    def call(self) -> CallForm:
        """How tool calls are written."""
        for arguments in (_ARGUMENTS, json.dumps(_ARGUMENTS)):
            calls = [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id_, name in zip(_CALL_IDS, _NAMES, strict=True)
            ]
            alone = self._parts(calls[:1], "") or self._parts(calls[:1], None)
            if alone is None:
                continue
            opening, middle, rest = alone
            end = self._without_end_of_turn(rest)
            behind = self._parts(calls[:1], _ANSWER)
            open_behind_text = behind[0].partition(_ANSWER)[2] if behind and _ANSWER in behind[0] else "\n" + opening
            if self._new_header:
                open_behind_text = opening = self._new_header + opening
            both = self._parts(calls, "") or self._parts(calls, None)
            between = both[2] if both else ""
            if not both or between.count(_NAMES[1]) != 1:
                between = end + open_behind_text
            return CallForm(
                open=opening,
                open_behind_text=open_behind_text,
                middle=middle,
                between=between.partition(_NAMES[1])[0],
                end=end,
            )
        return CallForm()

    def _parts(self, calls: list[dict[str, Any]], content: str | None) -> tuple[str, str, str] | None:
        """What is before the first name, between it and its arguments, and behind those."""
        body = self._body({"content": content, "tool_calls": calls})
        if body is None or body.count(_NAMES[0]) != 1 or body.count(_VALUE) != len(calls):
            return None
        opening, _, rest = body.partition(_NAMES[0])
        # An empty block of reasoning is not part of a call, and the prompt may have written it already.
        opening = _EMPTY_BEGINNING.sub("", opening, count=1)
        written = _ARGUMENTS_WRITTEN.search(rest)
        return None if written is None else (opening, rest[: written.start()], rest[written.end() :])

    def _body(self, message: Mapping[str, Any]) -> str | None:
        """What follows the generation prompt; None if the template does not take the message."""
        user = {"role": "user", "content": _USER}
        try:
            prompt = render(self._tokenizer, [user], add_generation_prompt=True).partition(_USER)[2]
            whole = render(self._tokenizer, [user, {"role": "assistant", **message}]).partition(_USER)[2]
        except ConfigError:
            return None
        # A block of reasoning at the end of the prompt belongs to the answer: the history may go on without.
        block = _EMPTY_BLOCK.search(prompt)
        header = prompt[: block.start()] if block else prompt.removesuffix(opened_block(self._tokenizer, prompt))
        return whole[len(header) :] if header and whole.startswith(header) else None

    def _without_end_of_turn(self, rest: str) -> str:
        for end in (self._spec.end_of_turn.strip(), self._tokenizer.eos_token):
            if end and end in rest:
                return rest.partition(end)[0]
        return "" if rest.strip() in self._added else rest.rstrip("\n")


def opened_block(tokenizer: Any, prompt: str) -> str:
    """The block of reasoning that a prompt opens at its end: a tag that can be closed. Empty if none."""
    found = _OPENED.search(prompt)
    closing = f"</{found[1]}>" if found else ""
    known = closing and (closing in str(tokenizer.chat_template) or closing in tokenizer.get_added_vocab())
    return found[0] if found and known else ""


def _between(body: str, *words: str) -> list[str] | None:
    """What is before each word; None unless each occurs once, in this order."""
    if any(body.count(word) != 1 for word in words):
        return None
    parts: list[str] = []
    for word in words:
        before, found, body = body.partition(word)
        if not found:
            return None
        parts.append(before)
    return parts
