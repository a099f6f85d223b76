"""Structured output of a guarded model: a cut is an error there, never a value that is silently missing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda, RunnableSequence
from langchain_core.runnables.fallbacks import RunnableWithFallbacks

from langchain_ada_guard.cut import cut_of, refusal_error

__all__ = ["refusing"]


def refusing(structured: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """What ``with_structured_output`` built, with an error in front of its parser for answers that were cut.

    With ``include_raw=True`` the error stands under ``parsing_error``, as any error of the parser does.
    """
    if not isinstance(structured, RunnableSequence):
        return structured | _refusal()
    # Behind every step but the last: it is not known which of them is the model.
    *steps, last = map(_with_raw, structured.steps)
    return RunnableSequence(*(part for step in steps for part in (step, _refusal())), last)


def _refusal() -> Runnable[Any, Any]:
    return RunnableGenerator(_require_uncut, _arequire_uncut)


def _with_raw(step: Runnable[Any, Any]) -> Runnable[Any, Any]:
    if not isinstance(step, RunnableWithFallbacks):
        return step
    changed: Runnable[Any, Any] = step.model_copy(
        update={"runnable": RunnableLambda(_require_raw_uncut) | step.runnable}
    )
    return changed


def _require_uncut(messages: Iterator[Any]) -> Iterator[Any]:
    for message in messages:
        yield _uncut(message)


async def _arequire_uncut(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _uncut(message)


def _require_raw_uncut(raw: dict[str, Any]) -> dict[str, Any]:
    _uncut(raw.get("raw"))
    return raw


def _uncut(message: Any) -> Any:
    if isinstance(message, BaseMessage) and cut_of(message) is not None:
        raise refusal_error(message)
    return message
