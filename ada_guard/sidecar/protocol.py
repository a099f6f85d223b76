"""What a sidecar is to a guard: it opens a session for each stream, follows its text and answers checkers. Torch-free.

Everything that may wait is a generator of steps (`ada_guard.steps`), so that one guard serves threads and event loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ada_guard.checking import Ask, Calibration, CheckContext, Checker
from ada_guard.delta import Fragment
from ada_guard.errors import ConfigError
from ada_guard.policy import Schedule
from ada_guard.session import Piece
from ada_guard.steps import Steps
from ada_guard.verdict import Verdict

__all__ = ["Conversation", "Following", "Sidecar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a stream answers.

    Attributes:
        messages: Role/content mappings as the user's request holds them; an assistant turn at the end is a prefill.
            Empty where there is a `raw_prompt`.
        tools: Tool definitions of the request.
        template_kwargs: Variables of the sidecar's chat template.
        raw_prompt: A text without roles (the completions API).
        cache_salt: What separates the prefix cache of an endpoint between tenants; a check by the endpoint's own model
            needs the same as the stream.
    """

    messages: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    tools: Sequence[Any] | None = field(default=None, repr=False)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    raw_prompt: str | None = field(default=None, repr=False)
    cache_salt: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        messages: Sequence[Mapping[str, Any]] | str,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Conversation:
        """A conversation from what a request holds; a text is a raw prompt."""
        if template_kwargs is not None and not isinstance(template_kwargs, Mapping):
            raise ConfigError("template_kwargs is a mapping of variables of the chat template")
        if isinstance(messages, str):
            return cls(raw_prompt=messages, tools=tools, template_kwargs=template_kwargs or {})
        return cls(messages=messages, tools=tools, template_kwargs=template_kwargs or {})

    def plain_messages(self) -> Sequence[Mapping[str, Any]]:
        """The messages, for what takes nothing else.

        Raises:
            ConfigError: It is a raw prompt.
        """
        if self.raw_prompt is not None:
            raise ConfigError("messages is a list of at least one {'role': ..., 'content': ...}")
        return self.messages


class Following(Protocol):
    """One stream's place in a sidecar: it follows the text, and the Safety Tokens are injected behind it."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the answer, without a prefill."""
        ...

    @property
    def prefill_tokens(self) -> int:
        """Assistant tokens that the conversation ended with."""
        ...

    @property
    def prefill_text(self) -> str:
        """Their text."""
        ...

    def push(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> Steps[list[Piece]]:
        """Takes what the source produced; returns the pieces that are settled by it.

        Args:
            fragments: In order.
            token_ids: Their ids, where the source gives ids of the sidecar's own tokenizer. Either every push of a
                stream has ids, or none.
        """
        ...

    def flush(self) -> Steps[list[Piece]]:
        """The last pieces, once the stream has ended."""
        ...

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        """Runs a checker behind exactly the first ``context.depth`` tokens, prefill included.

        Raises:
            CheckError: It could not be made.
        """
        ...

    def ahead_ms(self) -> float:
        """Wall time in milliseconds that was spent ahead on the check that is now to be made; 0 where none is."""
        ...

    def close(self) -> Steps[None]:
        """Frees the stream's memory. May be called twice."""
        ...


class Sidecar(Protocol):
    """What owns the model that judges. Used by many streams at once."""

    @property
    def name(self) -> str:
        """How it is called in reports."""
        ...

    @property
    def reads_source_ids(self) -> bool:
        """Whether its tokenizer is that of the endpoint by its nature, and the endpoint gives ids. After `connect`."""
        ...

    def connect(self) -> Steps[Calibration | None]:
        """Makes sure that it can judge, and says to what thresholds its probe was calibrated; None without a probe.

        Raises:
            CheckError: It cannot be reached.
            ConfigError: It is not what it should be.
        """
        ...

    def open(self, conversation: Conversation, *, asks: frozenset[type[Ask]], schedule: Schedule) -> Steps[Following]:
        """Begins to follow a stream; its prompt is read from now on, before any text has come.

        Args:
            conversation: What the stream answers.
            asks: The kinds of requests its checks will make: a sidecar may keep less where only the probe is asked.
            schedule: Where checks are to be expected, so that a distant sidecar can be asked for them ahead.

        Raises:
            ConfigError: The conversation cannot be shown to the sidecar's model.
            CheckError: The sidecar cannot be reached, or has no room.
        """
        ...

    def close(self) -> Steps[None]:
        """Frees everything."""
        ...
