"""Guarded streams side by side: ada-guard, NVIDIA NeMo Guardrails, and what LangChain and LlamaIndex have built in.

No model and no network: a server on the loopback interface writes answers at a fixed pace and is the checker too, at a
fixed cost, for all of them (`scripted_server.py`). One word of a harmful answer is the violation. What differs is only
what a guard does with what it gets: when text is shown, how much of a violation is, and whether the model is stopped.

NeMo Guardrails runs in an environment and a process of its own (``make bench-nemo``), against the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kit import save
from scripted_stream import VIOLATION, Contender, Model, Shown, check_place, line, measured, place, unguarded
from streaming_peers import peers

from ada_guard import Guard, Policy, Release, Replace, Schedule, Verdict
from ada_guard.checking import CheckContext, Checker, judge
from ada_guard.steps import Step, Steps
from ada_guard.testing import ScriptedFollowing, ScriptedHeader, ScriptedSidecar

HERE = Path(__file__).parent
NEMO = HERE.parent / ".venv-nemo" / "bin" / "python"
NEMO_MISSING = "NeMo Guardrails is not measured: `make bench-nemo` makes its environment"
# Answers of a size that ends within seconds, and of the size that figures are taken with.
SIZES = {"tiny": {"tokens": 40, "violation": 20}, "full": {"tokens": 300, "violation": 120}}

POLICIES = {
    "default schedule, hold": Policy(),
    "every 25, hold": Policy(schedule=Schedule.every(25)),
    "every 25, window of 25": Policy(schedule=Schedule.every(25), release="window", window_tokens=25),
    "every token, hold": Policy(schedule=Schedule.every(1)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking(Step):
    """A check: by the scripted checker, or, where there is none, in this process at the same kind of cost.

    Attributes:
        model: Whose checker is asked; None for a check in this process.
        text: What is judged.
        check_ms: What it costs.
    """

    model: Model | None
    text: str
    check_ms: float

    def run(self) -> bool:
        """Nothing here is sync."""
        raise NotImplementedError

    async def arun(self) -> bool:
        """Whether it found something harmful."""
        if self.model is not None:
            return await self.model.is_harmful(self.text, self.check_ms)
        await asyncio.sleep(self.check_ms / 1000)
        return VIOLATION in self.text


class AskingFollowing(ScriptedFollowing):
    """Takes the checker's word for it, at the checker's cost. A word is a token, settled when the next one begins."""

    def __init__(self, model: Model | None, check_ms: float) -> None:
        super().__init__()
        self._model, self._check_ms = model, check_ms

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        """Asks behind exactly the words of this depth."""
        self.checked.append(context.depth)
        text = "".join(piece.text for piece in self.pieces[: context.depth])
        is_harmful = yield Asking(model=self._model, text=text, check_ms=self._check_ms)
        header = ScriptedHeader(context.depth, lambda _: 0.99 if is_harmful else 0.01, lambda _: "")
        return judge(checker, context, header.answer)


class AskingSidecar(ScriptedSidecar):
    """A sidecar whose every check costs what the checker costs."""

    def __init__(self, model: Model | None, check_ms: float) -> None:
        super().__init__()
        self._model, self._check_ms = model, check_ms

    def open(self, conversation: Any, **settings: Any) -> Steps[AskingFollowing]:
        """Begins to follow."""
        del conversation, settings
        yield from ()
        self.followed.append(following := AskingFollowing(self._model, self._check_ms))
        return following


def ours(model: Model, name: str, check_ms: float, *, in_process: bool = False) -> Contender:
    """ada-guard before the server; the checks are the server's too, or made in this process."""
    sidecar = AskingSidecar(None if in_process else model, check_ms)
    guard = Guard.for_endpoint(model.base_url, model="scripted", sidecar=sidecar, policy=POLICIES[name])

    async def stream(question: str) -> AsyncIterator[Shown]:
        async with aclosing(guard.astream([{"role": "user", "content": question}])) as events:
            async for event in events:
                if isinstance(event, Release):
                    yield Shown(event.text)
                elif isinstance(event, Replace):
                    yield Shown(notice="replacement, an event of its own")

    return Contender(
        system="ada-guard",
        setting=name,
        check_ms=check_ms,
        check_at=check_place(in_process),
        stream=stream,
        checks=lambda: sum(len(following.checked) for following in sidecar.followed),
    )


