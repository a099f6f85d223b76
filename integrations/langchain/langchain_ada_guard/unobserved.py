"""Keeps what happens inside a guarded model from whoever observes the chain around it.

LangChain hands callbacks and tracers down to nested calls in context variables. A model that calls another model inside
would give its raw tokens to all of them: to `astream_events`, to LangGraph's streams, to LangSmith.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing
from langchain_core.utils.env import env_var_is_set
from langsmith.run_helpers import tracing_context

__all__ = ["in_context", "unobserved"]

T = TypeVar("T")
_RUNTIME = "__pregel_runtime"
"""Where LangGraph keeps what a node may ask for."""


class _Inert(BaseCallbackHandler):
    """A handler that hears nothing."""

    ignore_llm = ignore_chat_model = ignore_chain = ignore_agent = True
    ignore_retriever = ignore_retry = ignore_custom_event = True


_INERT = _Inert()


@contextmanager
def unobserved() -> Iterator[None]:
    """For one step of the model inside: no callback and no tracer from outside reaches what it calls.

    Must be entered and left within one step, never around a ``yield``: a generator shares its consumer's context.
    """
    shown: list[tuple[ContextVar[Any], Any]] = [
        (var_child_runnable_config, _quiet(var_child_runnable_config.get())),
        (tracing.tracing_v2_callback_var, None),
        # Where an environment variable asks for a handler, LangChain makes one unless there is one.
        *(
            (variable, _INERT if env and env_var_is_set(env) else None)
            for variable, _, _, env in tracing._configure_hooks
        ),
    ]
    tokens = [(variable, variable.set(value)) for variable, value in shown if variable.get(None) is not value]
    try:
        # Without a parent it need not look for one, which is half of its work; this runs once a chunk.
        with tracing_context(enabled=False, parent=False):
            yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def _quiet(config: RunnableConfig | None) -> RunnableConfig | None:
    """The same config without callbacks, and without LangGraph's channels to whoever streams the graph around it.

    What a model may ask LangGraph for stays: settings, context and store. What it writes to the graph's stream is
    dropped: nobody has checked it.
    """
    if config is None:
        return None
    known = config.get("configurable") or {}
    settings = {key: value for key, value in known.items() if not key.startswith("__pregel_")}
    runtime = known.get(_RUNTIME)
    if is_dataclass(runtime) and not isinstance(runtime, type) and hasattr(runtime, "stream_writer"):
        settings[_RUNTIME] = replace(runtime, stream_writer=_drop)
    return {**config, "callbacks": None, "configurable": settings}


def _drop(_: Any) -> None:
    """Writes nowhere."""


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
