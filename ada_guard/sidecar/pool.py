"""Many streams on one accelerator: gathers the due work of all of them into one forward pass after another.

One thread owns the model's KV memory and runs everything. Streams hand it work and wait for futures. Knows no text, no
policy and no socket.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from ada_guard.checking import Ask, AskLookahead, CheckContext, Checker
from ada_guard.errors import AdaGuardError, CheckError, ConfigError
from ada_guard.local.model import LocalModel
from ada_guard.sidecar.memory import Memory, open_memory
from ada_guard.sidecar.reading import Rows, checking, reading
from ada_guard.sidecar.slot import Job, Slot
from ada_guard.sidecar.stats import PoolStats
from ada_guard.sidecar.tenancy import Tenancy

__all__ = ["Pool"]

_IDLE_S = 5.0
"""After this time without a stream the thread ends, so that a sidecar nobody holds any more can be freed."""
_CLOSED = "the sidecar is closed"


class Pool:
    """Runs the checks of many streams.

    Args:
        model: The model.
        max_sessions: Streams that may be open at once; one more is a `CheckError`.
        max_waiting: Checks that may wait at once; one more is a `CheckError`.
        kv_bytes: Bound of the memory for keys and values, in bytes; None: 1 GiB on a CPU, half of what is free on a
            GPU.
        batch_tokens: Most tokens in one forward pass; None: 256 on a CPU, which is as fast at that as it gets, so that
            more would only let everybody wait for everybody; 8,192 on a GPU.
        chunk_tokens: Most tokens of one stream in one pass: a long prompt is read in pieces between the others' checks.
        max_retained: Finished conversations whose memory is kept for their next turn; 0 keeps none.
        window_ms: How long the first work waits for that of other streams, in milliseconds.
        packed: None: rows of many streams share a pass if this model turns out to take it. False: one at a time.

    Raises:
        ConfigError: A bound that cannot work; a model of which only the lower blocks are loaded and whose rows cannot
            share a pass.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        max_sessions: int = 1024,
        max_waiting: int = 1024,
        kv_bytes: int | None = None,
        batch_tokens: int | None = None,
        chunk_tokens: int = 256,
        max_retained: int = 64,
        window_ms: float = 2.0,
        packed: bool | None = None,
    ) -> None:
        on_gpu = model.model.device.type != "cpu"
        for name, value in (
            ("max_sessions", max_sessions),
            ("max_waiting", max_waiting),
            ("chunk_tokens", chunk_tokens),
            ("batch_tokens", batch_tokens),
            ("kv_bytes", kv_bytes),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be >= 1")
        if window_ms < 0 or max_retained < 0:
            raise ConfigError("window_ms and max_retained must be >= 0")
        self._model = model
        self._max_sessions = max_sessions
        self._max_waiting = max_waiting
        self._max_retained = max_retained
        self._batch_tokens = batch_tokens or (8192 if on_gpu else 256)
        self._chunk = min(chunk_tokens, self._batch_tokens)
        self._window_s = window_ms / 1000.0
        self._open_memory: Callable[[], Memory] = partial(open_memory, model, kv_bytes=kv_bytes, packed=packed)
        if model.probe_only:  # such a model cannot be run in another way: better to know at once
            opened = self._open_memory()
            self._open_memory = lambda: opened
        self._tenancy: Tenancy | None = None
        self._changed = threading.Condition()
        self._slots: set[Slot] = set()
        self._leaving: deque[Slot] = deque()
        self._incoming: deque[Job] = deque()
        self._active: list[Job] = []
        self._thread: threading.Thread | None = None
        # A pass that the process's end comes into would abort the process.
        self._at_exit = partial(_close_if_there, weakref.ref(self))
        self._stopped: str | None = None
        self._checks = self._passes = self._rows = 0

    # -- what streams ask -----------------------------------------------------------------------------------------

    def warm(self) -> None:
        """Begins to find out how this model is run, so that the first stream need not wait for that."""
        with self._changed:
            if self._tenancy is None and self._stopped is None:
                self._start()

    def open(self, ids: list[int], asks: frozenset[type[Ask]]) -> Slot:
        """A place for a stream. Its prompt is read in the background from now on.

        Args:
            ids: Prompt and prefill.
            asks: The kinds of requests its checks will make: where only the probe is asked, less is computed and kept.

        Raises:
            CheckError: The pool is full or closed.
        """
        slot = Slot(ids, leave=self.leave, full=AskLookahead in asks or self._model.probe is None)
        with self._changed:
            self._require_open()
            if len(self._slots) >= self._max_sessions:
                raise CheckError(f"the sidecar is full: {self._max_sessions} sessions are open")
            self._slots.add(slot)
        # The last token is left to the first check, whose pass reads it anyway. `ids` may have grown until then.
        target = len(ids) - 1
        self._submit(slot, lambda: reading(slot.tokens, target, self._chunk), is_check=False)
        return slot

    def check(self, slot: Slot, target: int, checker: Checker, context: CheckContext) -> Future[Any]:
        """Queues a check behind the first `target` tokens of a stream. Cancel the future to take it back.

        Raises:
            CheckError: The queue is full, or the stream or the pool is closed.
        """
        with self._changed:
            self._require_open()
            if slot.closed:
                raise CheckError("the stream is closed")
            if self._waiting() >= self._max_waiting:
                raise CheckError(f"the sidecar is overloaded: {self._max_waiting} checks are waiting")
        return self._submit(
            slot,
            lambda: checking(self._model, slot.tokens, target, checker, context, self._chunk),
            is_check=True,
        )

    def leave(self, slot: Slot) -> None:
        """A stream has ended."""
        with self._changed:
            if slot.closed:
                return
            slot.closed = True
            self._slots.discard(slot)
            self._leaving.append(slot)
            self._changed.notify()

    def stats(self) -> PoolStats:
        """Figures of now."""
        with self._changed:
            tenancy = self._tenancy
            memory = tenancy.memory if tenancy else None
            return PoolStats(
                sessions=len(self._slots),
                waiting=self._waiting(),
                kv_bytes=memory.used_bytes() if memory else 0,
                kv_limit_bytes=memory.limit_bytes if memory else None,
                retained=len(tenancy.retained) if tenancy else 0,
                evicted=tenancy.evicted if tenancy else 0,
                reused_tokens=tenancy.reused_tokens if tenancy else 0,
                checks=self._checks,
                passes=self._passes,
                rows=self._rows,
                packed=memory.packed if memory else False,
                why_not_packed=memory.why_not_packed if memory else "not started",
            )

    def close(self) -> None:
        """Ends the thread and frees the memory; what waits fails. May be called twice."""
        with self._changed:
            self._stopped = self._stopped or _CLOSED
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._fail_all(_CLOSED)
        self._tenancy = None
        atexit.unregister(self._at_exit)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._stopped is not None:
            raise CheckError(self._stopped)

    def _waiting(self) -> int:
        return sum(job.is_check and not job.future.cancelled() for job in (*self._incoming, *self._active))

    def _submit(self, slot: Slot, begin: Callable[[], Rows[Any]], *, is_check: bool) -> Future[Any]:
        job = Job(slot=slot, begin=begin, future=Future(), is_check=is_check)
        with self._changed:
            self._require_open()
            self._incoming.append(job)
            self._start()
            self._changed.notify()
        return job.future

    def _start(self) -> None:
        if self._thread is None:
            atexit.register(self._at_exit)
            self._thread = threading.Thread(target=self._run, name="ada-guard-pool", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            if self._tenancy is None:
                self._tenancy = Tenancy(self._open_memory(), max_retained=self._max_retained)
            while self._gather():
                batch = self._batch(self._tenancy)
                if batch:
                    self._feed(batch, self._tenancy)
        except BaseException as error:  # noqa: BLE001  # whoever waits must hear of it, whatever it was
            self._fail_all(f"the sidecar has failed: {type(error).__name__}")

    def _gather(self) -> bool:
        """Takes over new work, waiting for it if there is none. False once the thread is to end."""
        with self._changed:
            if not self._active:
                self._changed.wait_for(lambda: self._incoming or self._leaving or self._stopped is not None, _IDLE_S)
                self._wait_for_others()
            if self._stopped is not None or not (self._active or self._incoming or self._leaving or self._slots):
                self._thread = None
                atexit.unregister(self._at_exit)
                return False
            new, self._incoming = list(self._incoming), deque()
            leaving, self._leaving = list(self._leaving), deque()
        for slot in leaving:
            self._drop([job for job in self._active if job.slot is slot])
            if self._tenancy is not None:
                self._tenancy.part(slot)
        for job in new:
            if job.is_check:  # it reads whatever is missing itself
                self._drop([other for other in self._active if other.slot is job.slot and not other.is_check])
            self._active.append(job)
        self._drop([job for job in self._active if job.future.cancelled() or job.slot.closed])
        return True

    def _wait_for_others(self) -> None:
        """Gives the streams whose work falls due together a moment, so that it shares a pass."""
        streams = len(self._slots)
        if self._window_s and streams > 1 and self._incoming and self._stopped is None:
            self._changed.wait_for(lambda: len(self._incoming) >= streams or self._stopped is not None, self._window_s)

    def _batch(self, tenancy: Tenancy) -> list[Job]:
        """The next pass: the oldest job decides of which kind it is; checks come before the reading of prompts."""
        for job in [job for job in self._active if job.wanted is None]:
            self._advance(job, None)
        ready = sorted((job for job in self._active if job.wanted), key=lambda job: not job.is_check)
        with self._changed:
            live = list(self._slots)
        batch: list[Job] = []
        tokens = 0
        for job in ready:
            if job.wanted is None or job.slot.full != ready[0].slot.full or any(job.slot is one.slot for one in batch):
                continue
            length = len(job.wanted.ids)
            if len(batch) == tenancy.memory.max_rows or (batch and tokens + length > self._batch_tokens):
                continue
            # A lookahead that is under way is let finish: two long ones would take each other's memory for ever.
            busy = [one.slot for one in (*batch, *(one for one in self._active if one.looks_ahead))]
            try:
                lost = tenancy.make_room(job.slot, job.wanted.end, live=live, busy=busy)
            except Exception as error:  # noqa: BLE001  # the accelerator has no room to move things in
                tenancy.forget(job.slot)
                self._finish(job, error=CheckError(type(error).__name__))
                continue
            for other in [one for one in self._active if lost and one.slot in lost]:
                other.restart()
            if lost is not None:
                batch.append(job)
                tokens += length
        if ready and not batch and ready[0].wanted is not None:
            self._finish(ready[0], error=CheckError("the sidecar's KV memory is too small for this stream"))
        return batch

    def _feed(self, batch: list[Job], tenancy: Tenancy) -> None:
        wanted = [(job.slot.place, job.wanted) for job in batch if job.wanted is not None]
        try:
            results = tenancy.memory.feed(wanted, full=batch[0].slot.full)
        except Exception as error:  # noqa: BLE001  # the one boundary to torch
            if len(batch) > 1:  # one of them, or all together, was too much: each for itself
                for job in batch:
                    self._feed([job], tenancy)
                return
            tenancy.forget(batch[0].slot)
            self._finish(batch[0], error=CheckError(type(error).__name__))
            return
        self._passes += 1
        self._rows += len(batch)
        for job, result in zip(batch, results, strict=True):
            assert job.wanted is not None
            job.slot.tokens.fed(job.wanted)
            job.slot.last_used = time.monotonic()
            self._advance(job, result)

    def _advance(self, job: Job, result: Any) -> None:
        """Lets a job say which row it needs next, or ends it."""
        if job.rows is None:
            if job.slot.place is None and self._tenancy is not None:
                with self._changed:
                    live = list(self._slots)
                with suppress(Exception):  # then it is read
                    self._tenancy.reuse(job.slot, live)
            job.rows = job.begin()
        try:
            job.wanted = job.rows.send(result)
        except StopIteration as stop:
            self._finish(job, result=stop.value)
        except AdaGuardError as error:
            self._finish(job, error=error)
        except BaseException as error:  # noqa: BLE001  # of the user's checker: its message may hold text
            self._finish(job, error=CheckError(type(error).__name__))

    def _finish(self, job: Job, *, result: Any = None, error: Exception | None = None) -> None:
        if job in self._active:
            self._active.remove(job)
        job.wanted = None
        if job.is_check:
            self._checks += 1
            if error is None and result.passed:
                job.slot.passed = max(job.slot.passed, job.slot.tokens.read)
        job.settle(result, error)

    def _drop(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._active.remove(job)
            job.restart()
            job.future.cancel()

    def _fail_all(self, why: str) -> None:
        with self._changed:
            self._stopped = self._stopped or why
            jobs = [*self._active, *self._incoming]
            self._incoming.clear()
        for job in jobs:
            self._finish(job, error=CheckError(why))
        self._active.clear()


def _close_if_there(pool: weakref.ref[Pool]) -> None:
    if (found := pool()) is not None:
        found.close()
