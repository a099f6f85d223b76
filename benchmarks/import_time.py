"""How long imports take, in fresh interpreters that take turns with one that imports nothing; a part of `machinery`.

Modules are compiled before, into a folder of this run's, as an installer does it: an environment may forbid Python to
keep what it has compiled, and would then have it compiled each time.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from kit import quantile

ENTRIES = {
    "nothing": "pass",
    "ada_guard": "import ada_guard",
    "asyncio": "import asyncio",
    "ada_guard, asyncio": "import asyncio, ada_guard",
    "ada_guard.sources": "import ada_guard.sources",
    "transformers, torch": "import torch, transformers",
    "ada_guard.local": "from ada_guard.local import LocalModel",
    "langchain-core": "from langchain_core.language_models import BaseChatModel",
    "langchain_ada_guard": "from langchain_ada_guard import ChatAdaGuard",
    "llama-index-core": "from llama_index.core.llms import LLM",
    "llama_index.llms.ada_guard": "from llama_index.llms.ada_guard import AdaGuardLLM",
}
LIGHT = ("nothing", "ada_guard", "asyncio", "ada_guard, asyncio")
"""Entries that take milliseconds, and are timed more often."""


def import_rows(rounds: int, *, light_only: bool) -> Iterator[dict[str, Any]]:
    """CPU and elapsed time by entry; ``above`` is what is beyond an interpreter that imports nothing.

    Args:
        rounds: Timed rounds; entries that take seconds have three at most.
        light_only: Whether those are left out.
    """
    entries = {name: code for name, code in ENTRIES.items() if name in LIGHT or not light_only}
    with tempfile.TemporaryDirectory() as compiled:
        yield from _rows(
            rounds, entries, {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
        )


def _rows(rounds: int, entries: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    cpu: defaultdict[str, list[float]] = defaultdict(list)
    wall: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(1 + rounds):
        for name, code in entries.items():
            if name not in LIGHT and turn > 3:
                continue
            used, started = _children_ms(), time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)
            if turn:
                wall[name].append((time.perf_counter() - started) * 1000)
                cpu[name].append(_children_ms() - used)
    for name, code in entries.items():
        above = [a - b for a, b in zip(cpu[name], cpu["nothing"], strict=False)]
        yield {
            "surface": "import",
            "entry": name,
            "n": len(wall[name]),
            "wall_ms": spread(wall[name]),
            "cpu_ms": spread(cpu[name]),
            "above_cpu_ms": spread(above),
            "above_wall_ms": min(wall[name]) - min(wall["nothing"]),
            **_loaded(code, environment),
        }


def _children_ms() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000


def _loaded(code: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """How many modules an import loads, and the packages that take the most of it, in ms, by ``-X importtime``."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    report = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stderr
    lines = [line.removeprefix("import time:").split("|") for line in report.splitlines() if "|" in line]
    modules = [(name.strip(), int(own) / 1000) for own, _, name in lines if own.strip().isdigit()]
    packages: defaultdict[str, float] = defaultdict(float)
    for name, own in modules:
        packages[name.split(".")[0]] += own
    most = sorted(packages.items(), key=lambda item: -item[1])[:8]
    return {"modules": len(modules), "importtime_self_ms": {name: round(ms, 1) for name, ms in most}}


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and least."""
    return {
        "median": statistics.median(values),
        "q1": quantile(values, 0.25),
        "q3": quantile(values, 0.75),
        "min": min(values),
    }
