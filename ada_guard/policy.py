"""When a stream is checked, what may be shown meanwhile, what happens on a flag. Knows no model and no threshold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ada_guard.errors import ConfigError
from ada_guard.verdict import Verdict

__all__ = [
    "DEFAULT_OVERHEAD",
    "DEFAULT_REPLACEMENT",
    "SPARSEST_TOKENS",
    "AutoSchedule",
    "OnError",
    "OnFlag",
    "OwnRefusal",
    "Policy",
    "ReleaseMode",
    "Replacement",
    "Schedule",
]

DEFAULT_REPLACEMENT = "I'm sorry, but I can't help with that."
DEFAULT_OVERHEAD = 0.05
"""Share of the decode time that the checks of an automatic schedule may take, unless another is stated."""
SPARSEST_TOKENS = 100
"""Widest interval that is chosen for a user, who has to wait that long for words. Source: the later interval of
`Schedule.sparse`."""

ReleaseMode: TypeAlias = Literal["hold", "window", "audit"]
OnFlag: TypeAlias = Literal["replace", "halt", "raise"]
OnError: TypeAlias = Literal["halt", "release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The depths at which checks happen, counted in generated tokens (a prefill does not count).

    A check is due at each of `early_tokens`, at each multiple of `interval_tokens`, and, past `later_from_tokens`,
    only at multiples of `later_interval_tokens`.

    Attributes:
        interval_tokens: Tokens between checks, >= 1. Source of the default: 25, Zhang et al. (ICLR 2026), section 4.
        early_tokens: Additional early depths, ascending, so that the first words are shown soon.
        later_interval_tokens: Interval past `later_from_tokens`, or None for the same interval throughout.
        later_from_tokens: Depth from which on the later interval holds.
    """

    interval_tokens: int = 25
    early_tokens: tuple[int, ...] = (5, 10, 15)
    later_interval_tokens: int | None = None
    later_from_tokens: int = 0

    def __post_init__(self) -> None:
        depths = (self.interval_tokens, *self.early_tokens, self.later_interval_tokens or 1)
        if any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in depths):
            raise ConfigError("check intervals and depths must be whole numbers >= 1")
        if list(self.early_tokens) != sorted(set(self.early_tokens)):
            raise ConfigError("early check depths must be ascending, without repeats")
        if self.later_from_tokens < 0:
            raise ConfigError("later_from_tokens must be >= 0")

    @classmethod
    def every(cls, interval_tokens: int) -> Schedule:
        """A check every `interval_tokens` tokens and nowhere else."""
        return cls(interval_tokens=interval_tokens, early_tokens=())

    @classmethod
    def sparse(cls) -> Schedule:
        """Every 25 tokens up to depth 100, then every 100.

        Source: the adaptive schedule in Zhang et al. (ICLR 2026), ablation of the check interval.
        """
        return cls(interval_tokens=25, early_tokens=(), later_interval_tokens=100, later_from_tokens=100)

    @staticmethod
    def auto(overhead: float = DEFAULT_OVERHEAD) -> AutoSchedule:
        """As dense as a budget allows: a guard measures its model once and then keeps to what it chose.

        Args:
            overhead: Share of the decode time that checks may take, in (0, 1].
        """
        return AutoSchedule(overhead=overhead)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """A schedule from its name: ``"default"``, ``"every:N"``, ``"25-then-100"``, ``"auto:5%"``, or ``"3,8,20/25"``.

        The last form lists early depths and, behind the slash, the interval. ``"auto"`` alone has the default budget.
        """
        if text == "default":
            return cls()
        if text == "25-then-100":
            return cls.sparse()
        if match := re.fullmatch(r"every:(\d+)", text):
            return cls.every(int(match[1]))
        if match := re.fullmatch(r"(\d+(?:,\d+)*)/(\d+)", text):
            return cls(early_tokens=tuple(int(d) for d in match[1].split(",")), interval_tokens=int(match[2]))
        if match := re.fullmatch(r"auto(?::(\d+(?:\.\d+)?)%)?", text):
            return cls.auto() if match[1] is None else cls.auto(float(match[1]) / 100)
        raise ConfigError(
            "unknown schedule: use default, every:N, 25-then-100, auto:5%, or early depths and interval as 3,8,20/25"
        )

    @property
    def spelling(self) -> str:
        """This schedule as `parse` reads it: to note what was chosen, and to ask for it again."""
        if self == Schedule.sparse():
            return "25-then-100"
        if self.later_interval_tokens is not None:
            raise ConfigError("a schedule with a later interval has no short form")
        early = ",".join(map(str, self.early_tokens))
        return f"{early}/{self.interval_tokens}" if early else f"every:{self.interval_tokens}"

    def is_due(self, generated_tokens: int) -> bool:
        """Whether a check belongs to this depth (in generated tokens, >= 1)."""
        if generated_tokens in self.early_tokens:
            return True
        if self.later_interval_tokens is not None and generated_tokens > self.later_from_tokens:
            return generated_tokens % self.later_interval_tokens == 0
        return generated_tokens % self.interval_tokens == 0

    def next_due(self, generated_tokens: int) -> int:
        """The first depth behind this one (in generated tokens, >= 0) to which a check belongs; see `is_due`."""
        regular = (generated_tokens // self.interval_tokens + 1) * self.interval_tokens
        if self.later_interval_tokens is not None and regular > self.later_from_tokens:
            behind = max(generated_tokens, self.later_from_tokens)
            regular = (behind // self.later_interval_tokens + 1) * self.later_interval_tokens
        return next((depth for depth in self.early_tokens if generated_tokens < depth < regular), regular)

    @property
    def smallest_gap_tokens(self) -> int:
        """The fewest tokens between two checks: what decides which calibration of a probe applies."""
        last_early = self.early_tokens[-1] if self.early_tokens else 0
        due = [depth for depth in range(1, last_early + self.interval_tokens + 1) if self.is_due(depth)]
        gaps = [after - before for before, after in zip([0, *due], due, strict=False)]
        return min(self.interval_tokens, self.later_interval_tokens or self.interval_tokens, *gaps)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AutoSchedule(Schedule):
    """A schedule whose depths are still to be chosen: the densest that a budget allows on the model of a guard.

    Depth by depth it can be asked for nothing; a guard puts `chosen` in its place before any token flows.

    Attributes:
        overhead: Share of the decode time that checks may take, in (0, 1].
    """

    overhead: float = DEFAULT_OVERHEAD

    def __post_init__(self) -> None:
        # By name: a dataclass with slots is another class than the one that `super` without arguments looks for.
        Schedule.__post_init__(self)
        if isinstance(self.overhead, bool) or not 0 < self.overhead <= 1:
            raise ConfigError("the overhead of an automatic schedule is a share in (0, 1], such as 0.05 or auto:5%")

    def __repr__(self) -> str:
        return f"Schedule.auto(overhead={self.overhead})"

    @property
    def spelling(self) -> str:
        """This schedule as `parse` reads it."""
        return f"auto:{self.overhead * 100:g}%"

    def chosen(self, *, step_ms: float, check_ms: float) -> Schedule:
        """The densest schedule within the budget. A function of the two costs alone.

        The interval is the smallest at which a check for each interval takes no more than the budget, and at most
        `SPARSEST_TOKENS`. Where it is wide, early depths show the first words sooner. They are made once in an answer
        and not charged to the budget, so there are only those of the default schedule, and none where a check costs
        more than a step: all three together delay an answer by three steps at most.

        Args:
            step_ms: Of a decode step without a check, > 0.
            check_ms: What a check adds to a step; less than 0 is noise, and counts as 0.

        Raises:
            ConfigError: Costs that cannot be.
        """
        if not (math.isfinite(step_ms) and math.isfinite(check_ms) and step_ms > 0):
            raise ConfigError("a decode step takes more than no time, a check a finite one")
        share = max(check_ms, 0.0) / step_ms / self.overhead
        interval = min(max(math.ceil(share), 1), SPARSEST_TOKENS)
        usual = Schedule().early_tokens if check_ms <= step_ms else ()
        return Schedule(interval_tokens=interval, early_tokens=tuple(depth for depth in usual if depth < interval))

    def is_due(self, generated_tokens: int) -> bool:
        """Not known yet.

        Raises:
            ConfigError: Always.
        """
        raise self._unchosen()

    def next_due(self, generated_tokens: int) -> int:
        """Not known yet.

        Raises:
            ConfigError: Always.
        """
        raise self._unchosen()

    @property
    def smallest_gap_tokens(self) -> int:
        """Not known yet.

        Raises:
            ConfigError: Always.
        """
        raise self._unchosen()

    def _unchosen(self) -> ConfigError:
        return ConfigError(
            "an automatic schedule has no depths before a guard has measured its model: write an interval here, such "
            "as every:25"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRefusal:
    """Replace by the sentence with which the model itself refused in the lookahead, then by a fixed text.

    Where the check has no such sentence (a probe alone decided), only the fixed text is shown.
    """

    then: str = ""
    fallback: str = DEFAULT_REPLACEMENT

    def text_for(self, verdict: Verdict | None) -> str:
        """The replacement text for a verdict."""
        if verdict is None or not verdict.refusal:
            return self.fallback
        return f"{verdict.refusal} {self.then}".strip()


Replacement: TypeAlias = str | OwnRefusal | Callable[[Verdict | None], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Schedule and reactions of a guard. The threshold is not here: it belongs to the checker.

    Attributes:
        schedule: When checks happen.
        release: ``"hold"`` shows only what a check passed; ``"window"`` lets at most `window_tokens` unchecked tokens
            through; ``"audit"`` shows everything at once, never cuts and only reports.
        window_tokens: The bound of ``"window"``, >= 1; 0 otherwise.
        consecutive: Flags in a row that are needed for a cut, >= 1. An unconfirmed flag holds text back, and counts as
            a flag at the end of the stream.
        on_flag: ``"replace"`` cuts and puts the replacement in place, ``"halt"`` only cuts, ``"raise"`` cuts and raises
            `ContentFlaggedError` (after an error of a check: `CheckError`).
        on_error: ``"halt"`` (fail closed) treats a check that could not be made like a flag; ``"release"`` shows the
            text all the same and records it as unchecked.
        check_prompt: Check once before the first token also where there is no prefill.
        replacement: A text, an `OwnRefusal`, or a function of the verdict (None after an error).
    """

    schedule: Schedule = field(default_factory=Schedule)
    release: ReleaseMode = "hold"
    window_tokens: int = 0
    consecutive: int = 1
    on_flag: OnFlag = "replace"
    on_error: OnError = "halt"
    check_prompt: bool = False
    replacement: Replacement = field(default=DEFAULT_REPLACEMENT, repr=False)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("release", self.release, ("hold", "window", "audit")),
            ("on_flag", self.on_flag, ("replace", "halt", "raise")),
            ("on_error", self.on_error, ("halt", "release")),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}")
        if not isinstance(self.schedule, Schedule):
            raise ConfigError("schedule must be a Schedule; Schedule.parse reads one from a text")
        if self.consecutive < 1:
            raise ConfigError("consecutive must be >= 1")
        if (self.release == "window") != (self.window_tokens > 0):
            raise ConfigError('release="window" needs window_tokens >= 1, and only that mode takes them')
        if not (isinstance(self.replacement, (str, OwnRefusal)) or callable(self.replacement)):
            raise ConfigError("replacement must be a text, an OwnRefusal or a function of the verdict")

    @property
    def replacement_name(self) -> str:
        """The replacement as a text that tells it from others: what a function is called, all else as it is."""
        if callable(self.replacement):
            return f"{self.replacement.__module__}.{getattr(self.replacement, '__qualname__', '')}"
        return str(self.replacement)

    def replacement_for(self, verdict: Verdict | None) -> str:
        """The text that takes the place of what was cut; `verdict` is None after an error."""
        if isinstance(self.replacement, str):
            return self.replacement
        if isinstance(self.replacement, OwnRefusal):
            return self.replacement.text_for(verdict)
        return self.replacement(verdict)
