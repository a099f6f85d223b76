"""The pool: many streams in shared passes, each exactly as if it were alone. Promises 3, 5, 6 and 8."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import tiny_models
import torch
from probes import fresh_lookahead, fresh_score, probed

from ada_guard import Check, CheckError, ConfigError, Decision, Done, Guard, Policy, Release, Schedule, Verdict
from ada_guard.checkers import CascadeChecker, ProbeChecker
from ada_guard.checking import Ask, AskLookahead, AskProbe, Calibration, CheckContext, Checking
from ada_guard.cli.describe import TESTED_PACKED
from ada_guard.local import LocalModel
from ada_guard.sidecar import pool as pool_module
from ada_guard.sidecar.arena import Arena
from ada_guard.sidecar.companion import LocalSidecar
from ada_guard.sidecar.memory import _why_not_packed
from ada_guard.sidecar.pool import Pool
from ada_guard.sidecar.slot import Slot

USER = [{"role": "user", "content": "How do I bake bread?"}]
AHEAD_TOKENS = 3


class Asks:
    """Asks what it is told, and keeps the answers in its verdict: the score, and the lookahead's text as its reason."""

    name = "asks"

    def __init__(self, *kinds: type[Ask]) -> None:
        self.asks = frozenset(kinds)

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> Asks:
        return self

    def check(self, context: CheckContext) -> Checking:
        p, text = None, None
        if AskProbe in self.asks:
            p = yield AskProbe()
        if AskLookahead in self.asks:
            text = (yield AskLookahead(max_tokens=AHEAD_TOKENS, undecided=lambda _: True)).text
        return Verdict(decision=Decision.PASS, checker="asks", depth=context.depth, harm_probability=p, reason=text)


def context_at(depth: int) -> CheckContext:
    return CheckContext(depth=depth, generated_tokens=depth, answer=str)


@cache
def model_of(family: str) -> LocalModel:
    return probed(LocalModel(tiny_models.build(family), tiny_models.tokenizer(), name=family))


@contextlib.contextmanager
def pool_of(model: LocalModel, **settings: Any) -> Iterator[Pool]:
    pool = Pool(model, **settings)
    yield pool
    pool.close()


def check(pool: Pool, slot: Slot, checker: Any = None) -> Verdict:
    verdict: Verdict = pool.check(slot, len(slot.ids), checker or Asks(AskProbe), context_at(0)).result(60)
    return verdict


def ids_of(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(3, 250) for _ in range(n)]


