"""A whole answer, put together from the events of its stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ada_guard.delta import Channel, ToolCall
from ada_guard.events import Check, Done, Event, FinishReason, Halt, Release, Replace

__all__ = ["Completion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer.

    Attributes:
        text: The answer, or after a cut the replacement alone: what belongs into a history.
        reasoning: What the model thought aloud before it; empty after a cut.
        refusal: What an endpoint put into its field for refusals; empty after a cut.
        tool_calls: Calls with their arguments, each released whole; empty after a cut.
        released: The text that a stream's consumer saw before the cut, or all of it.
        events: Everything that happened, in order.
    """

    text: str = field(repr=False)
    reasoning: str = field(default="", repr=False)
    refusal: str = field(default="", repr=False)
    tool_calls: tuple[tuple[ToolCall, str], ...] = field(default=(), repr=False)
    released: str = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)

    @classmethod
    def of(cls, events: Sequence[Event]) -> Completion:
        """Puts the events of one stream together."""
        releases = [event for event in events if isinstance(event, Release)]

        def said(channel: Channel) -> str:
            return "".join(event.text for event in releases if event.channel == channel)

        if any(isinstance(event, Halt) for event in events):
            replacement = "".join(event.text for event in events if isinstance(event, Replace))
            return cls(text=replacement, released=said("text"), events=tuple(events))
        return cls(
            text=said("text"),
            reasoning=said("reasoning"),
            refusal=said("refusal"),
            tool_calls=tuple((event.call, event.text) for event in releases if event.call is not None),
            released=said("text"),
            events=tuple(events),
        )

    @property
    def done(self) -> Done:
        """The closing event, with the counts."""
        done = self.events[-1]
        assert isinstance(done, Done)
        return done

    @property
    def finish_reason(self) -> FinishReason:
        """``"content_filter"`` after a cut, otherwise the source's own."""
        return self.done.finish_reason

    @property
    def flagged(self) -> bool:
        """Whether any check flagged, cut or not."""
        return any(isinstance(event, Check) and event.decision == "flag" for event in self.events)
