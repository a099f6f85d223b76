"""What observers of a model can read: callbacks, tracers, counters, caches and histories."""

from __future__ import annotations

import warnings
from typing import Any

from langchain_core._api import LangChainDeprecationWarning
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.langchain import LangChainTracer
from langchain_core.tracers.schemas import Run

from leak_matrix.positions import Setup
from leak_matrix.record import Record, plain
from leak_matrix.surface import ASK, Surface, chain_of, config_of

__all__ = ["OBSERVER_SURFACES", "recorder"]


def recorder(record: Record, *, coroutines: bool = False) -> BaseCallbackHandler:
    """A user's callback handler that sees all that any handler is told."""
    base: Any = AsyncCallbackHandler if coroutines else BaseCallbackHandler

    def telling(name: str) -> Any:
        def tell(self: object, *args: Any, **kwargs: Any) -> None:
            record.see(name, args, kwargs)

        async def atell(self: object, *args: Any, **kwargs: Any) -> None:
            record.see(name, args, kwargs)

        return atell if coroutines else tell

    names = [name for name in dir(base) if name.startswith("on_")]
    handler: BaseCallbackHandler = type("Recorder", (base,), {name: telling(name) for name in names})()
    return handler


class _Ends(BaseCallbackHandler):
    def __init__(self) -> None:
        self.messages: list[Any] = []

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.messages += [generation.message for line in response.generations for generation in line]


def _callbacks(setup: Setup, record: Record) -> None:
    ends = _Ends()
    for _ in chain_of(setup).stream({"ask": ASK}, config_of(setup, recorder(record), ends)):
        pass
    setup.model.invoke(ASK, config_of(setup, recorder(record), ends))
    record.end(*ends.messages)


async def _acallbacks(setup: Setup, record: Record) -> None:
    ends = _Ends()
    handlers = [recorder(record), recorder(record, coroutines=True), ends]
    async for _ in chain_of(setup).astream({"ask": ASK}, config_of(setup, *handlers)):
        pass
    await setup.model.ainvoke(ASK, config_of(setup, *handlers))
    record.end(*ends.messages)


class _AllRuns(BaseTracer):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record
        self.messages: list[Any] = []

    def _persist_run(self, run: Run) -> None:
        self._record.see("a run", run)

    def on_llm_end(self, *args: Any, **kwargs: Any) -> Any:
        run = super().on_llm_end(*args, **kwargs)
        self._record.see("a model's run", run)
        for line in (run.outputs or {}).get("generations", []):
            self.messages += [plain_run(generation["message"]["kwargs"]) for generation in line]
        return run


def plain_run(fields: dict[str, Any]) -> dict[str, Any]:
    """A message as a tracer keeps it, without the ids of runs."""
    return {key: plain(value) for key, value in fields.items() if key not in ("id", "type", "tool_call_chunks")}


def _tracer(setup: Setup, record: Record) -> None:
    tracer = _AllRuns(record)
    for _ in chain_of(setup).stream({"ask": ASK}, config_of(setup, tracer)):
        pass
    record.end(*tracer.messages)


async def _atracer(setup: Setup, record: Record) -> None:
    tracer = _AllRuns(record)
    async for _ in chain_of(setup).astream({"ask": ASK}, config_of(setup, tracer)):
        pass
    record.end(*tracer.messages)


class _LangSmithDouble:
    """Stands where LangSmith's client does, and sends nothing anywhere."""

    tracing_queue = None
    api_url = ""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.messages: list[Any] = []

    def create_run(self, *args: Any, **kwargs: Any) -> None:
        self._record.see("create_run", args, kwargs)

    def update_run(self, *args: Any, **kwargs: Any) -> None:
        self._record.see("update_run", args, kwargs)
        for line in (kwargs.get("outputs") or {}).get("generations", []):
            self.messages += [plain_run(generation["message"]["kwargs"]) for generation in line]

    def flush(self) -> None:
        pass


def _langsmith(setup: Setup, record: Record) -> None:
    client: Any = _LangSmithDouble(record)
    tracer = LangChainTracer(project_name="leaks", client=client)
    for _ in chain_of(setup).stream({"ask": ASK}, config_of(setup, tracer)):
        pass
    record.end(*client.messages)


async def _alangsmith(setup: Setup, record: Record) -> None:
    client: Any = _LangSmithDouble(record)
    tracer = LangChainTracer(project_name="leaks", client=client)
    async for _ in chain_of(setup).astream({"ask": ASK}, config_of(setup, tracer)):
        pass
    record.end(*client.messages)


def _usage(setup: Setup, record: Record) -> None:
    with get_usage_metadata_callback() as usage:
        for _ in chain_of(setup).stream({"ask": ASK}, config_of(setup)):
            pass
    record.end(usage.usage_metadata)


async def _ausage(setup: Setup, record: Record) -> None:
    with get_usage_metadata_callback() as usage:
        async for _ in chain_of(setup).astream({"ask": ASK}, config_of(setup)):
            pass
    record.end(usage.usage_metadata)


def _cached() -> dict[str, Any]:
    return {"cache": InMemoryCache()}


def _cache(setup: Setup, record: Record) -> None:
    setup.model.invoke(ASK, config_of(setup))
    _look_into_cache(setup, record)


async def _acache(setup: Setup, record: Record) -> None:
    await setup.model.ainvoke(ASK, config_of(setup))
    _look_into_cache(setup, record)


def _look_into_cache(setup: Setup, record: Record) -> None:
    cache = setup.speaker.cache
    assert isinstance(cache, InMemoryCache)
    entries = list(cache._cache.values())  # its only way to be looked into
    record.see("an entry", entries)
    record.end(*(generation.message for entry in entries for generation in entry if hasattr(generation, "message")))


def _history_of(setup: Setup) -> tuple[Any, InMemoryChatMessageHistory, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainDeprecationWarning)  # still much used
        history = InMemoryChatMessageHistory()
        remembering = RunnableWithMessageHistory(setup.model, lambda session_id: history)
    return remembering, history, config_of(setup) | {"configurable": {"session_id": "1"}}


def _history(setup: Setup, record: Record) -> None:
    remembering, history, config = _history_of(setup)
    remembering.invoke(ASK, config)
    record.end(*history.messages[1:])


async def _ahistory(setup: Setup, record: Record) -> None:
    remembering, history, config = _history_of(setup)
    await remembering.ainvoke(ASK, config)
    record.end(*history.messages[1:])


OBSERVER_SURFACES: list[Surface] = [
    Surface(name="callbacks", kind="chain", use=_callbacks, ause=_acallbacks),
    Surface(name="tracer", kind="chain", use=_tracer, ause=_atracer),
    Surface(name="LangSmith tracer", kind="chain", use=_langsmith, ause=_alangsmith),
    Surface(name="usage callback", kind="chain", use=_usage, ause=_ausage, has_words=False),
    Surface(name="cache", kind="chain", use=_cache, ause=_acache, settings=_cached),
    Surface(name="message history", kind="chain", use=_history, ause=_ahistory),
]
