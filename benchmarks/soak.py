"""A soak: many streams for minutes, with random disconnects.

Memory must not grow, no stream may hang, and every decision must be that of the stream's solo run.

The texts are the reference model's: benign, forbidden, and benign ones that turn. They are pushed in random pieces by
as many tasks as there are streams; about every third one breaks off, by closing or by a cancelled task in mid-push.
With ``--url`` the sidecar is a running `ada-guard serve` (give its process with ``--pid`` to have its memory watched).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from ada_guard import CascadeChecker, Check, Guard, Policy, ProbeChecker
from ada_guard.checking import Checker
from ada_guard.probe import LinearProbe
from ada_guard.reference import PROBE_FILE
from ada_guard.reference.data import chat, document, question, topics

Decisions: TypeAlias = list[tuple[int, str, float]]
CLOSE = 1e-3
"""Scores this near to a threshold may fall on either side: rounding depends on what shares a pass."""
STUCK_S = 120.0


@dataclass(slots=True)
class Tally:
    """What has happened so far."""

    streams: int = 0
    broken_off: int = 0
    cut: int = 0
    checks: int = 0
    different: int = 0
    unchecked: int = 0
    stuck: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    rss_mib: list[tuple[float, float]] = field(default_factory=list)


def texts(count: int) -> list[tuple[Any, str]]:
    """Conversations and answers, of all kinds."""
    rng = random.Random(11)
    benign, forbidden = topics("benign", "test"), topics("forbidden", "test")
    made = []
    for number in range(count):
        topic = rng.choice(forbidden if number % 3 == 1 else benign)
        answer = document(topic, rng, rng.randrange(4, 40)).text
        if number % 3 == 2:  # a benign answer that turns
            answer += "\n" + document(rng.choice(forbidden), rng, 12, opening=False).text
        made.append((chat(question(topic, rng)), answer))
    return made


def decided(events: list[Any]) -> Decisions:
    """The checks among events."""
    return [(e.depth, e.decision, e.harm_probability or 0.0) for e in events if isinstance(e, Check)]


async def follow(guard: Guard, messages: Any, answer: str, rng: random.Random, stop_at: int | None) -> Decisions:
    """Pushes an answer in random pieces; breaks off at a character if told to."""
    events: list[Any] = []
    async with await guard.asession(messages) as session:
        at = 0
        while at < len(answer) and not session.ended:
            step = rng.randrange(1, 30)
            if stop_at is not None and at + step > stop_at:
                return decided(events)
            events += await session.apush(answer[at : at + step])
            at += step
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.02)
        events += await session.aclose()
    return decided(events)


def differences(got: Decisions, expected: Decisions, threshold: float) -> int:
    """Decisions that are not those of the solo run, those too near to the threshold left out."""
    wrong = 0
    for (depth, decision, p), (depth_alone, alone, p_alone) in zip(got, expected, strict=False):
        near = min(abs(p - threshold), abs(p_alone - threshold)) <= CLOSE
        wrong += not near and (depth, decision) != (depth_alone, alone)
    return wrong


def rss_mib(pid: int | None) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


async def worker(
    guard: Guard,
    made: list[tuple[Any, str]],
    alone: list[Decisions],
    threshold: float,
    until: float,
    seed: int,
    tally: Tally,
) -> None:
    """Streams one after the other until the time is over."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        number = rng.randrange(len(made))
        messages, answer = made[number]
        stop_at = rng.randrange(len(answer)) if rng.random() < 0.2 else None
        task = asyncio.create_task(follow(guard, messages, answer, rng, stop_at))
        leaves = rng.random() < 0.15
        done, _ = await asyncio.wait({task}, timeout=rng.random() * 0.5 if leaves else STUCK_S)
        tally.streams += 1
        if not done:
            tally.stuck += not leaves
            tally.broken_off += leaves
            task.cancel()
            await asyncio.wait({task})
            continue
        tally.broken_off += stop_at is not None
        if (error := task.exception()) is not None:
            tally.errors[type(error).__name__] = tally.errors.get(type(error).__name__, 0) + 1
            continue
        got = task.result()
        tally.checks += len(got)
        tally.cut += any(decision == "flag" for _, decision, _ in got)
        tally.unchecked += sum(decision == "unchecked" for _, decision, _ in got)
        tally.different += differences(got, alone[number], threshold)
        if stop_at is None and len(got) != len(alone[number]):
            tally.different += 1


