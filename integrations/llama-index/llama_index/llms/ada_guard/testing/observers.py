"""Who is told of what an LLM says: recorders for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.callbacks import CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.types import BaseOutputParser
from llama_index_instrumentation import get_dispatcher
from pydantic import PrivateAttr

from llama_index.llms.ada_guard.inner import GuardedEventFilter

__all__ = ["CountingLimiter", "EventRecorder", "RecordingCallback", "ShoutingParser"]


class EventRecorder(BaseEventHandler):
    """Keeps the instrumentation events that it is told."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """The name in traces."""
        return "EventRecorder"

    @property
    def events(self) -> list[BaseEvent]:
        """In the order in which they came, copied when they came."""
        return self._events

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Keeps an event."""
        self._events.append(event.model_copy())

    @contextmanager
    def listening(self, *, filtered: bool = False) -> Iterator[EventRecorder]:
        """Listens to all of LlamaIndex.

        Args:
            filtered: Whether only to what `GuardedEventFilter` passes on.
        """
        root = get_dispatcher()
        handler = GuardedEventFilter(handler=self) if filtered else self
        before = list(root.event_handlers)
        root.add_event_handler(handler)
        try:
            yield self
        finally:
            root.event_handlers = before


class RecordingCallback(BaseCallbackHandler):
    """Keeps what a `CallbackManager` tells its handlers."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.starts: list[tuple[CBEventType, dict[str, Any]]] = []
        self.ends: list[tuple[CBEventType, dict[str, Any]]] = []

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Something begins."""
        self.starts.append((event_type, dict(payload or {})))
        return event_id

    def on_event_end(
        self, event_type: CBEventType, payload: dict[str, Any] | None = None, event_id: str = "", **kwargs: Any
    ) -> None:
        """It has ended."""
        self.ends.append((event_type, dict(payload or {})))

    def start_trace(self, trace_id: str | None = None) -> None:
        """Not kept."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Not kept."""


class CountingLimiter:
    """A rate limiter that lets everything pass, and counts."""

    def __init__(self) -> None:
        self.acquired = 0

    def acquire(self, num_tokens: int = 0) -> None:
        """One request."""
        self.acquired += 1

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """One request."""
        self.acquired += 1


class ShoutingParser(BaseOutputParser):
    """Puts what it is given into capital letters."""

    def __init__(self) -> None:
        self.parsed: list[str] = []
        self.formatted: list[str] = []

    def parse(self, output: str) -> str:
        """An answer."""
        self.parsed.append(output)
        return output.upper()

    def format(self, query: str) -> str:
        """A prompt."""
        self.formatted.append(query)
        return f"{query} (loud)"
