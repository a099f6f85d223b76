"""What the guard itself costs without any model: microseconds a token, and milliseconds to import it.

CPU time of this process, contenders in turn: nothing here waits. The doubles of `ada_guard.testing` stand for source
and sidecar and take time themselves; what they take is measured by driving them without a guard, and told apart:

- ``source``: the source, read to its end by a bare loop.
- ``doubles``: the same, and each delta given to the scripted sidecar. No check is made.
- ``guarded``: the guard over them. ``machinery`` is what of it the doubles do not take, ``added`` what the source does
  not: checks count as machinery. The checker asks nothing and passes.

``session`` is the state machine alone; its pieces and its verdict are made beforehand. ``settled tokens`` is no
machinery: it is the tokenizer's work of a companion, that of encoding the same text at once included for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from import_time import import_rows, spread
from kit import save
from transformers import AutoTokenizer

from ada_guard import Decision, Guard, Policy, Schedule, Verdict
from ada_guard.checking import Ask, CheckContext, Checker, Checking
from ada_guard.reference import CHAT_DIR
from ada_guard.session import Piece, StreamSession
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sidecar.settled import SettledTokens
from ada_guard.sources import IterableSource
from ada_guard.steps import Steps, arun, run
from ada_guard.testing import ScriptedFollowing, ScriptedGuard, ScriptedSidecar

SCHEDULES = {"default": Schedule(), "every 25": Schedule.every(25), "every token": Schedule.every(1)}
MESSAGES = [{"role": "user", "content": "hello"}]
MANY = 25
"""Tokens of a delta, where it is not one."""
Run: TypeAlias = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Passing:
    """A checker that passes everything, and asks nothing."""

    name: str = "passing"
    asks: frozenset[type[Ask]] = frozenset()

    def prepare(self, *_: object) -> Checker:
        """Needs nothing."""
        return self

    def check(self, context: CheckContext) -> Checking:
        """Passes."""
        yield from ()
        return Verdict(decision=Decision.PASS, checker=self.name, depth=context.depth)


class PassingSidecar(ScriptedSidecar):
    """Every word is a token."""

    def open(self, conversation: Conversation, **settings: Any) -> Any:
        """Begins to follow."""
        del conversation, settings
        yield from ()
        return ScriptedFollowing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """A way to guard a stream.

    Attributes:
        doubles: Gives the source, who follows it, and whether by its ids, for one stream.
        guarded: A guarded stream of the same.
        is_async: Whether on an event loop.
    """

    doubles: Callable[[], tuple[Any, Any, bool]]
    guarded: Callable[[], Any]
    is_async: bool = False

    def contenders(self) -> dict[str, Run]:
        """What takes turns."""
        return {
            "source": lambda: self._drive(_read(self.doubles()[0])),
            "doubles": lambda: self._drive(_followed(*self.doubles())),
            "guarded": (lambda: asyncio.run(_aexhaust(self.guarded()))) if self.is_async else self._exhaust,
        }

    def _exhaust(self) -> None:
        for _ in self.guarded():
            pass

    def _drive(self, steps: Steps[None]) -> None:
        if self.is_async:
            asyncio.run(arun(steps))
        else:
            run(steps)


def _read(source: Any) -> Steps[None]:
    while (yield from source.pull()) is not None:
        pass


def _followed(source: Any, following: Any, by_ids: bool) -> Steps[None]:
    while (delta := (yield from source.pull())) is not None:
        yield from following.push(delta.fragments, delta.token_ids if by_ids else ())
    yield from following.flush()


async def _aexhaust(events: Any) -> None:
    async for _ in events:
        pass


async def _given(texts: list[str]) -> AsyncIterator[str]:
    for text in texts:
        yield text


def surfaces(tokens: int, schedule: Schedule) -> dict[tuple[str, int], Surface]:
    """(Name, tokens of a delta) -> what is measured."""
    texts = [f" word{number}" for number in range(tokens)]
    joined = ["".join(texts[at : at + MANY]) for at in range(0, tokens, MANY)]
    policy = Policy(schedule=schedule)
    own = ScriptedGuard("".join(texts), policy=policy, checker=Passing())
    pushed = Guard(sidecar=PassingSidecar(), policy=policy, checker=Passing())

    def own_doubles() -> tuple[Any, Any, bool]:
        source, _ = own._open(Conversation.of(MESSAGES), {})
        return source, source, True

    found = {
        ("stream", 1): Surface(doubles=own_doubles, guarded=lambda: own.stream(MESSAGES)),
        ("astream", 1): Surface(doubles=own_doubles, guarded=lambda: own.astream(MESSAGES), is_async=True),
    }
    for size, parts in ((1, texts), (MANY, joined)):
        found["stream_from", size] = Surface(
            doubles=lambda parts=parts: (IterableSource(parts), ScriptedFollowing(), False),
            guarded=lambda parts=parts: pushed.stream_from(parts, MESSAGES),
        )
        found["astream_from", size] = Surface(
            doubles=lambda parts=parts: (IterableSource(_given(parts)), ScriptedFollowing(), False),
            guarded=lambda parts=parts: pushed.astream_from(_given(parts), MESSAGES),
            is_async=True,
        )
    return found


def session_alone(tokens: int, schedule: Schedule) -> Run:
    """The state machine, driven as a driver does."""
    pieces = [Piece(text=f" word{number}", token_id=number) for number in range(tokens)]
    verdict = Verdict(decision=Decision.PASS, checker="passing", depth=1)

    def drive() -> None:
        session = StreamSession(Policy(schedule=schedule))
        for piece in pieces:
            session.push(piece)
            while session.due is not None:
                session.resolve(verdict, elapsed_ms=0.0)
            session.drain()
        session.end("stop")
        while session.due is not None:
            session.resolve(verdict, elapsed_ms=0.0)
        session.done(wall_ms=0.0)

    return drive


def cpu_us(contenders: Mapping[str, Run], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU time a token, round by round, contenders in turn; two rounds before them do not count."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(2 + rounds):
        for name, contender in contenders.items():
            gc.collect()
            started = time.process_time()
            contender()
            if turn >= 2:
                times[name].append((time.process_time() - started) * 1e6 / tokens)
    return times


def machinery_rows(lengths: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """The guard, by surface, schedule and length of the answer; the longest answer with a check at every token only."""
    for tokens in lengths:
        for name, schedule in SCHEDULES.items():
            if tokens != lengths[0]:
                if name != "every token":
                    continue
                rounds = min(rounds, 5)
            about = {"schedule": name, "tokens": tokens}
            alone = cpu_us({"session": session_alone(tokens, schedule)}, tokens, rounds)["session"]
            yield {"surface": "session", "delta_tokens": 1, **about, "us_per_token": {"machinery": spread(alone)}}
            for (surface, size), each in surfaces(tokens, schedule).items():
                found = cpu_us(each.contenders(), tokens, rounds)
                found["machinery"] = [a - b for a, b in zip(found["guarded"], found["doubles"], strict=True)]
                found["added"] = [a - b for a, b in zip(found["guarded"], found["source"], strict=True)]
                us = {what: spread(values) for what, values in found.items()}
                yield {"surface": surface, "delta_tokens": size, **about, "us_per_token": us}


def tokenizer_row(tokens: int, rounds: int) -> dict[str, Any]:
    """The work of settling text, delta by delta, and that of encoding all of it at once."""
    tokenizer = AutoTokenizer.from_pretrained(CHAT_DIR)
    texts = [f" word{number}" for number in range(tokens)]
    ids = len(tokenizer.encode("".join(texts), add_special_tokens=False, verbose=False))

    def settle() -> None:
        settled = SettledTokens(tokenizer)
        for text in texts:
            settled.push(text)
        settled.flush()

    found = cpu_us({"settled": settle, "at once": lambda: tokenizer.encode("".join(texts), verbose=False)}, ids, rounds)
    us = {what: spread(values) for what, values in found.items()}
    return {"surface": "settled tokens", "delta_tokens": ids / tokens, "tokens": ids, "us_per_token": us}


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["tiny", "full"], default="full", help="tiny: a dry run")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="named in the result: nothing here uses it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    is_tiny = options.size == "tiny"
    gc.freeze()  # what torch has brought must not be looked at in every collection of ours
    lengths = [100] if is_tiny else [1_000, 10_000]
    rows: list[dict[str, Any]] = []
    for row in machinery_rows(lengths, options.rounds):
        rows.append(row)
        us = _line(row["us_per_token"])
        print(f"{row['surface']}, {row['delta_tokens']} a delta, {row['schedule']}, {row['tokens']} tokens, us: {us}")
    settled = tokenizer_row(lengths[0], options.rounds)
    print(f"settled tokens, us: {_line(settled['us_per_token'])}")
    imports: list[dict[str, Any]] = []
    for row in import_rows(options.rounds, light_only=is_tiny):
        imports.append(row)
        print(
            f"import {row['entry']}: {row['modules']} modules, CPU {row['cpu_ms']['median']:.0f} ms (min "
            f"{row['cpu_ms']['min']:.0f}), wall {row['wall_ms']['median']:.0f} ms (min {row['wall_ms']['min']:.0f})"
        )
    save(
        "machinery",
        rows,
        device=options.device,
        out=options.out,
        size=options.size,
        counted="us_per_token and cpu_ms: CPU time of the process; wall_ms: elapsed; machinery: without the doubles",
        settled=[settled],
        imports=imports,
    )


def _line(us: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{what} {value['median']:.1f}" for what, value in us.items())


if __name__ == "__main__":
    main()
