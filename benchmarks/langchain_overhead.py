"""What the LangChain wrapper itself costs: a guarded chat model against the same one unguarded, neither with a model.

The chat model says what it is told and the guard always passes, so that what is left is the work of the guard's core
(the session, without its checks' models) and of the wrapper (chunks held back and released, events, LangChain's own
context). CPU time of the process, guarded and unguarded runs interleaved: nothing here waits.

Answers of two lengths are timed. What the longer one costs more is the cost of its chunks; what is left of the shorter
one is the cost of a call, however long its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from langchain.agents import create_agent

from ada_guard import Guard, Policy, Schedule
from ada_guard.testing import ScriptedFollowing, ScriptedSidecar, words
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.middleware import AdaGuardMiddleware
from langchain_ada_guard.testing import ScriptedChatModel

MESSAGES = [{"role": "user", "content": "hello"}]
SCHEDULES = {"25-then-100": "25-then-100", "every token": "every:1"}
Run: TypeAlias = Callable[[], object]


@dataclass(slots=True)
class Costs:
    """Microseconds of CPU time, round by round."""

    per_chunk: list[float] = field(default_factory=list)
    per_call: list[float] = field(default_factory=list)


class PassingSidecar(ScriptedSidecar):
    """A sidecar that finds nothing harmful, and does not look."""

    def open(self, conversation: Any, **settings: Any) -> Any:
        """Begins to follow."""
        del conversation, settings
        yield from ()
        return ScriptedFollowing()


def guard(schedule: str) -> Guard:
    """A guard that always passes."""
    return Guard(sidecar=PassingSidecar(), policy=Policy(schedule=Schedule.parse(schedule)))


def _exhaust(stream: Iterator[Any]) -> None:
    for _ in stream:
        pass


async def _aexhaust(stream: Any) -> None:
    async for _ in stream:
        pass


def surfaces(model: Any, agent: Any) -> dict[str, Run]:
    """The ways to call a model that are measured."""
    asked = {"messages": [("user", "hello")]}
    return {
        "stream": lambda: _exhaust(model.stream("hello")),
        "astream": lambda: asyncio.run(_aexhaust(model.astream("hello"))),
        "invoke": lambda: model.invoke("hello"),
        "ainvoke": lambda: asyncio.run(model.ainvoke("hello")),
        "agent, messages": lambda: _exhaust(agent.stream(asked, stream_mode="messages")),
    }


def runs(text: str) -> dict[str, dict[str, Run]]:
    """Surface -> variant -> what is timed. ``core`` is the guard alone, driven over the same words."""
    inner = ScriptedChatModel.saying(text)
    pieces = [piece.text for piece in words(text)]
    found: dict[str, dict[str, Run]] = {
        surface: {"unguarded": run} for surface, run in surfaces(inner, create_agent(inner, [])).items()
    }
    for name, schedule in SCHEDULES.items():
        judge = guard(schedule)
        agent = create_agent(inner, [], middleware=[AdaGuardMiddleware(judge)])
        for surface, run in surfaces(ChatAdaGuard(inner=inner, guard=judge), agent).items():
            found[surface][f"guarded, {name}"] = run
            found[surface][f"core, {name}"] = _core(judge, pieces, is_async=surface in ("astream", "ainvoke"))
    return found


def _core(judge: Guard, pieces: list[str], *, is_async: bool) -> Run:
    async def given() -> Any:
        for piece in pieces:
            yield piece

    if is_async:
        return lambda: asyncio.run(_aexhaust(judge.astream_from(given(), MESSAGES)))
    return lambda: _exhaust(judge.stream_from(iter(pieces), MESSAGES))


def measure(by_length: dict[int, dict[str, Run]], rounds: int) -> dict[str, Costs]:
    """Variant -> what a chunk and a call cost, from chunks of the answer -> variant -> run."""
    short, long = sorted(by_length)
    costs = {name: Costs() for name in by_length[short]}
    for round_ in range(rounds + 2):
        for name, found in costs.items():
            of_short, of_long = timed(by_length[short][name]), timed(by_length[long][name])
            if round_ >= 2:
                found.per_chunk.append((of_long - of_short) / (long - short))
                found.per_call.append(of_short - found.per_chunk[-1] * short)
    return costs


def timed(run: Run) -> float:
    """Microseconds of CPU time."""
    gc.collect()
    started = time.process_time()
    run()
    return (time.process_time() - started) * 1e6


def row(surface: str, schedule: str, costs: dict[str, Costs]) -> dict[str, Any]:
    """One line of the result. ``added`` is what the guard adds, ``wrapper`` what of that is not the core's."""
    plain, guarded, core = costs["unguarded"], costs[f"guarded, {schedule}"], costs[f"core, {schedule}"]
    added = without(guarded.per_chunk, plain.per_chunk)
    return {
        "surface": surface,
        "schedule": schedule,
        "us_per_chunk": {
            "unguarded": summary(plain.per_chunk),
            "guarded": summary(guarded.per_chunk),
            "core": summary(core.per_chunk),
            "added": summary(added),
            "wrapper": summary(without(added, core.per_chunk)),
        },
        # The core alone begins an event loop too where it is async: what it adds to a call cannot be told apart.
        "us_per_call": {
            "unguarded": summary(plain.per_call),
            "guarded": summary(guarded.per_call),
            "added": summary(without(guarded.per_call, plain.per_call)),
        },
    }


def without(whole: list[float], part: list[float]) -> list[float]:
    """The rest, round by round."""
    return [more - less for more, less in zip(whole, part, strict=True)]


def summary(times: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    return {"median": statistics.median(times), "quartiles": statistics.quantiles(times, n=4)[::2]}


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs=2, default=[10, 410], help="of the two answers that are timed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "langchain_overhead.json")
    options = parser.parse_args()
    by_length = {chunks: runs(" ".join(f"word{number}" for number in range(chunks))) for chunks in options.chunks}
    rows = []
    for surface in by_length[options.chunks[0]]:
        costs = measure({chunks: found[surface] for chunks, found in by_length.items()}, options.rounds)
        for schedule in SCHEDULES:
            rows.append(found := row(surface, schedule, costs))
            chunk, call = (
                {name: part["median"] for name, part in found[per].items()} for per in ("us_per_chunk", "us_per_call")
            )
            print(
                f"{surface}, checks {schedule}: {chunk['unguarded']:.0f} us a chunk unguarded, "
                f"{chunk['added']:.0f} added, of that {chunk['wrapper']:.0f} the wrapper; "
                f"{call['unguarded']:.0f} us a call unguarded, {call['added']:.0f} added"
            )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    saved = {
        "command": "python benchmarks/langchain_overhead.py",
        "commit": commit.stdout.strip(),
        "device": f"cpu, {os.cpu_count()} cores, CPU time",
        "python": platform.python_version(),
        "langchain_core": version("langchain-core"),
        "langchain": version("langchain"),
        "langgraph": version("langgraph"),
        "chunks": options.chunks,
        "rounds": options.rounds,
        "seed": None,
        "rows": rows,
    }
    options.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
