"""What every part of the conformance suite asks of a test class. pytest is needed only when a test is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms import LLM

__all__ = ["ConformanceSettings"]


class ConformanceSettings:
    """What an LLM's test class says of it.

    Attributes:
        prompt: What the LLM is asked; its answer should be some twenty words long.
        deltas_add_up: Whether messages are cumulative and deltas add up to them.
        repeats_itself: Whether the same question gets the same answer.
        calls_itself: Whether some of its methods call others, as those of `CustomLLM` do. LlamaIndex then tells
            observers of both, and asks the rate limiter for both.
    """

    prompt: str = "Say something."
    deltas_add_up: bool = True
    repeats_itself: bool = True
    calls_itself: bool = False

    def make_llm(self, **settings: Any) -> LLM:
        """A new LLM.

        Args:
            settings: Fields of `LLM` to be set, such as ``system_prompt``.
        """
        raise NotImplementedError("say in make_llm which LLM is tested")

    def make_calling_llm(self, name: str, arguments: dict[str, Any]) -> LLM | None:
        """A new LLM whose answer calls a tool; None if it cannot be made to.

        Args:
            name: The tool.
            arguments: What it is called with.
        """
        return None

    def steps(self, llm: LLM) -> int | None:
        """How much an LLM from `make_llm` has generated so far, in any unit; None if nobody counts."""
        return None

    def prompts(self, llm: LLM) -> Sequence[str] | None:
        """What the model behind an LLM from `make_llm` was sent so far, as texts; None if nobody knows."""
        return None

    @property
    def _asked(self) -> list[ChatMessage]:
        return [ChatMessage(role=MessageRole.USER, content=self.prompt)]

    def _needs(self, given: bool, otherwise: str) -> None:
        if not given:
            _skip(otherwise)


def _skip(reason: str) -> NoReturn:
    import pytest

    pytest.skip(reason)
