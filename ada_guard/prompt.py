"""Messages to prompt ids, with everything that did not come from the chat template kept plain text. Knows no model.

A control string (``<|im_end|>``, ``<think>``, a forged header) in a content is cut in two: the chat template renders it
with a mark inside, and the text is encoded piece by piece between the marks. Where one could arise only in the rendered
text, from a content and what is around it or from what the template leaves of a content, marks show it. Texts without
control strings are encoded exactly as ``apply_chat_template`` encodes them.

A template sees control strings in contents only cut: reasoning that an earlier answer holds as ``<think>...</think>``
is text like any other, and is not dropped. Pass it as ``reasoning_content``, or leave it out.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, pairwise
from typing import Any

from ada_guard.control import TextEncoder
from ada_guard.errors import ConfigError
from ada_guard.spec import ModelSpec
from ada_guard.template import render

__all__ = ["Prompt", "encode_prompt", "encode_text", "require_variables"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")
"""Roles that templates know; they are rendered as they are, so nothing else may pass."""

_OURS = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "messages",
    "conversation",
    "tokenize",
    "tools",
)
_WORD = "qzjxv"
"""A content that no template writes, trims or interprets."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_TRIES = 2_000
"""Renderings spent on finding the places that a template reacts to: a hostile text may be made of nothing else."""
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An encoded conversation.

    Attributes:
        ids: All ids up to where the assistant's text begins.
        prefill_ids: Ids of the assistant text that the messages end with, if they do.
        prefill_text: That text.
    """

    ids: tuple[int, ...]
    prefill_ids: tuple[int, ...] = ()
    prefill_text: str = ""


def encode_prompt(
    tokenizer: Any,
    spec: ModelSpec,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Prompt:
    """Encodes a conversation as the model's own template renders it.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        spec: Its spec; `ModelSpec.prompt_suffix` is added, unless `template_kwargs` turns thinking on.
        messages: ``{"role", "content", ...}`` each; a content is a text or a list of text parts. An assistant message
            at the end is a prefill.
        tools: As ``apply_chat_template`` takes them.
        template_kwargs: Variables of the template, such as ``documents`` or ``enable_thinking``.

    Raises:
        ConfigError: A message without role or content, nothing before a prefill, or what the template rejects.
    """
    talk, prefill = _checked(messages)
    options = dict(template_kwargs or {})
    require_variables(options)
    encoder = TextEncoder(tokenizer)
    text, cuts = _rendered(encoder, _Request(talk=_in_form(tokenizer, talk), tools=tools, options=options))
    ended = text.endswith(spec.generation_prompt) and not text.endswith(spec.generation_prompt + spec.prompt_suffix)
    if ended and not (options.get("enable_thinking") or options.get("thinking")):
        text += spec.prompt_suffix
    ids = encoder.encode(text, cuts)
    if not prefill:
        return Prompt(ids=tuple(ids))
    at = len(text)
    edge = [at] if encoder.control.spans(text + prefill, at) else []
    both = encoder.encode(text + prefill, [*cuts, *edge, *(at + cut for cut in encoder.cuts(prefill))])
    joint = both[: len(ids)] == ids
    prefill_ids = both[len(ids) :] if joint else encoder.encode(prefill, encoder.cuts(prefill), continued=True)
    return Prompt(ids=tuple(ids), prefill_ids=tuple(prefill_ids), prefill_text=prefill)


def require_variables(options: Mapping[str, Any]) -> None:
    """Refuses what is no variable of a template, before anything is rendered: somebody else's template is a program.

    Raises:
        ConfigError: A name that belongs to the rendering itself.
    """
    if reserved := [name for name in _OURS if name in options]:
        raise ConfigError(f"template_kwargs may not set {reserved[0]!r}")


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of untrusted text, such as an answer: no special tokens are added, and control strings stay plain text.

    Half a surrogate pair, which JSON can carry and no tokenizer takes, counts as U+FFFD.
    """
    encoder = TextEncoder(tokenizer)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return encoder.encode(text, encoder.cuts(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What a template renders. Its leaves are all texts that others wrote: contents, arguments, documents, tools."""

    talk: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None
    options: Mapping[str, Any]

    def leaves(self) -> list[str]:
        found: list[str] = []

        def collected(leaf: str) -> str:
            found.append(leaf)
            return leaf

        self._mapped(collected)
        return found

    def render(self, tokenizer: Any, leaves: Iterable[str]) -> str:
        following = iter(leaves)
        talk, tools, options = self._mapped(lambda _: next(following))
        return render(tokenizer, talk, tools=tools, add_generation_prompt=True, **options)

    def _mapped(self, leaf: Callable[[str], str]) -> tuple[list[dict[str, Any]], list[Any] | None, dict[str, Any]]:
        return (
            [{k: v if k == "role" else _mapped(v, leaf) for k, v in message.items()} for message in self.talk],
            None if self.tools is None else [tool if callable(tool) else _mapped(tool, leaf) for tool in self.tools],
            {name: _mapped(value, leaf) for name, value in self.options.items()},
        )


def _mapped(value: Any, leaf: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise ConfigError("messages, tools and template_kwargs hold Unicode text, not halves of surrogate pairs")
        return leaf(str.__str__(value))
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_mapped(key, leaf): _mapped(item, leaf) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, leaf) for item in value]
    raise ConfigError(f"messages, tools and template_kwargs hold plain data, not {type(value).__name__}")


def _rendered(encoder: TextEncoder, request: _Request) -> tuple[str, list[int]]:
    """The rendered text, and where to cut it."""
    control, tokenizer = encoder.control, encoder.tokenizer
    leaves = request.leaves()
    text = request.render(tokenizer, leaves)
    inner = {(i, cut) for i, leaf in enumerate(leaves) for cut in encoder.cuts(leaf)}
    suspects = sorted({(i, at) for i, leaf in enumerate(leaves) for at in control.suspects(leaf)} - inner)
    if not inner and not suspects:
        return text, []
    mark = _unused(text + "".join(leaves))
    tries = count(1)

    def marked(places: Iterable[tuple[int, int]]) -> tuple[str, list[int]]:
        """Renders with marks at places in the leaves; returns the text without them, and where they came out."""
        at: dict[int, list[int]] = defaultdict(list)
        for i, place in sorted(places):
            at[i].append(place)
        shown = request.render(tokenizer, (mark.join(_pieces(leaf, at[i])) for i, leaf in enumerate(leaves)))
        # A template that asks JSON for ASCII writes the mark as its escape.
        pieces = shown.replace(json.dumps(mark)[1:-1], mark).split(mark)
        return "".join(pieces), list(accumulate(map(len, pieces[:-1])))

    def unnoticed(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of the suspect places at which a mark does not change what the template does."""
        if next(tries) > _MAX_TRIES:
            raise ConfigError("the chat template reacts to too many places in the messages")
        try:
            if marked(inner.union(places))[0] == text:
                return places
        except ConfigError:
            pass  # noticed, and not liked
        half = len(places) // 2
        return unnoticed(places[:half]) + unnoticed(places[half:]) if half else []

    cuts: list[int] = []
    if inner:
        text, found = marked(inner)
        cuts = [at for at in found if control.loose or control.spans(text, at)]
    if suspects and (suspects := unnoticed(suspects)):
        again, found = marked(inner.union(suspects))
        if again != text:
            raise ConfigError("the chat template reacts to the messages in ways that cannot be followed")
        cuts += [at for at in found if control.spans(text, at)]
    return text, cuts


def _pieces(text: str, cuts: Iterable[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def _unused(text: str) -> str:
    """A character of the private use areas that does not occur in a text, nor its JSON escape."""
    for code in chain(*_PRIVATE_USE):
        if chr(code) not in text and json.dumps(chr(code))[1:-1] not in text:
            return chr(code)
    raise ConfigError("the messages use every character of the private use areas")


def _checked(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The messages before a prefill, and the prefill."""
    if isinstance(messages, (str, bytes, Mapping)) or not messages:
        raise ConfigError("messages is a list of at least one {'role': ..., 'content': ...}")
    talk = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if talk[-1]["role"] != "assistant":
        return talk, ""
    if talk[-1].get("tool_calls"):
        raise ConfigError("the last message has tool calls: add their results, or give a text as the prefill")
    if len(talk) == 1:
        raise ConfigError("a prefill needs a message to answer before it")
    return talk, _mapped(_text(talk.pop()["content"]), str)


def _message(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ConfigError(f"{name} is not a mapping with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ConfigError(f"{name} has no known role: use one of {', '.join(ROLES)}")
    if content is None and not (role == "assistant" and message.get("tool_calls")):
        raise ConfigError(f"{name} has no content")
    if isinstance(content, (list, tuple)):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
            raise ConfigError(f"{name} has a content part that is not text")
        content = parts
    elif content is not None and not isinstance(content, str):
        raise ConfigError(f"{name} has a content that is neither text nor a list of text parts")
    return {**message, "role": str.__str__(role), "content": content}


def _in_form(tokenizer: Any, talk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages in a form that the template takes: some render only texts, some only lists of parts."""
    forms = {type(message["content"]) for message in talk}
    takes_text = _renders(tokenizer, _WORD)
    if list in forms and takes_text and not _renders(tokenizer, [{"type": "text", "text": _WORD}]):
        return [{**message, "content": _text(message["content"])} for message in talk]
    if str in forms and not takes_text:
        return [{**message, "content": _parts(message["content"])} for message in talk]
    return talk


def _text(content: Any) -> Any:
    return "".join(part["text"] for part in content) if isinstance(content, list) else content


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _renders(tokenizer: Any, content: Any) -> bool:
    try:
        text = render(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)
    except ConfigError:
        return False
    return _WORD in text and "'type'" not in text
