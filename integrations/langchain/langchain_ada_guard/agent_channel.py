"""The guard's verdicts as a named channel of LangGraph's event streams (``version="v3"``)."""

from __future__ import annotations

from typing import Any

from langgraph.stream import ProtocolEvent, StreamChannel, StreamTransformer

from langchain_ada_guard.report import EVENT_NAME

__all__ = ["VerdictTransformer"]


class VerdictTransformer(StreamTransformer):
    """Copies what the guard wrote to the custom stream into a channel of its own.

    It is read as ``run.extensions["ada_guard"]``, or as ``custom:ada_guard`` among the run's events.
    """

    required_stream_modes = ("custom",)

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._here = list(scope)
        self._verdicts: StreamChannel[dict[str, Any]] = StreamChannel(EVENT_NAME)

    def init(self) -> dict[str, Any]:
        """The channel."""
        return {EVENT_NAME: self._verdicts}

    def process(self, event: ProtocolEvent) -> bool:
        """Copies an event of the guard's; every event stays where it was."""
        params = event["params"]
        if event["method"] == "custom" and params["namespace"] == self._here:
            data = params["data"]
            if isinstance(data, dict) and EVENT_NAME in data:
                self._verdicts.push(data[EVENT_NAME])
        return True