async def watch(tally: Tally, pid: int | None, started: float, until: float) -> None:
    """Notes memory, and says now and then how it goes."""
    while time.monotonic() < until:
        await asyncio.sleep(5)
        at = time.monotonic() - started
        tally.rss_mib.append((round(at, 1), round(rss_mib(pid), 1)))
        if len(tally.rss_mib) % 6 == 0:
            print(
                f"{at:4.0f} s: {tally.streams} streams, {tally.checks} checks, {tally.rss_mib[-1][1]:.0f} MiB",
                flush=True,
            )


def guard_on(url: str | None, checker: Checker) -> Guard:
    """A guard with a sidecar of its own, or on a server."""
    policy = Policy()
    if url is not None:
        from ada_guard.sidecar.client import HTTPSidecar

        return Guard(sidecar=HTTPSidecar(url), checker=checker, policy=policy)
    from ada_guard.sidecar.companion import LocalSidecar

    model = Guard.from_pretrained("reference").model
    return Guard(sidecar=LocalSidecar(model), checker=checker, policy=policy)


async def solo(guard: Guard, made: list[tuple[Any, str]]) -> list[Decisions]:
    """Every stream by itself, in one piece."""
    found = []
    for messages, answer in made:
        async with await guard.asession(messages) as session:
            events = await session.apush(answer)
            events += await session.aclose()
        found.append(decided(events))
    return found


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """The run and its figures."""
    checker: Checker = CascadeChecker() if options.check == "cascade" else ProbeChecker()
    made = texts(options.texts)
    alone = await solo(guard_on(None, checker), made)
    guard = guard_on(options.url, checker)
    await guard.aconnect()
    threshold = next(t for t in (getattr(guard.checker, n, None) for n in ("threshold", "high")) if t is not None)
    tally, started = Tally(), time.monotonic()
    until = started + options.minutes * 60
    workers = [worker(guard, made, alone, threshold, until, seed, tally) for seed in range(options.streams)]
    await asyncio.gather(watch(tally, options.pid, started, until), *workers)
    await asyncio.sleep(1)
    warm = [mib for at, mib in tally.rss_mib if at >= options.warm_s]
    stats = getattr(guard.sidecar, "stats", None)
    await guard.aclose()
    third = max(1, len(warm) // 3)
    return {
        "streams_at_once": options.streams,
        "minutes": options.minutes,
        "check": options.check,
        "sidecar": "served" if options.url else "in process",
        "streams": tally.streams,
        "broken_off": tally.broken_off,
        "cut": tally.cut,
        "checks": tally.checks,
        "different_decisions": tally.different,
        "unchecked": tally.unchecked,
        "stuck": tally.stuck,
        "errors": tally.errors,
        "sessions_left": None if stats is None else stats.sessions,
        "rss_mib_after_warm_up": sum(warm[:third]) / third if warm else None,
        "rss_mib_at_the_end": sum(warm[-third:]) / third if warm else None,
        "rss_mib_highest": max((mib for _, mib in tally.rss_mib), default=None),
        "probe": LinearProbe.load(PROBE_FILE).card.model,
    }


def main() -> int:
    """Soaks, prints and saves; 1 if something was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--texts", type=int, default=90)
    parser.add_argument("--check", choices=["probe", "cascade"], default="cascade")
    parser.add_argument("--url")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--warm-s", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    options = parser.parse_args()
    found = asyncio.run(soak(options))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    saved = {
        "command": f"python benchmarks/soak.py --minutes {options.minutes:g}",
        "commit": commit.stdout.strip(),
        "device": f"cpu, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "transformers": version("transformers"),
        **found,
    }
    print(json.dumps(saved, indent=1))
    options.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    return int(bool(found["different_decisions"] or found["stuck"] or found["errors"] or found["unchecked"]))


if __name__ == "__main__":
    raise SystemExit(main())
