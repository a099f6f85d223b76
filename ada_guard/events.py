"""The events a guarded stream consists of; `to_dict` gives the objects that ``--json`` prints.

Text fields are kept out of ``repr``, so that an event in a log or a traceback shows no user or model text.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from ada_guard.delta import Channel, ToolCall, Usage

__all__ = ["Check", "CheckDecision", "Done", "Event", "FinishReason", "Halt", "HaltReason", "Release", "Replace"]

CheckDecision: TypeAlias = Literal["pass", "flag", "unchecked"]
FinishReason: TypeAlias = str
"""``"stop"``, ``"length"``, ``"tool_calls"``, or what else the source says; ``"content_filter"`` after a cut."""
HaltReason: TypeAlias = Literal["flag", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    choice: int = 0
    """Which of several answers to one request; 0 where there is one."""

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON types, its name under ``"event"``."""
        return {"event": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(_Event):
    """A check was made at a depth.

    Attributes:
        depth: Assistant tokens, prefill included, that the check saw.
        decision: ``"unchecked"`` stands for every check that failed or settled nothing; it never clears text.
        checker: Name of the checker that decided.
        harm_probability: In [0, 1], or None where the checker has none.
        threshold: In [0, 1], or None.
        reason: A word of the checker's fixed vocabulary, or the class name of the error.
        lookahead_tokens: Tokens generated for the check and thrown away.
        elapsed_ms: Wall time of the check in milliseconds; for a fused check, of the forward it rode in.
        partial_view: Whether there was something in the conversation that the sidecar could not be shown.
    """

    depth: int
    decision: CheckDecision
    checker: str
    harm_probability: float | None
    threshold: float | None
    reason: str | None
    lookahead_tokens: int
    elapsed_ms: float
    partial_view: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(_Event):
    """Text is handed to the consumer.

    Attributes:
        text: The characters. A tool call comes whole: its arguments.
        depth: Up to where the stream is now released.
        channel: ``"text"``, or the field of the answer that the characters belong to.
        call: For a tool call, its index, id and name.
    """

    text: str = field(repr=False)
    depth: int
    channel: Channel = "text"
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt(_Event):
    """The stream was cut at `depth`; the consumer has seen it up to `released_depth`."""

    depth: int
    reason: HaltReason
    released_depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace(_Event):
    """The text that stands in the place of what was cut."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(_Event):
    """The stream has ended. Always the last event unless an error is raised.

    Attributes:
        finish_reason: The source's own, or ``"content_filter"`` after a cut (an endpoint may say that by itself; a cut
            of ours comes with a `Halt`).
        generated_tokens: Tokens the source produced, without the prefill and without the end-of-sequence token.
        released_tokens: Tokens the consumer was shown.
        unchecked_released_tokens: Of those, tokens that no passing check covers. 0 under ``release="hold"``.
        checks: Checks made.
        check_ms: Their wall time in milliseconds, all together.
        wall_ms: Wall time of the whole stream in milliseconds.
        token_ids: Ids of the released tokens, in the tokenizer in which depth is counted.
        usage: Of the whole response, where an endpoint states it; after a cut marked as estimated if it had not.
    """

    finish_reason: FinishReason
    generated_tokens: int
    released_tokens: int
    unchecked_released_tokens: int
    checks: int
    check_ms: float
    wall_ms: float
    token_ids: tuple[int, ...] = field(repr=False)
    usage: Usage | None = None


Event: TypeAlias = Check | Release | Halt | Replace | Done
