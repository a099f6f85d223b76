"""What a chat template writes around messages, observed from outside. Knows no models, ids or Safety Tokens.

Conversations of sentinel words are rendered and compared; the template's source is never read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

from ada_guard.errors import ConfigError

__all__ = ["TemplateShape", "Variant", "render"]

Variant: TypeAlias = Literal["answer", "reasoning"]

_USER, _ANSWER, _NEXT = "qzjxv1", "qzjxv2", "qzjxv3"
"""Contents of the conversations that are rendered: words that no template writes, trims or interprets."""

_EMPTY_BLOCK = re.compile(r"(\s*<[^/<>\s][^<>\s]*>)(\s*)<")
"""An opening tag with nothing but space in it: how templates write thinking that is switched off."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
    """The text that the chat template makes of messages.

    Raises:
        ConfigError: No template, or one that rejects them. Its own message is dropped, since it may quote them.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the tokenizer has no chat template: set tokenizer.chat_template to the model's")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **kwargs))
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - templates are foreign code: they raise anything
        raise ConfigError(
            f"the model's chat template rejects these messages ({type(error).__name__}): mind the order of the roles"
        ) from None


_MIN_HEADER_START = 3
"""Characters that two role headers must share to be told from chance: "<|b" of "<|begin_user|>"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateShape:
    """What the sentinel conversations showed of a template.

    Attributes:
        generation_prompt: As in `ModelSpec`; may be empty.
        end_of_turn: As in `ModelSpec`.
        header: The generation prompt or, where there is none, the end of the user's turn.
        user_header: What follows the end of turn before the user's next message.
        thinking: The generation prompt with thinking switched on and off, if it can be; else twice the same.
    """

    generation_prompt: str = ""
    end_of_turn: str = ""
    header: str = ""
    user_header: str = ""
    thinking: tuple[str, str] = ("", "")

    @classmethod
    def observed(cls, tokenizer: Any) -> TemplateShape:
        """Renders the conversations and compares them.

        Raises:
            ConfigError: No template, or none whose turns can be told apart this way.
        """
        if not getattr(tokenizer, "chat_template", None):
            _unclear("the tokenizer has no chat template")
        talk = _Talk.of(tokenizer)
        added = tokenizer.get_added_vocab()
        asked = talk.after(_USER, add_generation_prompt=False)
        prompted = talk.after(_USER, add_generation_prompt=True)
        user_end = asked if prompted.startswith(asked) else _shared(asked, prompted, added)
        prompt = prompted[len(user_end) :]
        to_next = talk.between()
        try:
            closed = talk.after(_USER, _ANSWER, add_generation_prompt=True)
        except ConfigError:
            closed = "\0"  # like nothing that follows: some templates want a user's message last
        end: str | None = None
        if closed.endswith(prompt) and to_next.startswith(closed.removesuffix(prompt)):
            end = closed.removesuffix(prompt)
        elif to_next.startswith(closed):
            end = closed  # no generation prompt behind an answer
        elif not prompt and asked.endswith(closed[len(common := _shared(closed, to_next, added)) :]):
            # A header after every turn, asked for or not: it is the part that the next user's turn does not share.
            end, prompt = common, closed[len(common) :]
            user_end = asked.removesuffix(prompt)
        if not end:
            # Nothing closes an answer, or nothing closes the last one, or in another way than those before it: the next
            # user's header starts where it looks most like the assistant's.
            start = max(range(len(to_next)), key=lambda i: _common(to_next[i:], prompt), default=0)
            if _common(to_next[start:], prompt) >= _MIN_HEADER_START:
                end = to_next[:start]
        if end is None:
            _unclear("turns end in different ways")
        header = prompt or user_end
        if not header.strip() or (not prompt and header == end):
            _unclear("it does not tell the roles apart")
        on, off = (talk.generation_prompt(thinking=thinking) or header for thinking in (True, False))
        return cls(
            generation_prompt=prompt,
            end_of_turn=end,
            header=header,
            user_header=to_next[len(end) :],
            thinking=(on, off) if on != off else (header, header),
        )

    def suffix_and_header(self, variant: Variant) -> tuple[str, str]:
        """What is added to the generation prompt for a variant, and the header with it."""
        on, off = self.thinking
        target = on if variant == "reasoning" else off
        # A default that thinks, asked not to, is extended; one that would have to be replaced is left to the caller's
        # template_kwargs, and only the injected header follows the variant.
        suffix = target[len(self.header) :] if target.startswith(self.header) else ""
        block = _EMPTY_BLOCK.match(off[len(on) :]) if off.startswith(on) else None
        if variant == "reasoning" and block:
            # The model opens its reasoning itself; in the lookahead that would only cost tokens.
            target += block[1] + ("\n" if block[2] else "")
        return suffix, target

    def up_to_role(self, header: str, added: Iterable[str]) -> str:
        """The header up to and with the token that holds the role word: the first word that differs from the user's."""
        start = _common(header, self.user_header)
        word = next((m for m in re.finditer(r"\w+", header) if m.end() > start), None)
        if word is None or not self.generation_prompt:
            return header.rstrip() or header
        ends = (m.end() for token in added for m in re.finditer(re.escape(token), header) if m.start() < word.end())
        return header[: max([word.end(), *(end for end in ends if end > word.end())])]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Talk:
    """Renders sentinel conversations with a tokenizer, in the form of content that its template takes."""

    tokenizer: Any
    in_parts: bool

    @classmethod
    def of(cls, tokenizer: Any) -> _Talk:
        talk = cls(tokenizer=tokenizer, in_parts=False)
        try:
            talk.after(_USER, add_generation_prompt=True)
        except ConfigError:
            return cls(tokenizer=tokenizer, in_parts=True)
        return talk

    def render(self, *contents: str, **kwargs: Any) -> str:
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.in_parts else text}
            for role, text in zip(("user", "assistant", "user"), contents, strict=False)
        ]
        try:
            return render(self.tokenizer, messages, **kwargs)
        except ConfigError:
            _unclear("it does not render a plain conversation")

    def after(self, *contents: str, **kwargs: Any) -> str:
        """What follows the last message."""
        parts = self.render(*contents, **kwargs).split(contents[-1])
        if len(parts) != 2:
            _unclear("it does not render each message once")
        return parts[1]

    def between(self) -> str:
        """What is between an answer and the next question."""
        parts = re.split(f"{_ANSWER}|{_NEXT}", self.render(_USER, _ANSWER, _NEXT, add_generation_prompt=True))
        if len(parts) != 3:
            _unclear("it does not render each message once")
        return parts[1]

    def generation_prompt(self, *, thinking: bool) -> str:
        """The generation prompt with thinking on or off, by either name that templates have for it."""
        kwargs = {"enable_thinking": thinking, "thinking": thinking}
        with_prompt, without = (self.after(_USER, add_generation_prompt=add, **kwargs) for add in (True, False))
        return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""


def _common(first: str, second: str) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _shared(text: str, other: str, added: Iterable[str]) -> str:
    """The common prefix of two texts, up to the last of `added` that ends in it, and the space behind that."""
    prefix = text[: _common(text, other)]
    end = max([0, *(m.end() for token in added for m in re.finditer(re.escape(token), prefix))])
    space = re.compile(r"\s*").match(prefix, end)
    return prefix[: space.end() if space else end]


def _unclear(reason: str) -> NoReturn:
    raise ConfigError(
        f"no Safety Tokens can be derived from the chat template: {reason}; pass rethink='<end of turn + assistant "
        "header>' and probe='<the same up to the role word>'"
    )
