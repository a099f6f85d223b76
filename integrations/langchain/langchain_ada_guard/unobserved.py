"""Keeps what happens inside a guarded model from whoever observes the chain around it.

LangChain hands callbacks and tracers down to nested calls in context variables. A model that calls another model inside
would give its raw tokens to all of them: to `astream_events`, to LangGraph's streams, to LangSmith.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextvars import Context, ContextVar, Token, copy_context
from dataclasses import is_dataclass, replace
from typing import Any, Self, TypeVar

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


def _untraced() -> Context:
    with tracing_context(enabled=False, parent=False):
        return copy_context()


_UNTRACED = tuple(Context().run(_untraced).items())
"""What LangSmith sets in order not to trace, found once: to have it done for each chunk is most of a chunk's cost."""


class unobserved:  # noqa: N801  # it is written as ``with unobserved():``
    """For one step of the model inside: no callback and no tracer from outside reaches what it calls.

    Must be entered and left within one step, never around a ``yield``: a generator shares its consumer's context. One
    object serves all steps of a stream, one after the other: it remembers what a config is without its observers.
    """

    def __init__(self) -> None:
        self._config: RunnableConfig | None = None
        self._without: RunnableConfig | None = None
        self._tokens: list[tuple[ContextVar[Any], Token[Any]]] = []
        self._kept: list[tuple[ContextVar[Any], Any]] = []

    def __call__(self) -> Self:
        """Itself, for whoever asks for a context manager before each step."""
        return self

    def __enter__(self) -> None:
        config = var_child_runnable_config.get()
        if config is not self._config:
            self._config, self._without = config, _quiet(config)
        shown: list[tuple[ContextVar[Any], Any]] = [
            (var_child_runnable_config, self._without),
            (tracing.tracing_v2_callback_var, None),
            # Where an environment variable asks for a handler, LangChain makes one unless there is one.
            *(
                (variable, _INERT if env and env_var_is_set(env) else None)
                for variable, _, _, env in tracing._configure_hooks
            ),
        ]
        # Setting a variable costs several times what looking at it does, and most are what they should be.
        self._tokens = [(variable, variable.set(value)) for variable, value in shown if variable.get(None) is not value]
        self._kept = []
        for variable, value in _UNTRACED:
            if variable.get(None) is value:
                self._kept.append((variable, value))
            else:
                self._tokens.append((variable, variable.set(value)))

    def __exit__(self, *_: object) -> None:
        for variable, token in reversed(self._tokens):
            variable.reset(token)
        for variable, value in self._kept:
            if variable.get(None) is not value:
                variable.set(value)
        self._tokens = []


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
