"""Many streams on one accelerator: gathers the due work of all of them into one forward pass after another.

One thread owns the model's KV memory and runs everything. Streams hand it work and wait for futures. Knows no text, no
policy and no socket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from ada_guard.checking import Ask, AskLookahead, CheckContext, Checker
from ada_guard.errors import AdaGuardError, CheckError, ConfigError
from ada_guard.local.model import LocalModel
from ada_guard.sidecar.memory import Memory, open_memory
from ada_guard.sidecar.reading import Rows, Tokens, Wanted, checking, reading

__all__ = ["Pool", "PoolStats", "Slot"]

_IDLE_S = 5.0
"""After this time without a stream the thread ends, so that a sidecar nobody holds any more can be freed."""
_WORTH_REUSING_TOKENS = 16
_CLOSED = "the sidecar is closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What a pool holds and has done.

    Attributes:
        sessions: Streams that are open.
        waiting: Checks in the queue.
        kv_bytes: Memory of keys and values in use, in bytes.
        kv_limit_bytes: Its bound; None where sessions are counted instead.
        retained: Conversations kept for their next turn.
        evicted: Streams whose memory was taken for others, so far; they read their text again when they are due.
        checks: Checks made so far, passed or not.
        passes: Forward passes so far.
        rows: Rows fed in them; per pass, how well the work of streams is gathered.
        reused_tokens: Prompt tokens that did not have to be read because an earlier conversation began alike.
        packed: Whether rows of many streams share a pass.
        why_not_packed: Why not, in a word; None if they do.
    """

    sessions: int
    waiting: int
    kv_bytes: int
    kv_limit_bytes: int | None
    retained: int
    evicted: int
    checks: int
    passes: int
    rows: int
    reused_tokens: int
    packed: bool
    why_not_packed: str | None


class Slot:
    """One stream in a pool. Its ids may be appended to at any time; they are read when a check needs them."""

    def __init__(self, pool: Pool, ids: list[int], *, full: bool) -> None:
        self.tokens = Tokens(ids)
        self.full = full
        self.prompt_tokens = len(ids)
        self.passed = len(ids)
        self.last_used = time.monotonic()
        self.closed = False
        self.place: Any = None
        self._pool = pool

    @property
    def ids(self) -> list[int]:
        """All tokens of the stream so far, the prompt's first."""
        return self.tokens.ids

    @ids.setter
    def ids(self, ids: list[int]) -> None:
        self.tokens.ids = ids

    def close(self) -> None:
        """Gives the place back. May be called twice."""
        self._pool.leave(self)


@dataclass(slots=True, eq=False)
class _Job:
    slot: Slot
    begin: Callable[[], Rows[Any]] = field(repr=False)
    future: Future[Any]
    is_check: bool
    rows: Rows[Any] | None = field(default=None, repr=False)
    wanted: Wanted | None = None

    def restart(self) -> None:
        """Back to the beginning: what its rows counted on is gone."""
        if self.rows is not None:
            self.rows.close()
        self.rows = self.wanted = None


