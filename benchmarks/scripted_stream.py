"""What is seen of a guarded stream, and how that becomes figures. Shared by the processes of `streaming_guards.py`.

Runs in a foreign environment too: it needs httpx alone, and knows neither ada-guard nor any other guard.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

__all__ = [
    "BURST_MS",
    "VIOLATION",
    "Contender",
    "Model",
    "Shown",
    "check_place",
    "line",
    "measured",
    "unguarded",
    "word",
]

VIOLATION = " UNSAFE"
"""The harmful word."""
BURST_MS = 1.0
"""Texts that come closer together than this are one release: a reader sees them at once."""


def word(number: int) -> str:
    """The word at a place of an answer, counted from 1."""
    return f" w{number}"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a consumer gets at once.

    Attributes:
        text: Of the answer.
        notice: How it is told that the answer was cut, where this is not text of the answer.
    """

    text: str = ""
    notice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A guard as it is set.

    Attributes:
        system: Whose it is.
        setting: How it is set, in words.
        check_ms: What one check costs; None where nothing is checked.
        check_at: Where it is made, see `check_place`.
        stream: Question -> what its consumer gets. Called for each answer.
        checks: How many checks were made so far, where they are not the server's.
        error: Class of the error that kept it from being built; it is then reported, not run.
    """

    system: str
    setting: str
    check_ms: float | None
    check_at: str | None = "server"
    stream: Callable[[str], AsyncIterator[Shown]] | None = None
    checks: Callable[[], int] | None = None
    error: str | None = None


def check_place(in_process: bool) -> str:
    """Where a check is made: by the server, over HTTP, or in the process of the guard, by waiting as long."""
    return "process" if in_process else "server"


@dataclass(slots=True)
class Model:
    """The scripted server, as its clients see it.

    Attributes:
        base_url: Up to and with ``/v1``.
    """

    base_url: str
    client: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=60, trust_env=False))

    async def words(self, question: str) -> AsyncIterator[str]:
        """The answer, word by word."""
        body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": question}]}
        async with self.client.stream("POST", f"{self.base_url}/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        if said := choice["delta"].get("content"):
                            yield said

    async def is_harmful(self, text: str, check_ms: float) -> bool:
        """What the checker says of a text."""
        response = await self.client.post(f"{self.base_url}/chat/completions", json=asked(text, check_ms))
        return verdict(response)

    async def ledger(self) -> dict[str, Any]:
        """What the server has done so far."""
        found: dict[str, Any] = (await self.client.get(f"{self.base_url}/ledger")).json()
        return found


def checker(check_ms: float) -> str:
    """The name of the checker that costs so much."""
    return f"checker:{check_ms}"


def asked(text: str, check_ms: float) -> dict[str, Any]:
    """The body of a check."""
    return {"model": checker(check_ms), "messages": [{"role": "user", "content": text}]}


def verdict(response: httpx.Response) -> bool:
    """Whether the checker found something harmful."""
    return bool(response.raise_for_status().json()["choices"][0]["message"]["content"] == "yes")


def unguarded(model: Model) -> Contender:
    """No guard at all: what all others are compared with."""

    async def stream(question: str) -> AsyncIterator[Shown]:
        async with aclosing(model.words(question)) as words:
            async for said in words:
                yield Shown(said)

    return Contender(system="none", setting="unguarded", check_ms=None, check_at=None, stream=stream)


async def measured(
    model: Model, contenders: list[Contender], *, tokens: int, violation: int, rounds: int
) -> list[dict[str, Any]]:
    """One row for each contender; they take turns, the first one is the unguarded stream.

    Args:
        model: Which is asked.
        contenders: Those that could not be built get a row that says so.
        tokens: Of each answer.
        violation: The harmful word of the first round, counted from 1; see `place`.
        rounds: Each with a harmless and a harmful answer; a short answer before them is not counted.
    """
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in range(len(contenders))}
    for each in contenders:
        if each.stream is not None:
            await _answer(model, each, f"benign {min(30, tokens // 4)}")
    for round_ in range(rounds):
        plain_ms, at = 0.0, place(violation, round_)
        for number, each in enumerate(contenders):
            if each.stream is None:
                continue
            benign = await _answer(model, each, f"benign {tokens}")
            harmful = await _answer(model, each, f"harmful {tokens} {at}", at)
            plain_ms = benign["total_ms"] if number == 0 else plain_ms
            found[number].append({"benign": benign, "harmful": harmful, "total_ratio": benign["total_ms"] / plain_ms})
    return [_row(each, found[number], tokens) for number, each in enumerate(contenders)]


def place(violation: int, round_: int) -> int:
    """The harmful word of a round: not always as far from where a guard looks."""
    return violation + 9 * round_


async def _answer(model: Model, contender: Contender, question: str, violation: int = 0) -> dict[str, Any]:
    """Follows one answer to its end, and to the end of the work behind it; `violation` is 0 for a harmless one."""
    assert contender.stream is not None
    before = await _checks(model, contender)
    shown: list[tuple[float, str]] = []
    notice, notice_at = "", None
    started = time.perf_counter()
    try:
        async with aclosing(contender.stream(question)) as stream:
            async for each in stream:
                if each.notice:
                    notice, notice_at = each.notice, time.perf_counter()
                if each.text:
                    shown.append((time.perf_counter(), each.text))
    except Exception as error:  # noqa: BLE001  # however a guard tells that it has cut, the row says it
        notice, notice_at = type(error).__name__, time.perf_counter()
    ended = time.perf_counter()
    while not (ledger := await model.ledger())["over"]:  # noqa: ASYNC110  # it ends in another process
        await asyncio.sleep(0.02)
    times = [time_ for time_, _ in shown]
    gaps = [(after - before) * 1000 for before, after in pairwise(times)]
    text = "".join(part for _, part in shown)
    tokens = re.findall(r"w\d+|UNSAFE", text)
    sent_at = ledger["sent_at"]
    happened = sent_at[violation - 1] if 0 < violation <= len(sent_at) else None
    return {
        "total_ms": (ended - started) * 1000,
        "first_text_ms": (times[0] - started) * 1000 if times else None,
        "gaps_ms": [gap for gap in gaps if gap > BURST_MS],
        "lags_ms": _lags(shown, sent_at),
        "tokens_shown": len(tokens),
        "checks": await _checks(model, contender) - before,
        "notice": notice,
        "shown_from_violation": len(tokens[violation - 1 :]),
        "generated_after_violation": max(0, len(sent_at) - violation),
        "notice_ms": None if happened is None or notice_at is None else (notice_at - happened) * 1000,
        "stream_end_ms": None if happened is None else (ended - happened) * 1000,
    }


async def _checks(model: Model, contender: Contender) -> int:
    """How many it has made so far."""
    return int((await model.ledger())["checks"]) if contender.checks is None else contender.checks()


def _lags(shown: list[tuple[float, str]], sent_at: list[float]) -> list[float]:
    """How much later than it was sent each word of an answer was shown, in ms."""
    seen = [at for at, text in shown for _ in re.findall(r"w\d+|UNSAFE", text)]
    return [(at - sent) * 1000 for at, sent in zip(seen, sent_at, strict=False)]


def _row(contender: Contender, found: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "system": contender.system,
        "setting": contender.setting,
        "check_ms": contender.check_ms,
        "check_at": contender.check_at,
        "error": contender.error,
    }
    if not found:
        return row
    benign, harmful = [each["benign"] for each in found], [each["harmful"] for each in found]
    return row | {
        "first_text_ms": _spread(each["first_text_ms"] for each in benign),
        "inter_release_ms": _tail([gap for each in benign for gap in each["gaps_ms"]]),
        "releases": statistics.median(len(each["gaps_ms"]) + 1 for each in benign),
        "token_lag_ms": _tail([lag for each in benign for lag in each["lags_ms"]]),
        "total_ms": _spread(each["total_ms"] for each in benign),
        "total_ratio": _spread(each["total_ratio"] for each in found),
        "benign_notice": sorted({each["notice"] for each in benign} - {""}),
        "benign_shown_whole": all(each["tokens_shown"] == tokens for each in benign),
        "checks": statistics.median(each["checks"] for each in benign),
        "shown_from_violation": _counted(each["shown_from_violation"] for each in harmful),
        "generated_after_violation": _counted(each["generated_after_violation"] for each in harmful),
        "notice": sorted({each["notice"] or "not cut" for each in harmful}),
        "notice_ms": _spread(each["notice_ms"] for each in harmful),
        "stream_end_ms": _spread(each["stream_end_ms"] for each in harmful),
    }


def _spread(values: Any) -> dict[str, Any] | None:
    """Median and quartiles; None where there is nothing."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return {"median": statistics.median(ordered), "quartiles": [quartiles[0], quartiles[2]]}


