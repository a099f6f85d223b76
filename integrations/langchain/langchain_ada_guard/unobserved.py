"""Keeps what happens inside a guarded model from whoever observes the chain around it.

LangChain hands callbacks and tracers down to nested calls in context variables. A model that calls another model inside
would give its raw tokens to all of them: to `astream_events`, to LangGraph's streams, to LangSmith.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing
from langsmith.run_helpers import tracing_context

__all__ = ["unobserved"]


@contextmanager
def unobserved() -> Iterator[None]:
    """For one step of the model inside: no callback and no tracer from outside reaches what it calls.

    Must be entered and left within one step, never around a ``yield``: a generator shares its consumer's context.
    """
    hooks = [hook[0] for hook in tracing._configure_hooks]
    hidden: list[ContextVar[Any]] = [var_child_runnable_config, tracing.tracing_v2_callback_var, *hooks]
    with ExitStack() as stack:
        for variable in hidden:
            if variable.get(None) is not None:
                stack.callback(variable.reset, variable.set(None))
        stack.enter_context(tracing_context(enabled=False))
        yield
