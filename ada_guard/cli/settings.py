"""What the options of ``ada-guard run`` mean: a checker, a policy, generation settings. Torch-free; reads no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ada_guard.checkers import CascadeChecker, ProbeChecker, RethinkChecker
from ada_guard.checking import Checker
from ada_guard.cli.options import CheckName
from ada_guard.cli.view import note
from ada_guard.errors import ConfigError
from ada_guard.policy import (
    DEFAULT_REPLACEMENT,
    SPARSEST_TOKENS,
    AutoSchedule,
    OnError,
    OnFlag,
    OwnRefusal,
    Policy,
    ReleaseMode,
    Schedule,
)

__all__ = ["CheckOptions", "generation_settings", "note_schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """The options that make a checker and a policy, as given. Each is described at its option.

    Attributes:
        has_probe: Whether what judges has a probe; None where only a server can tell.
    """

    check: CheckName | None
    has_probe: bool | None
    interval: int | None
    schedule: str | None
    threshold: float | None
    low: float | None
    consecutive: int
    check_prompt: bool
    release: ReleaseMode
    window_tokens: int
    on_flag: OnFlag
    on_error: OnError
    replacement: str | None
    own_refusal: bool

    @property
    def lacks_probe(self) -> bool:
        """Whether rethink stands in because there is no probe: something to be said."""
        return self.has_probe is False and self.check in (None, "cascade")

    def checker(self) -> Checker | None:
        """Who decides; None: the probe if the server that judges has one, else rethink.

        Raises:
            ConfigError: A threshold without a probe, or a probe check without one.
        """
        if self.has_probe is None and self.check is None and self.threshold is None and self.low is None:
            return None
        check = self.check or "probe"
        if self.lacks_probe:
            check = "rethink"
        if check == "rethink" and (self.threshold is not None or self.low is not None):
            raise ConfigError("--threshold and --low belong to a probe: rethink has none")
        if self.low is not None and check != "cascade":
            raise ConfigError("--low belongs to --check cascade")
        if self.has_probe is False and check == "probe":
            raise ConfigError("--check probe needs --probe FILE; rethink needs nothing")
        if check == "rethink":
            return RethinkChecker()
        if check == "cascade":
            return CascadeChecker(low=self.low, high=self.threshold)
        return ProbeChecker(threshold=self.threshold)

    def policy(self) -> Policy:
        """When to check and what to do then.

        Raises:
            ConfigError: Options that contradict each other.
        """
        if self.interval is not None and self.schedule is not None:
            raise ConfigError("--interval and --schedule exclude each other")
        if self.replacement is not None and self.own_refusal:
            raise ConfigError("--replacement and --own-refusal exclude each other")
        schedule = Schedule.parse(self.schedule) if self.schedule is not None else Schedule()
        text = DEFAULT_REPLACEMENT if self.replacement is None else self.replacement
        return Policy(
            schedule=schedule if self.interval is None else Schedule.every(self.interval),
            release=self.release,
            window_tokens=self.window_tokens,
            consecutive=self.consecutive,
            on_flag=self.on_flag,
            on_error=self.on_error,
            check_prompt=self.check_prompt,
            replacement=OwnRefusal() if self.own_refusal else text,
        )


def note_schedule(asked: Policy, used: Policy) -> None:
    """Says what a guard has made of an automatic schedule; nothing of one that was given.

    Args:
        asked: The policy of the options.
        used: That of the guard.
    """
    if not isinstance(asked.schedule, AutoSchedule) or isinstance(used.schedule, AutoSchedule):
        return
    sparsest = used.schedule.interval_tokens == SPARSEST_TOKENS
    doubt = ", the sparsest that is chosen: checks may take more than that" if sparsest else ""
    note(f"schedule {asked.schedule.spelling} is {used.schedule.spelling} on this model and machine{doubt}")


def generation_settings(
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    stop: list[str] | None,
    seed: int | None,
    endpoint: bool = False,
) -> dict[str, Any]:
    """The keyword arguments of `Guard.stream`; what was not given stays with the model's own configuration.

    Args:
        max_new_tokens: And the others: as given.
        temperature: As given.
        top_p: As given.
        top_k: As given.
        stop: As given.
        seed: As given.
        endpoint: They are the fields of a request to an endpoint.

    Raises:
        ConfigError: Settings of sampling for a greedy run.
    """
    if temperature == 0 and (top_p is not None or top_k is not None):
        raise ConfigError("--temperature 0 is greedy: --top-p and --top-k need a higher one")
    given: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "stop": stop or None,
        "seed": seed,
    }
    if endpoint:
        given["max_tokens"] = given.pop("max_new_tokens")
    settings = {name: value for name, value in given.items() if value is not None}
    if endpoint:
        return settings
    if temperature is None and (top_p is not None or top_k is not None):
        settings["do_sample"] = True
    return settings