@pytest.mark.parametrize("asks", [(AskProbe,), (AskProbe, AskLookahead)], ids=["probe", "both"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_streams_in_one_pool_give_what_each_gives_alone_and_fresh(family: str, asks: tuple[type[Ask], ...]) -> None:
    model, rng = model_of(family), random.Random(5)
    checker = Asks(*asks)
    with pool_of(model, chunk_tokens=7) as pool:
        slots = [pool.open(ids_of(rng, n), frozenset(asks)) for n in (19, 5, 31)]
        for _ in range(3):
            for slot in slots:
                slot.ids += ids_of(rng, rng.randrange(1, 10))
            futures = [pool.check(slot, len(slot.ids), checker, context_at(0)) for slot in slots]
            for slot, future in zip(slots, futures, strict=True):
                verdict = future.result(60)
                if AskProbe in asks:
                    assert verdict.harm_probability == pytest.approx(fresh_score(model, slot.ids), abs=1e-4)
                if AskLookahead in asks:
                    said = model.tokenizer.decode(
                        fresh_lookahead(model, slot.ids, AHEAD_TOKENS), skip_special_tokens=True
                    )
                    assert verdict.reason == said
        assert pool.stats().packed is (family in TESTED_PACKED)


def test_due_checks_of_many_streams_share_a_pass() -> None:
    model, rng = model_of("llama"), random.Random(1)
    with pool_of(model, window_ms=500) as pool:
        slots = [pool.open(ids_of(rng, 20), frozenset({AskProbe})) for _ in range(8)]
        for slot in slots:
            check(pool, slot)
        before = pool.stats()
        futures = [pool.check(slot, 20, Asks(AskProbe), context_at(0)) for slot in slots]
        assert len({round(f.result(60).harm_probability, 6) for f in futures}) == 8
        after = pool.stats()
    assert after.rows - before.rows == 8
    assert after.passes - before.passes == 1


def test_a_check_is_exact_after_its_memory_was_taken_for_others() -> None:
    model, rng = model_of("llama"), random.Random(2)
    with pool_of(model, kv_bytes=64 * 3 * _bytes_per_token(model), max_retained=0) as pool:
        slots = [pool.open(ids_of(rng, 50), frozenset({AskProbe, AskLookahead})) for _ in range(6)]
        for _ in range(3):
            for slot in slots:
                slot.ids += ids_of(rng, 2)
                assert check(pool, slot).harm_probability == pytest.approx(fresh_score(model, slot.ids), abs=1e-4)
        stats = pool.stats()
    assert stats.evicted > 0
    assert stats.kv_limit_bytes is not None
    assert 0 < stats.kv_bytes <= stats.kv_limit_bytes


def _bytes_per_token(model: LocalModel) -> int:
    with pool_of(model) as pool:
        slot = pool.open([5] * 40, frozenset({AskLookahead}))
        check(pool, slot, Asks(AskLookahead))
        return pool.stats().kv_bytes // 64


def test_a_stream_that_outgrows_all_memory_fails_closed() -> None:
    model = model_of("llama")
    with pool_of(model, kv_bytes=64 * _bytes_per_token(model)) as pool:
        slot = pool.open([7] * 300, frozenset({AskProbe}))
        with pytest.raises(CheckError, match="KV memory is too small"):
            check(pool, slot)
        small = pool.open([7] * 20, frozenset({AskProbe}))
        assert check(pool, small).passed


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v3"])
def test_the_next_turn_begins_with_what_the_last_one_read(family: str) -> None:
    model, rng = model_of(family), random.Random(3)
    with pool_of(model) as pool:
        first = pool.open(ids_of(rng, 60), frozenset({AskProbe}))
        check(pool, first)
        first.ids += ids_of(rng, 20)
        check(pool, first)
        said = list(first.ids)
        first.close()
        second = pool.open([*said, *ids_of(rng, 9)], frozenset({AskProbe}))
        assert check(pool, second).harm_probability == pytest.approx(fresh_score(model, second.ids), abs=1e-4)
        assert pool.stats().reused_tokens >= 80


def test_streams_with_one_system_prompt_read_it_once() -> None:
    model, rng = model_of("llama"), random.Random(4)
    system = ids_of(rng, 90)
    with pool_of(model) as pool:
        first = pool.open([*system, 9], frozenset({AskProbe}))
        check(pool, first)
        second = pool.open([*system, *ids_of(rng, 20)], frozenset({AskProbe}))
        assert check(pool, second).harm_probability == pytest.approx(fresh_score(model, second.ids), abs=1e-4)
        assert check(pool, first).harm_probability == pytest.approx(fresh_score(model, first.ids), abs=1e-4)
        assert pool.stats().reused_tokens == 90


def test_what_did_not_pass_is_not_kept_for_the_next_turn() -> None:
    class Flags(Asks):
        def check(self, context: CheckContext) -> Checking:
            yield AskProbe()
            return Verdict(decision=Decision.FLAG, checker="flags", depth=context.depth)

    model = model_of("llama")
    with pool_of(model) as pool:
        slot = pool.open([5] * 40, frozenset({AskProbe}))
        check(pool, slot)
        slot.ids += [77] * 30
        check(pool, slot, Flags(AskProbe))
        slot.close()
        _until(lambda: pool.stats().retained == 1)
        assert slot.ids == [5] * 40


def _until(holds: Any, limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def test_a_long_prompt_is_read_between_the_checks_of_others() -> None:
    model = model_of("llama")
    with pool_of(model, chunk_tokens=16, batch_tokens=32) as pool:
        quick = pool.open([5] * 20, frozenset({AskProbe}))
        check(pool, quick)
        assert pool._tenancy is not None
        order: list[int] = []
        feed = pool._tenancy.memory.feed

        def noted(rows: Any, *, full: bool) -> Any:
            order.extend(row.end for _, row in rows)
            if len(order) == 2:
                quick.ids.append(6)
                futures.append(pool.check(quick, 21, Asks(AskProbe), context_at(0)))
            return feed(rows, full=full)

        futures: list[Any] = []
        pool._tenancy.memory.feed = noted  # type: ignore[method-assign]  # to look on
        long = pool.open([5] * 400, frozenset({AskProbe}))
        assert check(pool, long).passed
        futures[0].result(60)
    quick_at = order.index(21 + len(model.spec.probe.ids))
    assert quick_at < len(order) - 10


def test_a_broken_checker_and_a_broken_row_harm_nobody_else() -> None:
    class Breaks(Asks):
        def check(self, context: CheckContext) -> Checking:
            yield AskProbe()
            raise KeyError("secret text")

    net = tiny_models.build("llama")
    with torch.no_grad():
        net.model.embed_tokens.weight[200] = float("nan")
    model = probed(LocalModel(net, tiny_models.tokenizer(), name="broken"))
    with pool_of(model, window_ms=300) as pool:
        good, bad, odd = (pool.open(ids, frozenset({AskProbe})) for ids in ([5] * 20, [5] * 20, [6, 7] * 9 + [200]))
        alone = check(pool, good).harm_probability
        futures = [
            pool.check(good, 20, Asks(AskProbe), context_at(0)),
            pool.check(bad, 20, Breaks(AskProbe), context_at(0)),
            pool.check(odd, 19, ProbeChecker(threshold=0.5), context_at(0)),
        ]
        assert futures[0].result(60).harm_probability == pytest.approx(alone, abs=1e-6)
        with pytest.raises(CheckError) as broken:
            futures[1].result(60)
        with pytest.raises(CheckError, match="not a probability"):
            futures[2].result(60)
    assert str(broken.value) == "KeyError"


def test_a_pass_that_is_too_much_for_the_accelerator_is_split() -> None:
    model = model_of("llama")
    with pool_of(model, window_ms=300) as pool:
        slots = [pool.open([5 + i] * 20, frozenset({AskProbe})) for i in range(3)]
        for slot in slots:
            check(pool, slot)
        assert pool._tenancy is not None
        feed = pool._tenancy.memory.feed

        def small(rows: Any, *, full: bool) -> Any:
            if len(rows) > 1:
                raise torch.OutOfMemoryError("secret text")
            if rows[0][1].ids[0] == 7:
                raise torch.OutOfMemoryError("secret text")
            return feed(rows, full=full)

        pool._tenancy.memory.feed = small  # type: ignore[method-assign]  # a fault
        for slot in slots:
            slot.ids.append(slot.ids[0])
        futures = [pool.check(slot, 21, Asks(AskProbe), context_at(0)) for slot in slots]
        assert futures[0].result(60).passed
        assert futures[1].result(60).passed
        with pytest.raises(CheckError) as error:
            futures[2].result(60)
    assert str(error.value) == "OutOfMemoryError"


@pytest.mark.parametrize("family", ["llama", "granitemoehybrid"])
def test_a_check_behind_a_pass_that_failed_half_way_is_exact(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = model_of(family), random.Random(6)
    with pool_of(model) as pool:
        slot = pool.open(ids_of(rng, 30), frozenset({AskProbe, AskLookahead}))
        check(pool, slot)
        net, calls = model.model, 0
        forward = net.forward

        def failing(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            found = forward(*args, **kwargs)
            if calls == 1:
                raise torch.OutOfMemoryError("secret text")  # its keys and values have been written
            return found

        slot.ids += ids_of(rng, 5)
        monkeypatch.setattr(net, "forward", failing)
        with pytest.raises(CheckError) as error:
            check(pool, slot)
        monkeypatch.undo()
        assert str(error.value) == "OutOfMemoryError"
        slot.ids += ids_of(rng, 5)
        assert check(pool, slot).harm_probability == pytest.approx(fresh_score(model, slot.ids), abs=1e-4)


@pytest.mark.parametrize("fault", [SystemExit("secret text"), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_a_checker_that_wants_to_end_the_process_ends_its_own_check_only(fault: BaseException) -> None:
    class Leaves(Asks):
        def check(self, context: CheckContext) -> Checking:
            yield AskProbe()
            raise fault

    with pool_of(model_of("llama")) as pool:
        slot = pool.open([5] * 20, frozenset({AskProbe}))
        with pytest.raises(CheckError, match=type(fault).__name__):
            check(pool, slot, Leaves(AskProbe))
        assert check(pool, slot).passed


def test_no_room_to_move_things_in_fails_one_check_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pool_of(model_of("llama")) as pool:
        one, other = (pool.open([5] * 20, frozenset({AskProbe})) for _ in range(2))
        check(pool, one)
        check(pool, other)

        def full(*_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("secret text")

        monkeypatch.setattr(Arena, "_move", full)
        one.ids += [6] * 200  # its span must move
        with pytest.raises(CheckError, match="OutOfMemoryError"):
            check(pool, one)
        assert check(pool, other).passed
        monkeypatch.undo()
        assert check(pool, one).harm_probability == pytest.approx(fresh_score(model_of("llama"), one.ids), abs=1e-4)


def test_a_stream_that_is_dropped_gives_its_place_back() -> None:
    sidecar = LocalSidecar(model_of("llama"), max_sessions=2)
    guard = Guard(sidecar=sidecar)
    for _ in range(5):
        guard.session(USER).push("Mix it.")
        gc.collect()
        _until(lambda: sidecar.stats.sessions == 0)
    guard.close()


def test_one_guard_has_one_sidecar_however_many_threads_come_first() -> None:
    guard = Guard(model_of("llama"))
    barrier, found = threading.Barrier(8), []

    def first() -> None:
        barrier.wait()
        found.append(guard.sidecar)

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    guard.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer_types": ["chunked_attention", "full_attention"]}, "layers of chunked_attention"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic positions"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "longrope positions"),
    ],
    ids=["chunked", "dynamic", "longrope"],
)
def test_what_a_short_trial_cannot_notice_is_not_packed(change: dict[str, Any], why: str) -> None:
    model = LocalModel(tiny_models.build("llama"), tiny_models.tokenizer())
    for name, value in change.items():
        setattr(model.model.config, name, value)
    assert _why_not_packed(model) == why


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_tokens": -5},
        {"kv_bytes": 0},
        {"max_retained": -1},
        {"check_timeout_s": 0},
        {"window_ms": -1},
        {"max_sessions": 0},
    ],
    ids=str,
)
def test_bounds_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LocalSidecar(model_of("llama"), **settings)


def test_sessions_and_queue_are_bounded_with_a_clear_error() -> None:
    model = model_of("llama")
    with pool_of(model, max_sessions=3, max_waiting=2) as pool:
        slots = [pool.open([5] * 20, frozenset({AskProbe})) for _ in range(3)]
        with pytest.raises(CheckError, match="3 sessions are open"):
            pool.open([5], frozenset({AskProbe}))
        check(pool, slots[0])
        with model.lock:
            waiting = [pool.check(slot, 20, Asks(AskProbe), context_at(0)) for slot in slots[:2]]
            with pytest.raises(CheckError, match="2 checks are waiting"):
                pool.check(slots[2], 20, Asks(AskProbe), context_at(0))
            assert pool.stats().waiting == 2
        assert all(future.result(60).passed for future in waiting)
        slots[0].close()
        assert pool.open([5], frozenset({AskProbe}))


def test_a_cancelled_check_is_never_made() -> None:
    model = model_of("llama")
    with pool_of(model) as pool:
        one, other = (pool.open([5] * 20, frozenset({AskProbe})) for _ in range(2))
        check(pool, one)
        check(pool, other)
        made = pool.stats().checks
        with model.lock:
            running = pool.check(one, 20, Asks(AskProbe), context_at(0))
            time.sleep(0.05)
            queued = pool.check(other, 20, Asks(AskProbe), context_at(0))
            assert queued.cancel()
        assert running.result(60).passed
        assert check(pool, other).passed
        assert pool.stats().checks == made + 2


def test_a_stream_that_ends_takes_its_queued_work_with_it() -> None:
    model = model_of("llama")
    with pool_of(model) as pool:
        one, other = (pool.open([5] * 20, frozenset({AskProbe})) for _ in range(2))
        check(pool, one)
        with model.lock:
            queued = pool.check(other, 20, Asks(AskProbe), context_at(0))
            other.close()
        _until(queued.cancelled)
        _until(lambda: pool.stats().sessions == 1)


def test_a_closed_pool_fails_what_waits_and_takes_no_more() -> None:
    model = model_of("llama")
    pool = Pool(model)
    slot = pool.open([5] * 20, frozenset({AskProbe}))
    check(pool, slot)
    with model.lock:
        waiting = pool.check(slot, 20, Asks(AskProbe), context_at(0))
        queued = pool.check(slot, 20, Asks(AskProbe), context_at(0))
        closing = threading.Thread(target=pool.close)
        closing.start()
    closing.join()
    with pytest.raises(CheckError, match="closed"):
        queued.result(60)
    assert waiting.done()
    with pytest.raises(CheckError, match="closed"):
        pool.open([5], frozenset({AskProbe}))


def _used_and_left() -> weakref.ref[Pool]:
    pool = Pool(model_of("llama"))
    for ids in ([5] * 20, [5] * 25):
        slot = pool.open(ids, frozenset({AskProbe}))
        assert check(pool, slot).passed
        slot.close()
        _until(lambda: pool._thread is None)
    return weakref.ref(pool)


def test_a_pool_that_nobody_uses_any_more_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_IDLE_S", 0.05)
    seen = _used_and_left()
    gc.collect()
    assert seen() is None


def test_a_check_that_does_not_come_in_time_is_unchecked_and_its_verdict_discarded() -> None:
    model = model_of("llama")
    guard = Guard(sidecar=LocalSidecar(model, check_timeout_s=0.1), policy=Policy(schedule=Schedule.every(5)))
    session = guard.session(USER)
    with model.lock:
        events = session.push("Mix the flour and the water. ")
    checks = [event for event in events if isinstance(event, Check)]
    assert [(c.decision, c.reason) for c in checks] == [("unchecked", "the check timed out")]
    assert not any(isinstance(event, Release) for event in events)
    assert isinstance(events[-1], Done)
    guard.close()


def _decisions(events: Any) -> list[tuple[Any, ...]]:
    return [(e.depth, e.decision, round(e.harm_probability or 0, 3)) for e in events if isinstance(e, Check)]


@pytest.mark.parametrize(
    "checker", [ProbeChecker(threshold=0.6), CascadeChecker(low=0.3, high=0.6)], ids=["probe", "cascade"]
)
async def test_interleaved_streams_decide_as_solo_runs(checker: Any) -> None:
    model = model_of("qwen2")
    texts = [
        f"{name} the flour with {count} cups of water, 漢字 🙂, and bake. " * 3
        for count, name in enumerate(["Mix", "Stir", "Sift", "Fold"] * 3)
    ]
    policy = Policy(schedule=Schedule.every(6), release="audit")

    async def follow(guard: Guard, text: str, seed: int) -> list[tuple[Any, ...]]:
        rng, events, at = random.Random(seed), [], 0
        async with await guard.asession(USER) as session:
            while at < len(text):
                step = rng.randrange(1, 9)
                events += await session.apush(text[at : at + step])
                at += step
                await asyncio.sleep(0)
            events += await session.aclose()
        return _decisions(events)

    shared = Guard(sidecar=LocalSidecar(model, window_ms=1), checker=checker, policy=policy)
    together = await asyncio.gather(*(follow(shared, text, seed) for seed, text in enumerate(texts)))
    assert shared.sidecar.stats.rows > 1.5 * shared.sidecar.stats.passes  # type: ignore[attr-defined]  # a LocalSidecar
    for text, got in zip(texts, together, strict=True):
        alone = Guard(sidecar=LocalSidecar(model), checker=checker, policy=policy)
        assert got == await follow(alone, text, 99)
        await alone.aclose()
    await shared.aclose()


ENDS_WHILE_A_PROMPT_IS_READ = """
from ada_guard import Guard
guard = Guard.for_sidecar("reference")
session = guard.session([{"role": "user", "content": "How do I bake bread? " * 100}])
"""
ENDS_WHILE_THE_WORKER_RUNS = """
import torch
from ada_guard import Guard
model = Guard.from_pretrained("reference").model
model.worker.submit(lambda: [model.model(torch.zeros(1, 500, dtype=int)) for _ in range(4)])
"""


@pytest.mark.parametrize("script", [ENDS_WHILE_A_PROMPT_IS_READ] * 3 + [ENDS_WHILE_THE_WORKER_RUNS])
def test_a_process_may_end_while_a_pass_runs(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0
