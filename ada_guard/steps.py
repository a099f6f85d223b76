"""Work that a stream waits for, written once as a generator of steps and run sync or async. Knows no model, no socket.

A function that must wait for a model, a network or a queue returns a generator. It yields steps, is sent their results,
has their errors thrown into it, and returns its own result: ``piece = yield from source.pull()``.

asyncio and concurrent.futures are loaded on use: they would be most of what importing the guard costs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

__all__ = ["Sleep", "Step", "Steps", "Wait", "Work", "arun", "run", "run_on"]

T = TypeVar("T")


class Step(Protocol):
    """One thing to wait for, either way."""

    def run(self) -> Any:
        """Waits in the calling thread."""
        ...

    def arun(self) -> Awaitable[Any]:
        """Waits without holding up the event loop."""
        ...


Steps: TypeAlias = Generator[Step, Any, T]
"""Steps that end in a ``T``. To be run once, by `run`, `arun` or a ``yield from`` of other steps."""


@dataclass(frozen=True, slots=True)
class Work:
    """A call that belongs on a worker thread when an event loop waits for it."""

    call: Callable[[], Any]
    worker: Executor

    def run(self) -> Any:
        """Makes the call here."""
        return self.call()

    async def arun(self) -> Any:
        """Makes the call on the worker; see `run_on`."""
        return await run_on(self.worker, self.call)


@dataclass(frozen=True, slots=True)
class Wait:
    """A result that another thread delivers. Whoever stops waiting cancels it.

    Attributes:
        future: Where it will be.
        timeout_s: Longest wait in seconds; then `TimeoutError`.
    """

    future: Future[Any]
    timeout_s: float | None = None

    def run(self) -> Any:
        """Waits in this thread."""
        from concurrent.futures import CancelledError

        try:
            return self.future.result(self.timeout_s)
        except CancelledError:
            raise RuntimeError("the work was cancelled") from None  # by its owner: nobody cancelled the waiting
        finally:
            self.future.cancel()

    async def arun(self) -> Any:
        """Waits on the event loop."""
        import asyncio

        done = asyncio.wrap_future(self.future)
        try:
            await asyncio.wait({done}, timeout=self.timeout_s)
            if not done.done():
                raise TimeoutError
            if done.cancelled():
                raise RuntimeError("the work was cancelled")
            return done.result()
        finally:
            if not done.done():
                done.cancel()


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause in seconds."""

    seconds: float

    def run(self) -> None:
        """Sleeps in this thread."""
        time.sleep(self.seconds)

    async def arun(self) -> None:
        """Sleeps on the event loop."""
        import asyncio

        await asyncio.sleep(self.seconds)


def run(steps: Steps[T]) -> T:
    """Runs steps to their end in the calling thread."""
    act: Callable[[Any], Step] = steps.send
    value: Any = None
    while True:
        try:
            step = act(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        try:
            act, value = steps.send, step.run()
        except BaseException as error:  # noqa: BLE001  # not handled here: it is the steps' own to handle
            act, value = steps.throw, error


async def arun(steps: Steps[T]) -> T:
    """Runs steps to their end on the event loop."""
    act: Callable[[Any], Step] = steps.send
    value: Any = None
    while True:
        try:
            step = act(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        try:
            act, value = steps.send, await step.arun()
        except BaseException as error:  # noqa: BLE001  # as above; a cancellation too goes through the steps
            act, value = steps.throw, error


async def run_on(worker: Executor, call: Callable[[], T]) -> T:
    """Awaits a call on a worker thread; if cancelled, not before the call has left the thread."""
    import asyncio

    job = worker.submit(call)
    done = asyncio.wrap_future(job)
    cancelled = False
    while not done.done():
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError:
            cancelled = True
            job.cancel()  # takes effect only if it has not begun
    if cancelled:
        # Looked at, so that an error of a step nobody waits for is not reported as forgotten.
        _ = done.cancelled() or done.exception()
        raise asyncio.CancelledError
    return done.result()
