"""How a conversation is shown to a sidecar's model: as its template writes it, and as plain text where it cannot.

What a template takes is found out by rendering the conversation with sentinel words in place of its contents: every one
of them must come out. Knows no stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, combinations, product
from typing import TYPE_CHECKING, Any

from ada_guard.errors import ConfigError
from ada_guard.prompt import Prompt, require_variables
from ada_guard.sidecar.plain_turns import STEPS, Talk
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sidecar.request_messages import arguments_as_object, arguments_as_text, read_messages
from ada_guard.template import render

if TYPE_CHECKING:
    from ada_guard.local.model import LocalModel

__all__ = ["View", "view_of"]

_SENTINEL = re.compile(r"qzjxv[0-9]+q")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A conversation as the sidecar's model sees it.

    Attributes:
        prompt: Its ids.
        partial: Whether something in it could not be shown, such as an image.
    """

    prompt: Prompt
    partial: bool = False


def view_of(model: LocalModel, conversation: Conversation) -> View:
    """Encodes a conversation for a model. A raw prompt is a user's turn, which the answer answers.

    Raises:
        ConfigError: It cannot be shown.
    """
    require_variables(conversation.template_kwargs)
    raw = conversation.raw_prompt
    read = read_messages(conversation.messages if raw is None else [{"role": "user", "content": raw}])
    if "tool_calls" in read.messages[-1]:
        raise ConfigError("the last message has tool calls: add their results, or give a text as the prefill")
    kwargs = conversation.template_kwargs
    talk = Talk(messages=read.messages, tools=conversation.tools or None)
    whole = ((each, read.partial) for each in _candidates(talk) if _shows_everything(model.tokenizer, each, kwargs))
    refused: ConfigError | None = None
    # What no form shows whole is shown as far as it goes, and says so.
    for form, partial in chain(whole, ((each, True) for each in _candidates(talk))):
        try:
            prompt = model.encode(form.messages, tools=form.tools, template_kwargs=kwargs)
        except ConfigError as error:
            refused = refused or error
        else:
            return View(prompt=prompt, partial=partial)
    assert refused is not None
    raise refused


def _candidates(talk: Talk) -> Iterator[Talk]:
    """The conversation in ever simpler forms, each of them once."""
    seen: list[Talk] = []
    for size in range(len(STEPS) + 1):
        for steps in combinations(STEPS, size):
            simpler = talk
            for step in steps:
                simpler = step(simpler)
            if simpler not in seen:
                seen.append(simpler)
                yield from _forms(simpler)


def _forms(talk: Talk) -> Iterator[Talk]:
    """The same with tool calls as different templates take them."""
    if not any("tool_calls" in message for message in talk.messages):
        yield talk
        return
    for content, arguments in product(("", None), (arguments_as_object, arguments_as_text)):
        yield replace(
            talk,
            messages=[
                {
                    **message,
                    "content": message["content"] or content,
                    "tool_calls": [
                        {
                            **call,
                            "function": {**call["function"], "arguments": arguments(call["function"]["arguments"])},
                        }
                        for call in message["tool_calls"]
                    ],
                }
                if "tool_calls" in message
                else message
                for message in talk.messages
            ],
        )


def _shows_everything(tokenizer: Any, talk: Talk, kwargs: Mapping[str, Any]) -> bool:
    """Whether every content, tool call and tool definition comes out of the template."""
    words: list[str] = []

    def word() -> str:
        words.append(f"qzjxv{len(words)}q")
        return words[-1]

    # A text at the end is a prefill, which no template sees.
    messages = [
        _sentinel_message(message, word)
        for message in talk.messages[: -1 if talk.messages[-1]["role"] == "assistant" else None]
    ]
    tools = None
    if talk.tools:
        tools = [_sentinel_tool(tool, word()) for tool in talk.tools]
    parts = [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m["content"], str) else m
        for m in messages
    ]
    for form in (messages, parts):
        try:
            text = render(tokenizer, form, tools=tools, add_generation_prompt=True, **kwargs)
        except (ConfigError, TypeError):  # the latter: kwargs that may not be set, which encoding says more clearly
            continue
        # One pass over the text: looked for one by one, many messages would take the square of their number.
        if set(words) <= set(_SENTINEL.findall(text)):
            return True
    return False


def _sentinel_message(message: Mapping[str, Any], word: Callable[[], str]) -> dict[str, Any]:
    shown = {key: value for key, value in message.items() if key != "reasoning_content"}
    if message["content"]:
        shown["content"] = word()
    if "tool_calls" in message:
        shown["tool_calls"] = [_sentinel_call(call, word(), word()) for call in message["tool_calls"]]
    return shown


def _sentinel_tool(tool: Any, name: str) -> Any:
    """The definition under another name: what a template needs of one is for it to say."""
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        return {**tool, "function": {**tool["function"], "name": name}}
    if isinstance(tool, Mapping):
        return {**tool, "name": name}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": {"type": "object"}}}


def _sentinel_call(call: Mapping[str, Any], name: str, value: str) -> dict[str, Any]:
    arguments: Any = {"q": value}
    if isinstance(call["function"]["arguments"], str):
        arguments = json.dumps(arguments)
    return {**call, "function": {"name": name, "arguments": arguments}}
