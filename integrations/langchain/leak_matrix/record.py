"""All that a surface handed out, searched for a word at the moment it was handed out."""

from __future__ import annotations

import dataclasses
import logging
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel

__all__ = ["Record", "plain", "texts"]

_NOT_READ = (
    bool,
    int,
    float,
    complex,
    type,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.ModuleType,
    types.GeneratorType,
    types.AsyncGeneratorType,
    types.CoroutineType,
    types.TracebackType,
    types.FrameType,
    threading.Thread,
    logging.Logger,
    BaseChatModel,
    Runnable,
)
"""Numbers, code and machinery: no consumer reads an answer out of these."""


class Record:
    """Keeps where a word was found.

    Args:
        word: What to look for.

    Attributes:
        found: Labels of what held the word, in order, without repeats.
        outcomes: What the surface gave in the end, as plain values without the ids of runs, to compare with.
        error: What the surface raised.
    """

    def __init__(self, word: str) -> None:
        self.word = word
        self.found: list[str] = []
        self.outcomes: list[Any] = []
        self.error: Exception | None = None
        self.seen = 0

    def see(self, label: str, *values: object) -> None:
        """Searches what a consumer is handed."""
        self.seen += 1
        if label not in self.found and any(self.word in text for text in texts(values)):
            self.found.append(label)

    def end(self, *values: object) -> None:
        """Notes what the surface gave in the end, and searches it too."""
        self.see("the end result", *values)
        self.outcomes += [plain(value) for value in values]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Takes in what is raised and what is logged."""
        handler = _LogReader(self)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, a consumer can read it
            self.error = error
            self.see("an error", error)
        finally:
            root.removeHandler(handler)


class _LogReader(logging.Handler):
    def __init__(self, record: Record) -> None:
        super().__init__(level=logging.DEBUG)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        self._record.see("a log record", record.getMessage(), record.args, record.exc_info)


def texts(value: object, _met: dict[int, object] | None = None) -> Iterator[str]:
    """Every text that can be reached from a value, keys and attributes included."""
    met = {} if _met is None else _met
    if isinstance(value, str):
        yield value
        return
    if isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value).decode("utf-8", errors="ignore")
        return
    if value is None or isinstance(value, _NOT_READ) or id(value) in met:
        return
    met[id(value)] = value  # kept alive: an id that is free again would look as if it had been met
    inner: list[object] = []
    if isinstance(value, Mapping):
        inner += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        inner += list(value)  # type: ignore[call-overload]  # a deque is known by its name only
    if isinstance(value, BaseException):
        inner += [str(value), repr(value), value.args, value.__cause__, value.__context__]
    inner += vars(value).values() if hasattr(value, "__dict__") else ()
    inner += [getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)]
    if isinstance(value, BaseModel):
        inner += [value.__pydantic_extra__, value.__pydantic_private__]
    for item in inner:
        yield from texts(item, met)


def plain(value: Any) -> Any:
    """A value to compare runs by: messages by all that a provider says in them, without the ids of runs."""
    if isinstance(value, BaseMessage):
        said: dict[str, Any] = {
            "type": value.type.removesuffix("Chunk"),
            "content": value.content,
            "additional_kwargs": value.additional_kwargs,
            "response_metadata": value.response_metadata,
        }
        if isinstance(value, AIMessage):
            calls = {"tool_calls": value.tool_calls, "invalid_tool_calls": value.invalid_tool_calls}
            said |= {**calls, "usage_metadata": value.usage_metadata}
        return said
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    return type(value).__name__ if isinstance(value, BaseException) else value


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        yield from (name for name in ([slots] if isinstance(slots, str) else slots) if not name.startswith("__"))
