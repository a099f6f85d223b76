"""The ways to write and guard an answer that are compared from end to end: ours, the authors', an un-cached guard's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from blocks import Progress
from kit import local_model, random_net
from other_ways import PublishedProcedure, UncachedGuard, greedy
from transformers import DynamicCache
from turns import Clock

from ada_guard import CascadeChecker, Guard, Policy, ProbeChecker, RethinkChecker, Schedule
from ada_guard.checking import Checker
from ada_guard.events import Check, Event, Release
from ada_guard.local import LocalModel
from ada_guard.sidecar.companion import LocalSidecar

__all__ = ["INTERVAL", "Contender", "Stage", "contenders", "published", "stage_of", "uncached"]

INTERVAL = 25
NEVER = 10**9


@dataclass(slots=True, kw_only=True)
class Stage:
    """The models and the prompt that all contenders share.

    Attributes:
        model: Generates.
        companion: Another one of the same size: the sidecar, or the un-cached guard.
        messages: The prompt.
        sidecar: On the companion. Keeps no conversation: each run reads the prompt anew, as the others do.
        check_ms: Time of each separate check, by contender.
    """

    model: LocalModel
    companion: LocalModel
    messages: list[dict[str, str]]
    sidecar: LocalSidecar = field(init=False)
    check_ms: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sidecar = LocalSidecar(self.companion, max_retained=0)

    @property
    def prompt(self) -> list[int]:
        """Ids of the prompt."""
        return list(self.model.encode(self.messages).ids)

    def checks_of(self, name: str) -> list[float]:
        """Where a contender notes the times of its checks, in ms."""
        return self.check_ms.setdefault(name, [])

    def guard(self, checker: Checker, policy: Policy, *, companion: bool = False) -> Guard:
        """A guard on the model."""
        return Guard(self.model, sidecar=self.sidecar if companion else None, checker=checker, policy=policy)

    def published(self) -> PublishedProcedure:
        """The authors' procedure on the model."""
        assert self.model.probe is not None
        layer = self.model.probe.hook_point.layer
        return PublishedProcedure(self.model.model, self.model.spec.probe.ids, layer=layer)


def guarded(events: Iterator[Event], check_ms: list[float]) -> Iterator[Progress]:
    """Our stream. A release means that the check before it was made, in whose pass its last token was fed."""
    for event in events:
        if isinstance(event, Check):
            check_ms.append(event.elapsed_ms)
        elif isinstance(event, Release):
            yield Progress(shown=event.depth, done=event.depth)


def unguarded(events: Iterator[Event]) -> Iterator[Progress]:
    """Our stream without checks: a token is shown before it is fed."""
    for event in events:
        if isinstance(event, Release):
            yield Progress(shown=event.depth, done=event.depth - 1)


def published(stage: Stage, check_ms: list[float], *, unsafe_from: int = NEVER) -> Iterator[Progress]:
    """The authors' server: shows each token, then feeds it, then checks if the depth is a multiple of the interval."""
    net: Any = stage.model.model
    procedure, cache = stage.published(), DynamicCache(config=stage.model.model.config)
    flagged = False
    clock = Clock(str(net.device))

    def fed(tokens: int) -> None:
        nonlocal flagged
        if tokens % INTERVAL == 0:
            before = clock.ms
            clock.start()
            procedure.check(cache)
            clock.stop()
            check_ms.append(clock.ms - before)
            flagged = tokens >= unsafe_from

    for tokens, token in enumerate(greedy(net, stage.prompt, cache, fed), start=1):
        # The next token is known by now, but nobody has asked for it.
        if flagged:
            return
        stage.model.tokenizer.decode([token])
        yield Progress(shown=tokens, done=tokens - 1)