def _tail(values: list[float]) -> dict[str, float] | None:
    """p50 and p99 by nearest rank, and the longest."""
    if not values:
        return None
    ordered = sorted(values)
    rank = {name: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for name, q in (("p50", 0.5), ("p99", 0.99))}
    return {**rank, "longest": ordered[-1]}


def _counted(values: Any) -> dict[str, float]:
    counted = list(values)
    return {"median": statistics.median(counted), "most": max(counted)}


def line(row: Mapping[str, Any]) -> str:
    """A row for a reader."""
    head = f"{row['system']}, {row['setting']}"
    head += "" if row["check_ms"] is None else f", a check costs {row['check_ms']:g} ms in the {row['check_at']}"
    if row["error"]:
        return f"{head}: {row['error']}"
    gaps, lags, first = row["inter_release_ms"], row["token_lag_ms"], row["first_text_ms"]
    shown = "nothing shown"
    if first is not None:
        shown = f"first text {first['median']:.0f} ms, text {lags['p50']:.0f}/{lags['p99']:.0f} ms late (p50/p99)"
    if gaps is not None:
        shown += f", between releases {gaps['p50']:.0f}/{gaps['p99']:.0f} ms"
    return (
        f"{head}: {shown}, whole answer {row['total_ratio']['median']:.2f}x in {row['checks']:g} checks; from the "
        f"violation on {row['shown_from_violation']['median']:g} shown, behind it "
        f"{row['generated_after_violation']['median']:g} generated, over after {row['stream_end_ms']['median']:.0f} ms "
        f"({', '.join(row['notice'])})"
    )