@contextmanager
def server(*, token_ms: float) -> Iterator[str]:
    """The scripted server; gives its address."""
    words = [sys.executable, str(HERE / "scripted_server.py"), f"--token-ms={token_ms}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def of_nemo(python: Path, base_url: str, shape: dict[str, float]) -> dict[str, Any]:
    """What the foreign environment measures: ``versions`` and ``rows``."""
    words = [str(python), str(HERE / "nemo" / "run_nemo.py"), base_url]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
    printed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


async def of_ours(
    base_url: str, *, tokens: int, violation: int, check_ms: float, cheap_ms: float, rounds: int
) -> list[dict[str, Any]]:
    """All that runs in this environment."""
    model = Model(base_url)
    contenders = [
        unguarded(model),
        *(ours(model, name, check_ms) for name in POLICIES),
        ours(model, "every token, hold", cheap_ms, in_process=True),
        *peers(model, check_ms),
    ]
    return await measured(model, contenders, tokens=tokens, violation=violation, rounds=rounds)


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full", help="of the answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-ms", type=float, default=5.0, help="what the model needs for a token")
    parser.add_argument("--check-ms", type=float, default=20.0, help="what the checker needs, whatever it is shown")
    parser.add_argument(
        "--cheap-ms", type=float, default=1.0, help="the same in this process: a check that rides in a step"
    )
    parser.add_argument("--device", default="cpu", help="there is no model here: it only names the result")
    parser.add_argument("--nemo", type=Path, default=NEMO, help="Python of NeMo Guardrails' environment")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # LangChain's warning of a callback that raised
    costs = {"check_ms": options.check_ms, "cheap_ms": options.cheap_ms}
    shape: dict[str, Any] = {**SIZES[options.size], **costs, "rounds": options.rounds}
    foreign: dict[str, Any] = {"versions": {}, "rows": []}
    with server(token_ms=options.token_ms) as base_url:
        rows = asyncio.run(of_ours(base_url, **shape))
        for row in rows:
            print(line(row))
        if options.nemo.exists():
            foreign = of_nemo(options.nemo, base_url, shape)
            for row in foreign["rows"]:
                print(line(row))
        else:
            print(NEMO_MISSING)
    places = [str(place(shape["violation"], round_)) for round_ in range(options.rounds)]
    path = save(
        "streaming_guards",
        [*({**row, "process": "ours"} for row in rows), *({**row, "process": "nemo"} for row in foreign["rows"])],
        device=options.device,
        out=options.out,
        token_ms=options.token_ms,
        **{**shape, "violation": ", ".join(places)},
        peers={**{name: version(name) for name in ("langchain-core", "llama-index-core")}, **foreign["versions"]},
        counted=COUNTED,
    )
    print(f"saved to {path}")


COUNTED = {
    "first_text_ms": "from the question to the first text that is shown",
    "inter_release_ms": "between two releases; texts within a millisecond are one, pooled over rounds",
    "token_lag_ms": "from the model's sending a word to its being shown, pooled over rounds and words",
    "total_ratio": "harmless answer, to the unguarded stream of the same process and round",
    "violation": "the harmful word, counted from 1, by round",
    "shown_from_violation": "words shown from the harmful word on, with it",
    "generated_after_violation": "words that the server still sent behind the harmful word",
    "notice_ms": "from the harmful word to the consumer's being told",
    "stream_end_ms": "from the harmful word to the end of the consumer's stream",
    "checks": "requests that the checker got, for a harmless answer",
}


if __name__ == "__main__":
    main()
