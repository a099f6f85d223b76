"""A callback handler that counts what guards found and, where LangChain lets it, breaks off a model without one.

A callback sees text; it cannot hold any back, put another in its place or take it out of a history. To guard a model,
wrap it: `langchain_ada_guard.guard_model`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import BaseTracer

from ada_guard import Event, Guard
from ada_guard.errors import CheckError, ConfigError, ContentFlaggedError
from langchain_ada_guard.counts import TOLD_ONCE, GuardCounts, Tally
from langchain_ada_guard.cut import METADATA_KEY, cut_of
from langchain_ada_guard.followed import FollowedRuns, event_fragments, said
from langchain_ada_guard.guarded import require_guard
from langchain_ada_guard.messages import guard_messages, guard_tools
from langchain_ada_guard.report import EVENT_NAME, event_data

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["AdaGuardCallbackHandler", "CallbackLeakWarning"]

_LEAKS: Mapping[str, str] = {
    "whole": "a model answered without streaming: the answer is judged when it is complete, nothing is stopped",
    "v3": "a model streams by events (version v3): each text is shown before a callback sees it",
    "ahead": "another handler that runs inline stands before this one: it sees each text first",
}


class CallbackLeakWarning(UserWarning):
    """`AdaGuardCallbackHandler` was told to cut where LangChain shows text before a callback can."""


class AdaGuardCallbackHandler(BaseCallbackHandler):
    """Counts what the guards around it found. With a guard of its own it also breaks off models that have none.

    *Counting* is what it is for. It hears the custom events of guarded models (``on_custom_event(name="ada_guard")``)
    where it is a callback of the chain, agent or graph around them, or was given to the model itself:
    ``ChatAdaGuard(..., callbacks=[handler])``. As a callback of one ``stream`` of a bare model it gets no events: there
    it counts cuts alone, from the message's metadata or the error. None is counted twice.

    *Cutting*, with ``guard=``, raises `ContentFlaggedError` from a callback (`CheckError` where a check could not be
    made). It cannot hold text back, whatever the policy says: what was written since the last check has been shown, and
    so has the flagged token itself, which is judged when the next one shows where it ends. Nor can it replace: the
    policy's ``on_flag`` and ``replacement`` do not matter, ``release="audit"`` only counts. What a tracer or a history
    holds by then stays there. A guarded model is left to its own guard.

    | a model without a guard, called by | what is shown from the flagged token on | the model |
    |---|---|---|
    | ``stream``, ``astream``, a check at every token | the flagged token | is stopped |
    | ``stream``, ``astream``, a check every N tokens | up to N tokens | is stopped |
    | the same, flagged by the check at the end | everything, the error comes after it | has ended |
    | ``invoke``, ``ainvoke`` | nothing, the error comes instead | has ended |
    | ``astream_events`` v2, an agent's ``stream_mode="messages"`` | as ``stream`` | is stopped |
    | an agent, the handler given to the model | one chunk more: LangGraph's handler comes first | is stopped |
    | any, an inline handler before this one in the list | that one is shown one chunk more | is stopped |
    | events v3, a model that tells callbacks its tokens itself | as ``stream`` | is stopped |
    | events v3, any other model | one chunk more | is read no further, closed when collected |

    It warns once (`CallbackLeakWarning`) for each of these that it can notice: a whole answer, events v3, a handler
    before it in the list of a chain or graph. Handlers beside it at one call of a bare model it cannot see.

    In async code checks run on the event loop and block it: a callback that is not inline comes after those that are.

    Example:
        ```python
        audit = AdaGuardCallbackHandler(metrics=True)
        agent.invoke(question, config={"callbacks": [audit]})
        audit.counts.halts
        ```

    Args:
        guard: Who judges models that have no guard; None only counts.
        on_record: Called with a run id and each event, as `langchain_ada_guard.report.event_data` gives it, or
            ``{"event": "cut", ...}`` for a cut that no event told of. The run is that of the chain around the model;
            that of the model for events of `guard` and for cuts.
        metrics: Whether to keep Prometheus metrics ``ada_guard_langchain_*``, or in which registry.
        max_open_streams: Streams that `guard` follows at once. LangChain does not say when one is forgotten by its
            consumer; past this number the one that was idle the longest is dropped, and raises if it goes on.

    Raises:
        ConfigError: `guard` is none; `max_open_streams` is less than one.
        MissingExtraError: Metrics were asked for and prometheus-client is not installed.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        *,
        on_record: Callable[[UUID, Mapping[str, Any]], None] | None = None,
        metrics: bool | CollectorRegistry = False,
        max_open_streams: int = 1024,
    ) -> None:
        super().__init__()
        if guard is not None:
            require_guard(guard, "AdaGuardCallbackHandler")
        if max_open_streams < 1:
            raise ConfigError("max_open_streams must be >= 1")
        self.raise_error = self.run_inline = guard is not None
        self._runs = None if guard is None else FollowedRuns(guard, self._found, max_open_streams)
        self._on_record = on_record
        self._tally = Tally(metrics)
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    @property
    def counts(self) -> GuardCounts:
        """What was counted so far."""
        return self._tally.snapshot()

    @property
    def open_streams(self) -> int:
        """Streams that the handler's own guard follows now."""
        return 0 if self._runs is None else len(self._runs)

    # -- what guards report ----------------------------------------------------------------------------------------

    def on_custom_event(
        self, name: str, data: Any, *, run_id: UUID, metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Counts what a guarded model reports."""
        if name == EVENT_NAME and self._tally.event(data, told=TOLD_ONCE not in (metadata or {})):
            self._pass_on(run_id, data)

    def _found(self, run_id: UUID, event: Event) -> None:
        """Counts what the guard of its own found."""
        if (data := event_data(event)) is not None:
            self._tally.event(data, told=False)
            self._pass_on(run_id, data)

    def _cut(self, run_id: UUID, found: Mapping[str, Any]) -> None:
        if self._tally.cut(found):
            self._pass_on(run_id, {"event": "cut", **found})

    def _pass_on(self, run_id: UUID, data: Mapping[str, Any]) -> None:
        if self._on_record is not None:
            self._on_record(run_id, data)

    # -- a model's run ---------------------------------------------------------------------------------------------

    def on_chat_model_start(
        self, serialized: dict[str, Any] | None, messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Begins to follow a model that has no guard."""
        self._begin(run_id, kwargs.get("invocation_params") or {}, guard_messages(messages[0]))

    def on_llm_start(
        self, serialized: dict[str, Any] | None, prompts: list[str], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """As `on_chat_model_start`, for models of plain text: the prompt is taken for a user's turn."""
        self._begin(run_id, kwargs.get("invocation_params") or {}, [{"role": "user", "content": prompts[0]}])

    def on_llm_new_token(self, token: str | list[Any], *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        """Shows the guard what the model wrote; raises after a flag."""
        if self._runs is not None:
            message = getattr(chunk, "message", None)
            written = message if isinstance(message, BaseMessage) else said(token if isinstance(token, str) else "")
            self._runs.wrote(run_id, "token", written)

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """As `on_llm_new_token`, for models that stream by events."""
        if self._runs is not None and (fragments := event_fragments(event)):
            if run_id in self._runs and self._runs.told(run_id) != "token":
                self._warn("v3")
            self._runs.wrote(run_id, "event", fragments)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Counts a cut that no event told of; makes the last check of a model without a guard."""
        answers = self._answers(run_id, response)
        if self._runs is not None:
            whole = run_id in self._runs and self._runs.told(run_id) is None
            try:
                self._runs.ended(run_id, [said(answer) for answer in answers])
            finally:
                if whole:
                    self._warn("whole")

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Counts a cut that raised, or at which the consumer left; ends what was followed."""
        if self._runs is not None and self._runs.failed(run_id):
            return
        if isinstance(error, ContentFlaggedError):
            verdict = error.verdict
            self._cut(run_id, {"verdict": "flag", "depth": verdict.depth, "checker": verdict.checker})
        elif isinstance(error, CheckError):
            self._cut(run_id, {"verdict": "unchecked"})
        elif isinstance(response := kwargs.get("response"), LLMResult):
            self._answers(run_id, response)

    def _answers(self, run_id: UUID, response: LLMResult) -> list[BaseMessage | str]:
        """What a model has answered. A cut that it tells of is counted."""
        answers = [
            answer.message if isinstance(answer, ChatGeneration) else answer.text
            for answers in response.generations
            for answer in answers
        ]
        for answer in answers:
            if isinstance(answer, BaseMessage) and (entry := cut_of(answer)) is not None:
                self._cut(run_id, entry)
        return answers

    # -- a guard of its own ----------------------------------------------------------------------------------------

    def _begin(self, run_id: UUID, params: Mapping[str, Any], messages: list[dict[str, Any]]) -> None:
        if self._runs is None or _is_guarded(params):
            return
        if self._stands_behind_others():
            self._warn("ahead")
        tools = guard_tools(params.get("tools") or params.get("functions"))
        self._runs.begin(run_id, {"messages": messages, "tools": tools})

    def _stands_behind_others(self) -> bool:
        """Whether the chain around the model shows a handler that gets its tokens before this one."""
        around = (var_child_runnable_config.get() or {}).get("callbacks")
        handlers = around if isinstance(around, list) else getattr(around, "handlers", [])
        # One that is not in the list was given to the model itself: those of the chain come first.
        before = handlers[: handlers.index(self)] if self in handlers else handlers
        return any(map(_shows_at_once, before))

    def _warn(self, leak: str) -> None:
        with self._lock:
            if leak in self._warned:
                return
            self._warned.add(leak)
        warnings.warn(
            f"AdaGuardCallbackHandler: {_LEAKS[leak]}; wrap the model with guard_model to hold text back",
            CallbackLeakWarning,
            stacklevel=3,
        )


def _shows_at_once(handler: BaseCallbackHandler) -> bool:
    """Whether a handler may show text as it comes: a tracer keeps it, and keeps all of it in any case."""
    return handler.run_inline and (hasattr(handler, "tap_output_iter") or not isinstance(handler, BaseTracer))


def _is_guarded(params: Mapping[str, Any]) -> bool:
    """Whether a model's own parameters name a guard."""
    return METADATA_KEY in params or str(params.get("_type")).startswith("ada-guard")
