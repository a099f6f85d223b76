"""A source over any iterable of strings: another library's stream, a generator, a list. Knows no socket."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ada_guard.delta import Delta, Fragment, Usage
from ada_guard.errors import AdaGuardError, ConfigError, GenerationError
from ada_guard.steps import Steps, run_on

__all__ = ["IterableSource"]

END = object()


class IterableSource:
    """Gives out what an iterable holds, text by text. Reads no further than it is pulled.

    Args:
        items: Strings, or `Delta` objects. A sync iterable serves both kinds of use: an event loop advances it on a
            worker thread. An async one needs an event loop.
        finish_reason: Given out at the end, unless a `Delta` held one.
    """

    def __init__(
        self, items: Iterable[str | Delta] | AsyncIterable[str | Delta], *, finish_reason: str = "stop"
    ) -> None:
        if isinstance(items, str | bytes) or not isinstance(items, Iterable | AsyncIterable):
            raise ConfigError("a source needs an iterable of strings")
        self._cursor = _Cursor(items)
        self._finish_reason: str | None = finish_reason
        self._over = False

    usage: Usage | None = None

    def pull(self) -> Steps[Delta | None]:
        """The next delta; None once there is no further one.

        Raises:
            ConfigError: The iterable is async and the caller is not.
            GenerationError: The iterable failed, or holds something else. Its own error is named, not shown or chained:
                it may carry the text.
        """
        item: Any = ""
        while not self._over and item == "":
            fault: AdaGuardError | None = None
            try:
                item = yield _Next(self._cursor)
            except Exception as error:  # noqa: BLE001  # whatever the iterable raises
                fault = error if isinstance(error, AdaGuardError) else _failed(error)
            if item is END:
                yield from self.close()
                return Delta(finish_reason=self._finish_reason) if self._finish_reason else None
            if not isinstance(item, str | Delta):
                fault = GenerationError(f"the source gave a {type(item).__name__} where a string was expected")
            if fault is not None:
                yield from self.close()
                raise fault
        if self._over:
            return None
        if isinstance(item, Delta):
            self._finish_reason = None if item.finish_reason else self._finish_reason
            return item
        return Delta(fragments=(Fragment(text=item),))

    def close(self) -> Steps[None]:
        """Closes a generator, and with it what is behind it. May be called twice."""
        if self._over:
            return
        self._over = True
        with suppress(Exception):  # nothing more is wanted of it, and its error may carry text
            yield _Close(self._cursor)


class _Cursor:
    """The place in an iterable. Whether it is a sync or an async one is settled by who asks first."""

    def __init__(self, items: Any) -> None:
        self._items = items
        self._iterator: Any = None
        self._worker: ThreadPoolExecutor | None = None

    def advance(self) -> Any:
        if self._iterator is None:
            if not isinstance(self._items, Iterable):
                raise ConfigError("an async iterable needs async code: use the guard's async methods")
            self._iterator = iter(self._items)
        return next(self._iterator, END)

    async def aadvance(self) -> Any:
        if isinstance(self._items, AsyncIterable):
            self._iterator = aiter(self._items) if self._iterator is None else self._iterator
            return await anext(self._iterator, END)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ada-guard-source")
        return await run_on(self._worker, self.advance)

    def close(self) -> None:
        for holder in (self._iterator, self._items):
            if callable(close := getattr(holder, "close", None)):
                close()
                return

    async def aclose(self) -> None:
        for holder in (self._iterator, self._items):
            if callable(aclose := getattr(holder, "aclose", None)):
                await aclose()
                return
        if self._worker is None:
            self.close()
        else:
            try:
                await run_on(self._worker, self.close)
            finally:
                self._worker.shutdown(wait=False)


class _Next:
    def __init__(self, cursor: _Cursor) -> None:
        self.run = cursor.advance
        self.arun = cursor.aadvance


class _Close:
    def __init__(self, cursor: _Cursor) -> None:
        self.run = cursor.close
        self.arun = cursor.aclose


def _failed(error: Exception) -> GenerationError:
    return GenerationError(f"the source failed ({type(error).__name__})")
