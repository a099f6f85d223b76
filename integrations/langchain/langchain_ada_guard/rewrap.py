"""Finds a chat model inside a runnable and puts another in its place. Knows no guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableParallel, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.fallbacks import RunnableWithFallbacks

__all__ = ["swap_models"]


def swap_models(
    runnable: Runnable[Any, Any], swap: Callable[[BaseChatModel], Runnable[Any, Any]]
) -> Runnable[Any, Any]:
    """The same runnable with every chat model in it swapped; the runnable itself if there is none.

    Looks into bindings, sequences, parallels and fallbacks, which is what chat models build in ``bind_tools`` and
    ``with_structured_output``. A model inside a function of the user's is not found.

    Args:
        runnable: What to look through.
        swap: Chat model -> what takes its place.
    """
    if isinstance(runnable, BaseChatModel):
        return swap(runnable)
    if isinstance(runnable, RunnableBindingBase):
        return _changed(runnable, bound=swap_models(runnable.bound, swap))
    if isinstance(runnable, RunnableSequence):
        first, *middle, last = [swap_models(step, swap) for step in runnable.steps]
        return _changed(runnable, first=first, middle=middle, last=last)
    if isinstance(runnable, RunnableParallel):
        steps = {name: swap_models(step, swap) for name, step in runnable.steps__.items()}
        return _changed(runnable, steps__=steps)
    if isinstance(runnable, RunnableWithFallbacks):
        fallbacks = [swap_models(fallback, swap) for fallback in runnable.fallbacks]
        return _changed(runnable, runnable=swap_models(runnable.runnable, swap), fallbacks=fallbacks)
    return runnable


def _changed(before: Any, /, **fields: Any) -> Runnable[Any, Any]:
    """A copy with other fields, if they are others. Not validated again: some models bind with a class of their own."""
    same = all(_same(getattr(before, name), value) for name, value in fields.items())
    after: Runnable[Any, Any] = before if same else before.model_copy(update=fields)
    return after


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, list):
        return len(before) == len(after) and all(b is a for b, a in zip(before, after, strict=True))
    if isinstance(before, dict) or hasattr(before, "keys"):
        return all(before[key] is after[key] for key in after)
    return before is after
