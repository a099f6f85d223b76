"""Tells LangChain's callbacks what the guard found: custom events without text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.callbacks.manager import BaseRunManager, ahandle_event, handle_event
from langchain_core.runnables.config import var_child_runnable_config

from ada_guard import Check, Done, Event, Halt

__all__ = ["EVENT_NAME", "Reporter", "event_data"]

EVENT_NAME = "ada_guard"
"""The name of the custom events."""
_ABOUT_TEXT = frozenset({"token_ids", "usage"})


def event_data(event: Event) -> dict[str, Any] | None:
    """What a callback is told of an event, as JSON types; None for events that carry text.

    Under ``"event"`` stands ``"check"``, ``"halt"`` or ``"done"``; the other keys are those of `ada_guard.Check`,
    `ada_guard.Halt` and `ada_guard.Done`, without token ids and usage.
    """
    if not isinstance(event, Check | Halt | Done):
        return None
    return {key: value for key, value in event.to_dict().items() if key not in _ABOUT_TEXT}


class Reporter:
    """Sends the events of one stream as ``on_custom_event(name="ada_guard", ...)``.

    They go to the callbacks of the chain, agent or graph in which the model runs, with the run id of that, and to those
    that the model was constructed with. LangChain shows a model that streams no callbacks that a single call was given:
    there, without a chain around it, only a cut is seen, in the message's metadata.

    Args:
        own: The callbacks that the model was constructed with.
        run: The model's own run, where LangChain shows it.
    """

    def __init__(
        self, own: Sequence[BaseCallbackHandler] | BaseCallbackManager | None, run: BaseRunManager | None = None
    ) -> None:
        config = var_child_runnable_config.get() or {}
        around = config.get("callbacks")
        handlers: list[BaseCallbackHandler] = []
        self._run_id: UUID = uuid4()
        self._metadata: dict[str, Any] = {}
        if run is not None:
            self._run_id = run.parent_run_id or run.run_id
            self._metadata = run.metadata
            handlers += run.handlers
        elif isinstance(around, BaseCallbackManager):
            self._run_id = around.parent_run_id or self._run_id
            self._metadata = around.metadata
            handlers += around.handlers
        elif isinstance(around, list):
            handlers += around
        handlers += own.handlers if isinstance(own, BaseCallbackManager) else own or []
        self._handlers = [handler for at, handler in enumerate(handlers) if handler not in handlers[:at]]

    def tell(self, event: Event) -> None:
        """Sends an event."""
        if self._handlers and (data := event_data(event)) is not None:
            handle_event(self._handlers, *self._call(data), run_id=self._run_id, metadata=self._metadata)

    async def atell(self, event: Event) -> None:
        """As `tell`, for async code."""
        if self._handlers and (data := event_data(event)) is not None:
            await ahandle_event(self._handlers, *self._call(data), run_id=self._run_id, metadata=self._metadata)

    def _call(self, data: dict[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        return "on_custom_event", "ignore_custom_event", EVENT_NAME, data
