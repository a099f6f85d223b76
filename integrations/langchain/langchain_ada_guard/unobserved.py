"""Keeps what happens inside a guarded model from whoever observes the chain around it.

LangChain hands callbacks and tracers down to nested calls in context variables. A model that calls another model inside
would give its raw tokens to all of them: to `astream_events`, to LangGraph's streams, to LangSmith.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, TypeVar

from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing
from langsmith.run_helpers import tracing_context

__all__ = ["in_context", "unobserved"]

T = TypeVar("T")


@contextmanager
def unobserved() -> Iterator[None]:
    """For one step of the model inside: no callback and no tracer from outside reaches what it calls.

    Must be entered and left within one step, never around a ``yield``: a generator shares its consumer's context.
    """
    hooks = [hook[0] for hook in tracing._configure_hooks]
    hidden: list[ContextVar[Any]] = [var_child_runnable_config, tracing.tracing_v2_callback_var, *hooks]
    tokens = [(variable, variable.set(None)) for variable in hidden if variable.get(None) is not None]
    try:
        # Without a parent it need not look for one, which is half of its work; this runs once a chunk.
        with tracing_context(enabled=False, parent=False):
            yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def in_context(context: Context, items: Iterator[T]) -> Generator[T, None, None]:
    """The same iterator, each step of it made in one context, whichever thread asks for it.

    Args:
        context: A copy of the context in which the steps would be made by whoever wants them.
        items: What to advance; closed with the generator.
    """
    try:
        while (item := context.run(next, items, _END)) is not _END:
            yield item  # type: ignore[misc]  # a step gives an item, or the end
    finally:
        if callable(close := getattr(items, "close", None)):
            context.run(close)


_END = object()
