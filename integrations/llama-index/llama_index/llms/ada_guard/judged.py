"""Against what an answer is judged: all that the LLM was sent, or the user's question alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from llama_index.llms.ada_guard.messages import guard_messages

__all__ = ["judged_against", "judged_messages", "question_asked"]

_QUESTION: ContextVar[str | None] = ContextVar("ada_guard_question", default=None)


@contextmanager
def judged_against(question: str | None) -> Iterator[None]:
    """Within it, guarded LLMs judge their answers against a question instead of the prompt they were sent.

    It holds for answers that are asked for within it, to their end, in tasks and in threads that start with a copy of
    the context; not to be held open around a ``yield``.

    Args:
        question: What the user asked; None for the prompt.
    """
    token = _QUESTION.set(question)
    try:
        yield
    finally:
        _QUESTION.reset(token)


def question_asked() -> str | None:
    """The question that answers are judged against here; None for the prompt."""
    return _QUESTION.get()


def judged_messages(prompt: str | Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """What the guard is shown as the conversation.

    Args:
        prompt: What the LLM is sent: messages, or the text of a completion.
    """
    question = question_asked()
    if question is None:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else guard_messages(prompt)
    messages: list[dict[str, Any]] = [] if isinstance(prompt, str) else guard_messages(prompt)
    # The answer's own beginning is no context.
    prefill = [message for message in messages[-1:] if message["role"] == "assistant"]
    return [{"role": "user", "content": question}, *prefill]
