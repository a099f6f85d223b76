"""What the LangChain wrapper itself costs: a guarded chat model against the same one unguarded, neither with a model.

The chat model says what it is told and the guard always passes, so that what is left is the work of the guard's core
(the session, without its checks' models) and of the wrapper (chunks held back and released, events, LangChain's own
context). CPU time of the process, guarded and unguarded runs interleaved: nothing here waits.
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


def measure(variants: dict[str, Run], rounds: int, chunks: int) -> dict[str, list[float]]:
    """Variant -> microseconds of CPU time a chunk, round by round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 2):
        for name, run in variants.items():
            gc.collect()
            started = time.process_time()
            run()
            if round_ >= 2:
                times[name].append((time.process_time() - started) / chunks * 1e6)
    return times


def row(surface: str, schedule: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """One line of the result."""
    names = {"unguarded": "unguarded", "guarded": f"guarded, {schedule}", "core": f"core, {schedule}"}
    median = {name: statistics.median(times[key]) for name, key in names.items()}
    added = [after - before for after, before in zip(times[names["guarded"]], times["unguarded"], strict=True)]
    return {
        "surface": surface,
        "schedule": schedule,
        "median_us_per_chunk": median,
        "quartiles_us_per_chunk": {name: statistics.quantiles(times[key], n=4)[::2] for name, key in names.items()},
        "added_us_per_chunk": statistics.median(added),
        "added_quartiles_us_per_chunk": statistics.quantiles(added, n=4)[::2],
        "wrapper_us_per_chunk": statistics.median(added) - median["core"],
        "guarded_to_unguarded": median["guarded"] / median["unguarded"],
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "langchain_overhead.json")
    options = parser.parse_args()
    text = " ".join(f"word{number}" for number in range(options.chunks))
    rows = []
    for surface, variants in runs(text).items():
        times = measure(variants, options.rounds, options.chunks)
        for schedule in SCHEDULES:
            rows.append(found := row(surface, schedule, times))
            median = found["median_us_per_chunk"]
            print(
                f"{surface}, checks {schedule}: {median['unguarded']:.0f} us a chunk unguarded, "
                f"{found['added_us_per_chunk']:.0f} added ({found['guarded_to_unguarded']:.2f}x), of them "
                f"{median['core']:.0f} the guard's core, {found['wrapper_us_per_chunk']:.0f} the wrapper"
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
