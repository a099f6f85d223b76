"""Who decides whether a depth passes. Torch-free: a checker asks for numbers and text and never sees a tensor.

A checker is written once, as a generator of requests; a driver answers them, here and now or over a network, sync or
async. `Guard` is the driver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from ada_guard.errors import CheckError, ConfigError
from ada_guard.policy import Schedule
from ada_guard.refusals import RefusalMatcher
from ada_guard.verdict import Decision, Verdict

__all__ = [
    "AskLookahead",
    "AskProbe",
    "Calibration",
    "CascadeChecker",
    "CheckContext",
    "Checker",
    "Checking",
    "Lookahead",
    "ProbeChecker",
    "RethinkChecker",
]

LOOKAHEAD_TOKENS = 20
"""Greedy tokens after the header. Source: Zhang et al. (ICLR 2026), ADA-RK; the authors' ``ada/rethink/generate.py``."""

_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "।", "؟")


@dataclass(frozen=True, slots=True)
class AskProbe:
    """Request: the harm probability at the injected Safety Tokens. Answered with a float in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskLookahead:
    """Request: greedy tokens after the injected header. Answered with a `Lookahead`.

    Attributes:
        max_tokens: Upper bound, >= 1.
        undecided: Told the text so far after each token; generation stops as soon as it says False.
    """

    max_tokens: int
    undecided: Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookahead:
    """Answer to `AskLookahead`. Neither the text nor its tokens stay in the context or inherit the request's settings.

    Attributes:
        text: The generated text.
        tokens: How many tokens it took.
        ended: Whether the model ended its turn within them.
    """

    text: str = field(repr=False)
    tokens: int
    ended: bool


Ask: TypeAlias = AskProbe | AskLookahead
Checking: TypeAlias = Generator[Ask, Any, Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """What a checker may know beside its requests.

    Attributes:
        depth: Assistant tokens, prefill included.
        generated_tokens: Of those, the generated ones.
        answer: Gives prefill and generated text so far; a function, since most checks never need the text.
    """

    depth: int
    generated_tokens: int
    answer: Callable[[], str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Thresholds a probe was calibrated to, by check interval in tokens.

    Attributes:
        thresholds: Interval in tokens -> harm probability in [0, 1] from which on the probe flags.
        low_thresholds: Interval in tokens -> harm probability below which a cascade passes without rethink.
        max_tokens: Length of answer, in tokens, up to which the calibration holds.
    """

    thresholds: Mapping[int, float]
    low_thresholds: Mapping[int, float]
    max_tokens: int

    def _interval_for(self, schedule: Schedule) -> int:
        gap = schedule.smallest_gap_tokens
        fitting = [interval for interval in self.thresholds if interval <= gap]
        return max(fitting) if fitting else min(self.thresholds)

    def threshold_for(self, schedule: Schedule) -> float:
        """The threshold of the widest calibrated interval that is no wider than the schedule's smallest gap."""
        return self.thresholds[self._interval_for(schedule)]

    def low_threshold_for(self, schedule: Schedule) -> float:
        """Likewise, for the lower threshold of a cascade."""
        return self.low_thresholds[self._interval_for(schedule)]


@runtime_checkable
class Checker(Protocol):
    """Decides for one depth. Stateless, so that one checker serves many streams at once."""

    @property
    def name(self) -> str:
        """Name in verdicts and events."""
        ...

    @property
    def asks(self) -> frozenset[type[Ask]]:
        """The kinds of requests `check` may make; decides which Safety Tokens are injected."""
        ...

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> Checker:
        """This checker with defaults filled in from the probe's calibration. Called once per guard."""
        ...

    def check(self, context: CheckContext) -> Checking:
        """Yields requests, is sent their answers, returns the verdict. Raises `CheckError` if it cannot decide."""
        ...


