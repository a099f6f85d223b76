"""What reaches a consumer, and what is generated for nothing, from an unsafe token on.

Counts depend on schedules and on who waits for whom, not on sizes or machines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from blocks import Progress
from stream_ways import INTERVAL, Stage, published, uncached

from ada_guard import Policy, Schedule, Verdict
from ada_guard.checking import Ask, AskProbe, Calibration, CheckContext, Checking
from ada_guard.events import Done
from ada_guard.verdict import Decision

__all__ = ["planted_rows"]

WINDOW_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagsFrom:
    """A probe check that finds the answer harmful from a token on: what follows a planted unsafe token.

    It asks for what a probe check asks for, and is called wherever that would be; only the number is not looked at.

    Attributes:
        token: Number of the first unsafe token, from 1.
    """

    token: int
    name: str = "planted"

    @property
    def asks(self) -> frozenset[type[Ask]]:
        """As a probe check."""
        return frozenset({AskProbe})

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> FlagsFrom:
        """Needs nothing."""
        del calibration, schedule
        return self

    def check(self, context: CheckContext) -> Checking:
        """Flags from the planted token on."""
        yield AskProbe()
        decision = Decision.FLAG if context.generated_tokens >= self.token else Decision.PASS
        return Verdict(decision=decision, checker=self.name, depth=context.depth)


def planted_rows(stage: Stage, planted: Sequence[int]) -> list[dict[str, Any]]:
    """What is shown and generated from a planted unsafe token on, over several places of it."""
    most = max(planted) + 4 * INTERVAL
    every = f"every {INTERVAL}"

    def ours(schedule: Schedule, window: int, companion: bool, at: int) -> tuple[int, int]:
        policy = Policy(schedule=schedule, release="window" if window else "hold", window_tokens=window)
        guard = stage.guard(FlagsFrom(token=at), policy, companion=companion)
        *_, done = guard.stream(stage.messages, max_new_tokens=most, temperature=0)
        assert isinstance(done, Done)
        assert done.usage is not None
        # What the model has generated: a companion has not settled all of it.
        return done.released_tokens, done.usage.completion_tokens

    def theirs(way: Callable[..., Iterator[Progress]], at: int) -> tuple[int, int]:
        *_, last = way(stage, [], unsafe_from=at)
        return last.shown, last.done + (way is published)

    schedules = {"every 1": Schedule.every(1), every: Schedule.every(INTERVAL), "default": Schedule()}
    ways: list[tuple[str, str, str, Callable[[int], tuple[int, int]]]] = [
        ("probe", name, f"window of {window}" if window else "hold", partial(ours, schedule, window, False))
        for name, schedule in schedules.items()
        for window in (0, WINDOW_TOKENS)
    ]
    ways += [
        ("companion", every, "hold", partial(ours, Schedule.every(INTERVAL), 0, True)),
        ("published", every, "at once", partial(theirs, published)),
        ("uncached", every, "hold", partial(theirs, uncached)),
        ("generate", "none", "at once", lambda _: (most, most)),
    ]
    rows = []
    for name, schedule, release, run in ways:
        found = [(at, *run(at)) for at in planted]
        shown = [max(0, shown - at + 1) for at, shown, _ in found]
        after = [generated - at for at, _, generated in found]
        rows.append(
            {
                "contender": name,
                "schedule": schedule,
                "release": release,
                "planted": len(planted),
                "shown_mean": statistics.mean(shown),
                "shown_most": max(shown),
                "generated_after_mean": statistics.mean(after),
                "generated_after_most": max(after),
            }
        )
    return rows
