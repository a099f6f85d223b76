"""The surfaces of an LLM: its eight methods, its tools, and who is told of what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import Any

from llama_index.core.callbacks import LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index_instrumentation import get_dispatcher
from pydantic import PrivateAttr

from llama_index.llms.ada_guard.testing import EventRecorder, RecordingCallback
from llama_index_leaks.plants import IN_TEXT, PLANTS, SelfCalling
from llama_index_leaks.positions import Setup
from llama_index_leaks.record import Record
from llama_index_leaks.surface import ASK, ASKED, AsyncUse, Surface, Use

__all__ = ["LLM_SURFACES"]


def _whole(name: str, asked: Any) -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        record.end(setup.app.whole(getattr(setup.llm, name)(asked)))

    async def ause(setup: Setup, record: Record) -> None:
        record.end(setup.app.whole(await getattr(setup.llm, f"a{name}")(asked)))

    return use, ause


def _streamed(name: str, asked: Any) -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        parts = []
        with closing(getattr(setup.llm, name)(asked)) as stream:
            for part in setup.app.stream(stream):
                record.see("a response", part)
                parts.append(part)
        record.end(*parts)

    async def ause(setup: Setup, record: Record) -> None:
        parts = []
        async with aclosing(await getattr(setup.llm, f"a{name}")(asked)) as stream:
            async for part in setup.app.astream(stream):
                record.see("a response", part)
                parts.append(part)
        record.end(*parts)

    return use, ause


def _calling() -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        llm: Any = setup.llm
        answer = setup.app.whole(llm.predict_and_call([setup.tool], user_msg=ASK, error_on_no_tool_call=False))
        record.end(*_called(answer))

    async def ause(setup: Setup, record: Record) -> None:
        llm: Any = setup.llm
        answer = await llm.apredict_and_call([setup.tool], user_msg=ASK, error_on_no_tool_call=False)
        record.end(*_called(setup.app.whole(answer)))

    return use, ause


def _called(answer: Any) -> Iterator[Any]:
    yield str(answer)
    yield from (source.model_dump(exclude={"raw_output"}) for source in getattr(answer, "sources", ()))


class _ReadingSpans(SimpleSpanHandler):
    """Looks at what spans are entered and left with."""

    _record: Record = PrivateAttr()

    def new_span(self, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> SimpleSpan | None:
        self._record.see("arguments of a span", bound_args.arguments)
        return super().new_span(id_, bound_args, *args, **kwargs)

    def prepare_to_exit_span(
        self, id_: str, bound_args: Any, instance: Any = None, result: Any = None, **_: Any
    ) -> Any:
        self._record.see("the result of a span", result)
        return super().prepare_to_exit_span(id_, bound_args, instance, result)


@contextmanager
def _events(setup: Setup, record: Record, *, filtered: bool) -> Iterator[None]:
    recorder = EventRecorder()
    with recorder.listening(filtered=filtered):
        yield
    for name in dict.fromkeys(type(event).__name__ for event in recorder.events):
        record.see(name, [event for event in recorder.events if type(event).__name__ == name])


@contextmanager
def _spans(setup: Setup, record: Record) -> Iterator[None]:
    handler = _ReadingSpans()
    handler._record = record
    root = get_dispatcher()
    before = list(root.span_handlers)
    root.add_span_handler(handler)
    try:
        yield
    finally:
        root.span_handlers = before


@contextmanager
def _callbacks(setup: Setup, record: Record) -> Iterator[None]:
    kept, debug = RecordingCallback(), LlamaDebugHandler(print_trace_on_end=False)
    counting = TokenCountingHandler(tokenizer=str.split)
    handlers = [kept, debug, counting]
    # Managers that are made without handlers share those of the Settings, once anything has asked for them.
    lists = {
        id(manager.handlers): manager.handlers
        for manager in (setup.speaker.callback_manager, setup.llm.callback_manager)
    }
    for told in lists.values():
        told += handlers
    try:
        yield
    finally:
        for told in lists.values():
            told[:] = [handler for handler in told if handler not in handlers]
    record.see("a callback", kept.starts, kept.ends)
    record.see("LlamaDebugHandler", [vars(event) for event in debug.get_events()])
    record.see("TokenCountingHandler", [vars(count) for count in counting.llm_token_counts])


def _observed(observing: Callable[..., Any], **settings: Any) -> tuple[Use, AsyncUse]:
    """All streams and whole answers of an LLM, while somebody is told."""

    def use(setup: Setup, record: Record) -> None:
        quiet = Record(record.word)
        with observing(setup, record, **settings):
            for one, _ in _USES:
                one(setup, quiet)
        record.outcomes += quiet.outcomes

    async def ause(setup: Setup, record: Record) -> None:
        quiet = Record(record.word)
        with observing(setup, record, **settings):
            for _, one in _USES:
                await one(setup, quiet)
        record.outcomes += quiet.outcomes

    return use, ause


_USES = [
    _whole("chat", ASKED),
    _streamed("stream_chat", ASKED),
    _whole("complete", ASK),
    _streamed("stream_complete", ASK),
]


def _surface(name: str, uses: tuple[Use, AsyncUse], **settings: Any) -> Surface:
    return Surface(name=name, kind="llm", use=uses[0], ause=uses[1], **settings)


LLM_SURFACES: list[Surface] = [
    _surface("chat", _USES[0], shows=frozenset(PLANTS) - {"thinking delta"}),
    _surface("stream_chat", _USES[1]),
    _surface("complete", _USES[2], shows=IN_TEXT),
    _surface("stream_complete", _USES[3], shows=IN_TEXT),
    _surface(
        "predict_and_call",
        _calling(),
        shows=IN_TEXT | {"tool arguments", "tool name"},
        raises={"tool name": (KeyError,)},  # it looks the tool up
    ),
    _surface("instrumentation events", _observed(_events, filtered=False)),
    _surface(
        "events, LLM that calls itself", _observed(_events, filtered=False), speaker=SelfCalling, leaks_by_design=True
    ),
    _surface("the same, GuardedEventFilter", _observed(_events, filtered=True), speaker=SelfCalling),
    _surface("spans", _observed(_spans), speaker=SelfCalling, shows=frozenset(PLANTS) - {"thinking delta"}),
    _surface("callbacks", _observed(_callbacks), speaker=SelfCalling, shows=frozenset(PLANTS) - {"thinking delta"}),
]