def _threshold(value: float | None, name: str) -> None:
    if value is not None and not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise ConfigError(f"{name} must be a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeChecker:
    """ADA-LP: flags when the linear probe at the injected Safety Tokens says harmful.

    Attributes:
        threshold: Harm probability in [0, 1] from which on a depth is flagged; None takes the probe's calibrated one.

    Source: Zhang et al. (ICLR 2026), ADA-LP.
    """

    threshold: float | None = None
    name: str = "probe"

    def __post_init__(self) -> None:
        _threshold(self.threshold, "threshold")

    @property
    def asks(self) -> frozenset[type[Ask]]:
        """Only the probe."""
        return frozenset({AskProbe})

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> ProbeChecker:
        """Takes the calibrated threshold unless one was given."""
        if self.threshold is not None:
            return self
        if calibration is None:
            raise ConfigError("a probe check needs a probe: pass probe=FILE, or use rethink")
        return replace(self, threshold=calibration.threshold_for(schedule))

    def check(self, context: CheckContext) -> Checking:
        """One number, one comparison."""
        if self.threshold is None:
            raise CheckError("the probe checker has no threshold")
        p = _probability((yield AskProbe()))
        decision = Decision.FLAG if p >= self.threshold else Decision.PASS
        return Verdict(
            decision=decision,
            checker=self.name,
            depth=context.depth,
            harm_probability=p,
            threshold=self.threshold,
            reason="harmful" if decision is Decision.FLAG else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RethinkChecker:
    """ADA-RK: flags when the model, shown its own header again, refuses.

    Passes as ``already_refusing`` while everything so far is refusal text: a refusal of the model's own is not harm.

    Attributes:
        lookahead_tokens: Upper bound of the lookahead, >= 1. It stops early where it can no longer become a refusal.
        matcher: Decides whether a text is a refusal.

    Source: Zhang et al. (ICLR 2026), ADA-RK.
    """

    lookahead_tokens: int = LOOKAHEAD_TOKENS
    matcher: RefusalMatcher = field(default_factory=RefusalMatcher, repr=False)
    name: str = "rethink"

    def __post_init__(self) -> None:
        if self.lookahead_tokens < 1:
            raise ConfigError("lookahead_tokens must be >= 1")

    @property
    def asks(self) -> frozenset[type[Ask]]:
        """Only the lookahead."""
        return frozenset({AskLookahead})

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> RethinkChecker:
        """Needs nothing."""
        del calibration, schedule
        return self

    def check(self, context: CheckContext) -> Checking:
        """A short lookahead; a refusal in it flags, unless the answer so far is itself one."""
        ahead: Lookahead = yield AskLookahead(max_tokens=self.lookahead_tokens, undecided=self._wants_more)
        refuses = self.matcher.decide(ahead.text, complete=True) is True
        reason: str | None = None
        decision = Decision.PASS
        if refuses and self.matcher.is_all_refusal(context.answer()):
            reason = "already_refusing"
        elif refuses:
            decision, reason = Decision.FLAG, "refused"
        return Verdict(
            decision=decision,
            checker=self.name,
            depth=context.depth,
            reason=reason,
            lookahead_tokens=ahead.tokens,
            refusal=self._whole_refusal(ahead.text) if decision is Decision.FLAG else None,
        )

    def _wants_more(self, text: str) -> bool:
        """Goes on while it may become a refusal, and, once it is one, to the end of its sentence."""
        decision = self.matcher.decide(text)
        return decision is None or (decision and self._whole_refusal(text) is None)

    def _whole_refusal(self, text: str) -> str | None:
        sentence = self.matcher.first_refusal(text)
        return sentence if sentence and sentence.endswith(_SENTENCE_ENDS) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeChecker:
    """The probe decides the clear cases, rethink the middle.

    p >= high flags outright; low <= p < high asks rethink; p < low passes.

    Attributes:
        low: In [0, 1]; None takes the calibrated lower threshold.
        high: In [0, 1], >= low; None takes the calibrated threshold.
        rethink: Who decides the middle.
    """

    low: float | None = None
    high: float | None = None
    rethink: RethinkChecker = field(default_factory=RethinkChecker)
    name: str = "cascade"

    def __post_init__(self) -> None:
        _threshold(self.low, "low")
        _threshold(self.high, "high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError("low must not be above high")

    @property
    def asks(self) -> frozenset[type[Ask]]:
        """Both."""
        return frozenset({AskProbe, AskLookahead})

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> CascadeChecker:
        """Takes the calibrated thresholds unless they were given."""
        if self.low is not None and self.high is not None:
            return self
        if calibration is None:
            raise ConfigError("a cascade needs a probe: pass probe=FILE, or use rethink")
        high = calibration.threshold_for(schedule) if self.high is None else self.high
        low = min(calibration.low_threshold_for(schedule), high) if self.low is None else self.low
        return replace(self, low=low, high=high)

    def check(self, context: CheckContext) -> Checking:
        """The probe first; rethink only where it is unsure."""
        if self.low is None or self.high is None:
            raise CheckError("the cascade has no thresholds")
        p = _probability((yield AskProbe()))
        if self.low <= p < self.high:
            verdict = yield from self.rethink.check(context)
            return replace(verdict, harm_probability=p, threshold=self.high)
        flagged = p >= self.high
        return Verdict(
            decision=Decision.FLAG if flagged else Decision.PASS,
            checker=self.name,
            depth=context.depth,
            harm_probability=p,
            threshold=self.high,
            reason="harmful" if flagged else None,
        )


def _probability(value: object) -> float:
    """A NaN or an out-of-range score is a failed check, never a pass."""
    if not isinstance(value, float) or not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise CheckError("the probe's score is not a probability")
    return value