def uncached(stage: Stage, check_ms: list[float], *, unsafe_from: int = NEVER) -> Iterator[Progress]:
    """A guard model that reads prompt and answer anew at each interval. Generation waits, and so does the text."""
    net: Any = stage.model.model
    guard = UncachedGuard(stage.companion.model)
    prompt, shown = stage.prompt, 0
    answer: list[int] = []
    clock = Clock(str(net.device))
    for token in greedy(net, prompt, DynamicCache(config=net.config)):
        answer.append(token)
        stage.model.tokenizer.decode([token])
        if len(answer) % INTERVAL == 0:
            before = clock.ms
            clock.start()
            guard.check([*prompt, *answer])
            clock.stop()
            check_ms.append(clock.ms - before)
            if len(answer) >= unsafe_from:
                yield Progress(shown=shown, done=len(answer))
                return
            shown = len(answer)
        yield Progress(shown=shown, done=len(answer) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to write and guard an answer.

    Attributes:
        counted: What it is, in words.
        schedule: Depths of its checks.
        release: What is shown when.
        start: Begins an answer of at most so many tokens; is given the list for the times of its checks.
        checks_wait: Whether a check's time is all its own, and not that of a decode step that it rides in.
    """

    counted: str
    schedule: str
    release: str
    start: Callable[[int, list[float]], Iterator[Progress]]
    checks_wait: bool = False


def contenders(stage: Stage) -> dict[str, Contender]:
    """All of them but ``generate``, by name."""

    def ours(guard: Guard) -> Callable[[int, list[float]], Iterator[Progress]]:
        return lambda tokens, check_ms: guarded(
            guard.stream(stage.messages, max_new_tokens=tokens, temperature=0), check_ms
        )

    every = f"every {INTERVAL}"
    policies = {
        "every 1": Policy(schedule=Schedule.every(1)),
        every: Policy(schedule=Schedule.every(INTERVAL)),
        "default": Policy(),
    }
    plain = stage.guard(ProbeChecker(), Policy())
    made = {
        "unguarded": Contender(
            counted="our stream without a guard",
            schedule="none",
            release="at once",
            start=lambda tokens, _: unguarded(plain.unguarded(stage.messages, max_new_tokens=tokens, temperature=0)),
        )
    }
    for name, policy in policies.items():
        made[f"probe, {name}"] = Contender(
            counted="fused probe checks", schedule=name, release="hold", start=ours(stage.guard(ProbeChecker(), policy))
        )
    auto = stage.guard(ProbeChecker(), Policy(schedule=Schedule.auto()))
    made["probe, auto"] = Contender(
        counted="fused probe checks, as dense as 5 % of the decode time allow on this model",
        schedule=f"auto, which chose {auto.policy.schedule.spelling}",
        release="hold",
        start=ours(auto),
    )
    others: dict[str, Checker] = {
        # The probe alone decides where it is sure, and it always is below a `low` of 1.
        "cascade, probe sure": CascadeChecker(low=1.0, high=1.0),
        "rethink": RethinkChecker(),
    }
    for name, checker in others.items():
        made[f"{name}, {every}"] = Contender(
            counted=f"fused checks by {name}",
            schedule=every,
            release="hold",
            start=ours(stage.guard(checker, policies[every])),
        )
    made[f"companion, {every}"] = Contender(
        counted="probe checks by another model of the same size in this process, up to the probe's layer",
        schedule=every,
        release="hold",
        start=ours(stage.guard(ProbeChecker(), policies[every], companion=True)),
        checks_wait=True,
    )
    made[f"published, {every}"] = Contender(
        counted="the authors' procedure: each token shown, then fed, then checked on a deep copy of the cache",
        schedule=every,
        release="at once",
        start=lambda _, check_ms: published(stage, check_ms),
        checks_wait=True,
    )
    made[f"uncached, {every}"] = Contender(
        counted="a guard model of the same size that reads the whole text anew; generation waits",
        schedule=every,
        release="hold",
        start=lambda _, check_ms: uncached(stage, check_ms),
        checks_wait=True,
    )
    return made


def speaking_plainly(net: Any, tokenizer: Any) -> None:
    """Lets a model say nothing but words that are one token each, whatever stands around them.

    So a text is the same tokens to whoever reads it, and has no token without text. No work is left out: a row of
    zeros costs as much as any other.
    """
    words = [i for i in range(len(tokenizer)) if _is_word(tokenizer, i)]
    weight = net.get_output_embeddings().weight
    keep = torch.zeros(weight.shape[0], 1, dtype=weight.dtype, device=weight.device)
    keep[words] = 1
    with torch.no_grad():
        weight.mul_(keep)


def _is_word(tokenizer: Any, token: int) -> bool:
    text = str(tokenizer.decode([token]))
    whole: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return text[:1] == " " and text[1:].isalpha() and whole == [token]


def stage_of(size: str, family: str, *, dtype: torch.dtype, device: str, prompt_words: int) -> Stage:
    """Two random models of one size, and a prompt."""
    made = []
    for seed in (0, 1):
        model = local_model(random_net(size, family=family, dtype=dtype, device=device, seed=seed))
        speaking_plainly(model.model, model.tokenizer)
        made.append(model)
    messages = [{"role": "user", "content": " ".join(["the"] * prompt_words)}]
    return Stage(model=made[0], companion=made[1], messages=messages)
