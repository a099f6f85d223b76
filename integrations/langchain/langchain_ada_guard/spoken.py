"""What ada_guard's own sources say, as LangChain's chunks; and what the chat models on them have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGenerationChunk

from ada_guard import Done, Event, Halt, Release
from ada_guard.delta import Usage
from ada_guard.tool_forms import WrittenCall
from ada_guard.tool_text import CallReader
from langchain_ada_guard.cut import cut_chunk, usage_after
from langchain_ada_guard.guarded import GuardedChat
from langchain_ada_guard.tool_text import call_chunk

__all__ = ["SpeakingChat", "Spoken", "usage_of"]

_KEYS = {"reasoning": "reasoning_content", "refusal": "refusal"}
"""Where in ``additional_kwargs`` a channel beside the text goes."""
_WHOLE = frozenset({"stop", "tool_calls", "function_call"})
"""Why an answer ends that was not broken off."""
_INPUT = {"cached_tokens": "cache_read", "audio_tokens": "audio"}
_OUTPUT = {"reasoning_tokens": "reasoning", "audio_tokens": "audio"}
"""Names of an endpoint's token counts -> LangChain's."""


class Spoken:
    """One answer of a source of ada_guard. What is released passes at once; tool calls with the end of the answer.

    Args:
        raises: Whether the guard raises after a cut, so that nothing takes the place of the answer.

    Attributes:
        model_name: Stands in the metadata of the last chunk.
        reader: Finds calls in the text, where the model writes them there.
    """

    failure: Exception | None = None
    """The sources of ada_guard raise what may be raised; nothing else is behind them."""

    def __init__(self, *, raises: bool) -> None:
        self.model_name: str | None = None
        self.reader: CallReader | None = None
        self._raises = raises
        self._calls: list[WrittenCall] = []
        self._events: list[Event] = []

    @property
    def cut(self) -> bool:
        """Whether the guard cut the answer."""
        return any(isinstance(event, Halt) for event in self._events)

    def chunks(self, event: Event) -> Iterator[ChatGenerationChunk]:
        """What passes with an event."""
        if isinstance(event, Release):
            yield from self._released(event)
            return
        self._events.append(event)
        if isinstance(event, Halt):
            self._calls, self.reader = [], None
        elif isinstance(event, Done) and not self.cut:
            yield from self._end(event)
        elif isinstance(event, Done) and not self._raises:
            usage = usage_after(None, 0, event.usage) if event.usage else None
            yield cut_chunk(self._events, usage, model_name=self.model_name)

    def _released(self, event: Release) -> Iterator[ChatGenerationChunk]:
        if event.call is not None:
            self._calls.append(WrittenCall(name=event.call.name, arguments=event.text, id=event.call.id))
        elif event.channel in _KEYS:
            yield from _said(beside={_KEYS[event.channel]: event.text})
        else:
            yield from _said(event.text if self.reader is None else self.reader.push(event.text))

    def _end(self, done: Done) -> Iterator[ChatGenerationChunk]:
        last = None if done.finish_reason in _WHOLE else len(self._calls) - 1
        if self.reader is not None:
            rest = self.reader.finish(done.token_ids)
            yield from _said(beside={_KEYS["reasoning"]: rest.reasoning} if rest.reasoning else {})
            yield from _said(rest.text)
            self._calls += rest.calls
        for index, call in enumerate(self._calls):
            yield ChatGenerationChunk(message=call_chunk(call, index, broken_off=index == last))
        metadata = {"finish_reason": done.finish_reason}
        if self.model_name:
            metadata["model_name"] = self.model_name
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                response_metadata=metadata,
                usage_metadata=None if done.usage is None else usage_of(done.usage),
                chunk_position="last",
            )
        )


class SpeakingChat(GuardedChat):
    """A chat model on a source of ada_guard. Settings that are None are not sent: the model's own hold."""

    temperature: float | None = None
    """0 is greedy."""
    max_tokens: int | None = None
    """Most tokens to generate."""
    stop: list[str] | None = None
    """Texts that end the answer and are not part of it."""
    seed: int | None = None
    """Of the sampling."""
    template_kwargs: Mapping[str, Any] | None = None
    """Variables of the chat template, such as ``enable_thinking``."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        # No validator of pydantic's: it would make another error of it, which shows the fields.
        self._require_source()

    @abstractmethod
    def _require_source(self) -> None:
        """Refuses a guard that does not generate.

        Raises:
            ConfigError: It has no such source.
        """

    def _passage(self) -> Spoken:
        return Spoken(raises=self.guard.policy.on_flag == "raise")

    def _settings(self, stop: list[str] | None, further: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of one call: the model's own, the `further` ones that it was given, and what the call says."""
        own = {"temperature": self.temperature, "max_tokens": self.max_tokens, "stop": self.stop, "seed": self.seed}
        said = {**own, **further, **asked, **({} if stop is None else {"stop": stop})}
        # No stop texts are the same as none given, which not every server thinks.
        return {name: value for name, value in said.items() if value is not None and (name != "stop" or value)}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        kwargs = dict(self.template_kwargs) if self.template_kwargs else None
        return {**super()._identifying_params, **self._settings(None, {}, {}), "template_kwargs": kwargs}


def usage_of(usage: Usage) -> UsageMetadata:
    """Token counts as LangChain keeps them."""
    sent, said = usage.prompt_tokens or 0, usage.completion_tokens
    found = UsageMetadata(input_tokens=sent, output_tokens=said, total_tokens=sent + said)
    if details := _details(usage.details.get("prompt_tokens_details"), _INPUT):
        found["input_token_details"] = InputTokenDetails(**details)  # type: ignore[typeddict-item]  # by the table
    if details := _details(usage.details.get("completion_tokens_details"), _OUTPUT):
        found["output_token_details"] = OutputTokenDetails(**details)  # type: ignore[typeddict-item]  # likewise
    return found


def _details(given: object, names: Mapping[str, str]) -> dict[str, int]:
    if not isinstance(given, Mapping):
        return {}
    return {ours: given[theirs] for theirs, ours in names.items() if isinstance(given.get(theirs), int)}


def _said(text: str = "", *, beside: dict[str, str] | None = None) -> Iterator[ChatGenerationChunk]:
    if text or beside:
        yield ChatGenerationChunk(message=AIMessageChunk(content=text, additional_kwargs=dict(beside or {})))