class Pool:
    """Runs the checks of many streams.

    Args:
        model: The model.
        max_sessions: Streams that may be open at once; one more is a `CheckError`.
        max_waiting: Checks that may wait at once; one more is a `CheckError`.
        kv_bytes: Bound of the memory for keys and values, in bytes; None: 1 GiB on a CPU, half of what is free on a
            GPU.
        batch_tokens: Most tokens in one forward pass.
        chunk_tokens: Most tokens of one stream in one pass: a long prompt is read in pieces between the others' checks.
        max_retained: Finished conversations whose memory is kept for their next turn; 0 keeps none.
        window_ms: How long the first work waits for that of other streams, in milliseconds.
        packed: None: rows of many streams share a pass if this model turns out to take it. False: one at a time.
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
        ):
            if value < 1:
                raise ConfigError(f"{name} must be >= 1")
        if window_ms < 0:
            raise ConfigError("window_ms must be >= 0")
        self._model = model
        self._max_sessions = max_sessions
        self._max_waiting = max_waiting
        self._max_retained = max_retained
        self._batch_tokens = batch_tokens or (8192 if on_gpu else 1024)
        self._chunk = min(chunk_tokens, self._batch_tokens)
        self._window_s = window_ms / 1000.0
        self._open_memory: Callable[[], Memory] = lambda: open_memory(model, kv_bytes=kv_bytes, packed=packed)
        self._memory: Memory | None = None
        self._changed = threading.Condition()
        self._slots: set[Slot] = set()
        self._retained: list[Slot] = []
        self._leaving: deque[Slot] = deque()
        self._incoming: deque[_Job] = deque()
        self._active: list[_Job] = []
        self._thread: threading.Thread | None = None
        self._stopped: str | None = None
        self._counts = dict.fromkeys(("evicted", "checks", "passes", "rows", "reused_tokens"), 0)

    # -- what streams ask -----------------------------------------------------------------------------------------

    def warm(self) -> None:
        """Begins to find out how this model is run, so that the first stream need not wait for that."""
        with self._changed:
            if self._memory is None and self._stopped is None:
                self._start()

    def open(self, ids: list[int], asks: frozenset[type[Ask]]) -> Slot:
        """A place for a stream. Its prompt is read in the background from now on.

        Args:
            ids: Prompt and prefill.
            asks: The kinds of requests its checks will make: where only the probe is asked, less is computed and kept.

        Raises:
            CheckError: The pool is full or closed.
        """
        slot = Slot(self, ids, full=AskLookahead in asks or self._model.probe is None)
        with self._changed:
            self._require_open()
            if len(self._slots) >= self._max_sessions:
                raise CheckError(f"the sidecar is full: {self._max_sessions} sessions are open")
            self._slots.add(slot)
        # The last token is left to the first check, whose pass reads it anyway.
        self._submit(slot, lambda: reading(slot.tokens, len(ids) - 1, self._chunk), is_check=False)
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
            memory = self._memory
            return PoolStats(
                sessions=len(self._slots),
                waiting=self._waiting(),
                kv_bytes=memory.used_bytes() if memory else 0,
                kv_limit_bytes=memory.limit_bytes if memory else None,
                retained=len(self._retained),
                packed=memory.packed if memory else False,
                why_not_packed=memory.why_not_packed if memory else "not started",
                **self._counts,
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
        self._memory = None
        self._retained.clear()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._stopped is not None:
            raise CheckError(self._stopped)

    def _waiting(self) -> int:
        return sum(job.is_check and not job.future.cancelled() for job in (*self._incoming, *self._active))

    def _submit(self, slot: Slot, begin: Callable[[], Rows[Any]], *, is_check: bool) -> Future[Any]:
        job = _Job(slot=slot, begin=begin, future=Future(), is_check=is_check)
        with self._changed:
            self._incoming.append(job)
            self._start()
            self._changed.notify()
        return job.future

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ada-guard-pool", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            if self._memory is None:
                self._memory = self._open_memory()
            while self._gather():
                batch = self._batch()
                if batch:
                    self._feed(batch)
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
                return False
            new, self._incoming = list(self._incoming), deque()
            leaving, self._leaving = list(self._leaving), deque()
        for slot in leaving:
            self._part(slot)
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

    def _batch(self) -> list[_Job]:
        """The next pass: the oldest job decides of which kind it is; checks come before the reading of prompts."""
        assert self._memory is not None
        for job in [job for job in self._active if job.wanted is None]:
            self._advance(job, None)
        ready = sorted((job for job in self._active if job.wanted), key=lambda job: not job.is_check)
        batch: list[_Job] = []
        tokens, seen = 0, set()
        for job in ready:
            assert job.wanted is not None
            length = len(job.wanted.ids)
            if id(job.slot) in seen or job.slot.full != ready[0].slot.full or len(batch) == self._memory.max_rows:
                continue
            if batch and tokens + length > self._batch_tokens:
                continue
            if self._make_room(job, batch):
                batch.append(job)
                tokens += length
                seen.add(id(job.slot))
        if ready and not batch:
            self._finish(ready[0], error=CheckError("the sidecar's KV memory is too small for this stream"))
        return batch

    def _feed(self, batch: list[_Job]) -> None:
        assert self._memory is not None
        wanted = [(job.slot.place, job.wanted) for job in batch if job.wanted is not None]
        try:
            results = self._memory.feed(wanted, full=batch[0].slot.full)
        except Exception as error:  # noqa: BLE001  # the one boundary to torch
            if len(batch) > 1:  # one of them, or all together, was too much: each for itself
                for job in batch:
                    self._feed([job])
                return
            self._finish(batch[0], error=CheckError(type(error).__name__))
            return
        self._counts["passes"] += 1
        self._counts["rows"] += len(batch)
        for job, result in zip(batch, results, strict=True):
            assert job.wanted is not None
            job.slot.tokens.fed(job.wanted)
            job.slot.last_used = time.monotonic()
            self._advance(job, result)

    def _advance(self, job: _Job, result: Any) -> None:
        """Lets a job say which row it needs next, or ends it."""
        if job.rows is None:
            if job.slot.place is None:
                self._reuse(job.slot)
            job.rows = job.begin()
        try:
            job.wanted = job.rows.send(result)
        except StopIteration as stop:
            self._finish(job, result=stop.value)
        except AdaGuardError as error:
            self._finish(job, error=error)
        except Exception as error:  # noqa: BLE001  # of the user's checker: its message may hold text
            self._finish(job, error=CheckError(type(error).__name__))

    def _finish(self, job: _Job, *, result: Any = None, error: Exception | None = None) -> None:
        if job in self._active:
            self._active.remove(job)
        job.wanted = None
        if job.is_check:
            self._counts["checks"] += 1
            if error is None and result.passed:
                job.slot.passed = max(job.slot.passed, job.slot.tokens.read)
        try:
            if error is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        except InvalidStateError:
            pass  # nobody waits any more

    def _drop(self, jobs: list[_Job]) -> None:
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

    # -- memory ---------------------------------------------------------------------------------------------------

    def _make_room(self, job: _Job, batch: list[_Job]) -> bool:
        """Makes the slot's place large enough, at the cost of others if it must. False: not in this pass."""
        assert self._memory is not None
        assert job.wanted is not None
        while not self._memory.reserve(job.slot, job.wanted.end):
            victim = self._victim([job, *batch])
            if victim is None:
                return False
            self._evict(victim)
        return True

    def _victim(self, needed: list[_Job]) -> Slot | None:
        """Whose memory is taken: a finished conversation's, else that of the stream that was idle for longest."""
        if self._retained:
            return self._retained[0]
        # A lookahead that is under way is let finish: two long ones would take each other's memory for ever.
        ahead = [job for job in self._active if job.wanted is not None and job.wanted.start > job.slot.tokens.read]
        busy = {id(job.slot) for job in (*needed, *ahead)}
        with self._changed:
            idle = [slot for slot in self._slots if slot.place is not None and id(slot) not in busy]
        return min(idle, key=lambda slot: slot.last_used, default=None)

    def _evict(self, slot: Slot) -> None:
        assert self._memory is not None
        self._memory.release(slot)
        slot.tokens.read = 0
        if slot in self._retained:
            self._retained.remove(slot)
        else:
            self._counts["evicted"] += 1
            for job in [job for job in self._active if job.slot is slot]:
                job.restart()

    def _part(self, slot: Slot) -> None:
        """Keeps what a finished stream's next turn may begin with: its prompt and what passed, never more."""
        assert self._memory is not None
        self._drop([job for job in self._active if job.slot is slot])
        keep = min(slot.passed, slot.tokens.read)
        del slot.ids[keep:]
        slot.tokens.read = keep
        if slot.place is None:
            return
        if keep < _WORTH_REUSING_TOKENS or not self._max_retained:
            self._memory.release(slot)
            return
        self._retained.append(slot)
        if len(self._retained) > self._max_retained:
            self._evict(self._retained[0])

    def _reuse(self, slot: Slot) -> None:
        """Begins with what another conversation that begins alike has read: takes it over, or copies it."""
        assert self._memory is not None
        best, shared = None, 0
        with self._changed:
            others = [*self._retained, *(other for other in self._slots if other.place is not None)]
        for other in others:
            if other.full == slot.full and other is not slot:
                common = min(_common(other.ids, slot.ids), other.tokens.read, len(slot.ids) - 1)
                if common > shared:
                    best, shared = other, common
        if best is None or shared < _WORTH_REUSING_TOKENS:
            return
        if best in self._retained and (shared >= len(best.ids) // 2 or not self._memory.copies):
            if not self._memory.cut(best, shared):
                return
            self._retained.remove(best)
            slot.place, best.place = best.place, None
        elif not self._memory.copies or not self._memory.copy(best, slot, shared):
            return
        slot.tokens.read = shared
        self._counts["reused_tokens"] += shared


def _common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
