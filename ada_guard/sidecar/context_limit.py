"""What is done when a conversation outgrows the context of the sidecar's model. Knows no model and no text.

``"error"``: the check fails, and nothing more is released. ``"slide"``: the model is shown the prompt and the newest
part of the answer, the verdict says that its view was partial, and a warning says so once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ada_guard.errors import ConfigError

__all__ = ["ContextLimit", "OnLongAnswer"]

OnLongAnswer: TypeAlias = Literal["error", "slide"]
_PROMPT_SHARE = 2
"""Of a context that has been outgrown, the prompt keeps at most one part in so many."""
_BEGINNING_SHARE = 4
"""Of a prompt that is longer than that, so much is its beginning (the system's message), and the rest its newest."""
_ANSWER_SHARE = 2
"""Of what the prompt leaves, the answer's newest tokens fill so much. The rest is for what comes: a context is rebuilt
only every time that this is used up, and not with every token."""
_LEAST_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextLimit:
    """The room in a model's context.

    Attributes:
        tokens: Its size; None: unlimited.
        reserve: Tokens that a check needs behind the text.
        policy: What is done when it is outgrown.
    """

    tokens: int | None
    reserve: int
    policy: OnLongAnswer = "error"

    def __post_init__(self) -> None:
        if self.policy not in ("error", "slide"):
            raise ConfigError("on_long_answer is 'error' or 'slide'")
        if self.policy == "slide" and self.tokens is not None and self._usable < _LEAST_TOKENS:
            raise ConfigError(f"the sidecar's context of {self.tokens} tokens is too short to slide in")

    def fits(self, tokens: int) -> bool:
        """Whether a check can be made behind so many tokens."""
        return self.tokens is None or tokens <= self._usable

    def head(self, prompt: Sequence[int]) -> list[int]:
        """What is kept of a prompt: all of it, or its beginning and its newest part."""
        most = self._usable // _PROMPT_SHARE
        if self.tokens is None or len(prompt) <= most:
            return list(prompt)
        beginning = most // _BEGINNING_SHARE
        return [*prompt[:beginning], *prompt[len(prompt) - (most - beginning) :]]

    def newest(self, head_tokens: int) -> int:
        """How many of the answer's tokens are kept behind a prompt of so many."""
        return (self._usable - head_tokens) // _ANSWER_SHARE

    @property
    def _usable(self) -> int:
        return (self.tokens or 0) - self.reserve
