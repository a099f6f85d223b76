"""What a stream of an answer consists of before it is judged: fragments of text, reasoning and tool calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ada_guard.errors import ConfigError

CHANNELS = ("text", "reasoning", "refusal", "tool_call")

__all__ = ["Channel", "Delta", "Fragment", "ToolCall", "Usage"]

Channel: TypeAlias = Literal["text", "reasoning", "refusal", "tool_call"]
"""``"refusal"`` is the field in which some endpoints put the model's own refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """Which call a fragment belongs to.

    Attributes:
        index: Position among the calls of the answer, from 0.
        id: The endpoint's id, once known.
        name: Name of the tool, once known. Model text: kept out of ``repr``.
    """

    index: int
    id: str | None = field(default=None, repr=False)
    name: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """Some characters of one channel.

    Attributes:
        text: The characters; for a tool call, of its arguments.
        channel: Where they belong.
        call: For ``"tool_call"``, which one.
    """

    text: str = field(repr=False)
    channel: Channel = "text"
    call: ToolCall | None = None

    def __post_init__(self) -> None:
        if self.channel not in CHANNELS or not isinstance(self.text, str):
            raise ConfigError(f"a fragment has text, and one of the channels {', '.join(CHANNELS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as the endpoint states them.

    Attributes:
        prompt_tokens: Of the prompt; None where the endpoint does not say.
        completion_tokens: Of the answer.
        estimated: True where the stream was cut before the endpoint said so, and the counts are ours.
        details: Whatever else the endpoint's usage object held, such as ``prompt_tokens_details``.
    """

    prompt_tokens: int | None
    completion_tokens: int
    estimated: bool = False
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one message of an endpoint's stream adds to one choice.

    Attributes:
        fragments: In the order in which they are to be read.
        choice: Index of the choice, from 0.
        token_ids: Ids of the endpoint's tokenizer, where it gives them; those of this delta's fragments.
        finish_reason: Set once, when the choice has ended.
        usage: The endpoint's count so far. Belongs to the whole response, not to the choice.
    """

    fragments: tuple[Fragment, ...] = ()
    choice: int = 0
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    finish_reason: str | None = None
    usage: Usage | None = None
