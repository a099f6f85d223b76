"""What a callback handler counts of guarded streams. Knows no LangChain; holds no text."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ada_guard.errors import MissingExtraError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["TOLD_ONCE", "GuardCounts", "Tally"]

TOLD_ONCE = "ada_guard_told_once"
"""Stands in the metadata of events whose stream ends in no message or error of a model."""

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_REMEMBERED_CUTS = 1024
_TOKENS = {
    "generated_tokens": "generated",
    "released_tokens": "released",
    "unchecked_released_tokens": "unchecked_released",
}
_ALL = ("halts", "streams", *_TOKENS)
_KEYS: Mapping[str, frozenset[str]] = {
    "check": frozenset({"decision", "checker", "elapsed_ms"}),
    "halt": frozenset({"reason", "depth"}),
    "done": frozenset(_TOKENS),
}
"""An event's name -> what is counted of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardCounts:
    """What guarded streams came to so far. Immutable.

    Attributes:
        checks: (decision, checker) -> how many; a decision is ``"pass"``, ``"flag"`` or ``"unchecked"``.
        halts: Streams that were cut.
        streams: Streams that have ended, cut or not. One that its consumer left early is in none of these numbers but
            `checks`.
        generated_tokens: As in `ada_guard.Done`, all streams together.
        released_tokens: Likewise.
        unchecked_released_tokens: Likewise.
        check_ms: Wall time of the checks in milliseconds.
    """

    checks: Mapping[tuple[str, str], int]
    halts: int
    streams: int
    generated_tokens: int
    released_tokens: int
    unchecked_released_tokens: int
    check_ms: float

    @property
    def flags(self) -> int:
        """Checks that flagged."""
        return self._decided("flag")

    @property
    def unchecked(self) -> int:
        """Checks that could not be made, or settled nothing."""
        return self._decided("unchecked")

    def _decided(self, wanted: str) -> int:
        return sum(count for (decision, _), count in self.checks.items() if decision == wanted)


class Tally:
    """Counts events, for many streams and threads at once.

    Args:
        registry: Where Prometheus metrics go too; True is prometheus-client's own, False none.

    Raises:
        MissingExtraError: Metrics were asked for and prometheus-client is not installed.
    """

    def __init__(self, registry: bool | CollectorRegistry = False) -> None:
        self._lock = threading.Lock()
        self._checks: Counter[tuple[str, str]] = Counter()
        self._numbers: Counter[str] = Counter()
        self._check_ms = 0.0
        # Cuts that an event has told of, and whose message or error has not come yet.
        self._told: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED_CUTS)
        self._metrics = _metrics(registry)

    def snapshot(self) -> GuardCounts:
        """The numbers of now."""
        with self._lock:
            return GuardCounts(
                checks=MappingProxyType(dict(self._checks)),
                check_ms=self._check_ms,
                **{n: self._numbers[n] for n in _ALL},
            )

    def event(self, data: Mapping[str, Any], *, told: bool) -> bool:
        """Counts an event, as `langchain_ada_guard.report.event_data` gives it.

        Args:
            data: The event.
            told: Whether a guarded model told of it, so that its message or error will tell of a cut again.

        Returns:
            Whether it is one of these events at all.
        """
        if not _is_event(data):
            return False
        with self._lock:
            if data["event"] == "check":
                self._check(data["decision"], data["checker"], data["elapsed_ms"])
            elif data["event"] == "halt":
                self._halt(data["reason"])
                if told:
                    self._told.append({"verdict": _verdict(data["reason"]), "depth": data["depth"]})
            elif data["event"] == "done":
                self._done(data)
        return True

    def cut(self, found: Mapping[str, Any]) -> bool:
        """Counts a cut that a message or an error tells of, if no event has told of it.

        Args:
            found: ``verdict`` (``"flag"`` or ``"unchecked"``), and as far as known ``depth`` and ``checker``.

        Returns:
            Whether it was new.
        """
        with self._lock:
            for known in self._told:
                if all(found.get(name, value) == value for name, value in known.items()):
                    self._told.remove(known)
                    return False
            if "checker" in found:
                self._check(found["verdict"], found["checker"], None)
            self._halt("flag" if found["verdict"] == "flag" else "error")
            self._done({})
            return True

    def _check(self, decision: str, checker: str, elapsed_ms: float | None) -> None:
        self._checks[decision, checker] += 1
        self._check_ms += elapsed_ms or 0.0
        if self._metrics is not None:
            self._metrics.checks.labels(decision, checker).inc()
            if elapsed_ms is not None:
                self._metrics.seconds.observe(elapsed_ms / 1000.0)

    def _halt(self, reason: str) -> None:
        self._numbers["halts"] += 1
        if self._metrics is not None:
            self._metrics.cuts.labels(reason).inc()

    def _done(self, data: Mapping[str, Any]) -> None:
        self._numbers["streams"] += 1
        for name in _TOKENS:
            self._numbers[name] += data.get(name, 0)
        if self._metrics is not None:
            self._metrics.streams.inc()
            for name, label in _TOKENS.items():
                self._metrics.tokens.labels(label).inc(data.get(name, 0))


def _is_event(data: object) -> bool:
    """Whether it is what `langchain_ada_guard.report.event_data` gives. An application may use our name too."""
    if not isinstance(data, Mapping) or not isinstance(data.get("event"), str):
        return False
    keys = _KEYS.get(data["event"])
    return keys is not None and keys <= data.keys()


def _verdict(reason: str) -> str:
    """A halt's reason in the word that a message's metadata have for it."""
    return "flag" if reason == "flag" else "unchecked"


class _Metrics:
    """Prometheus metrics. Their labels are words of ours and names of checkers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter as Metric
        from prometheus_client import Histogram

        self.checks = Metric(
            "ada_guard_langchain_checks", "Checks by decision and checker", ["decision", "checker"], registry=registry
        )
        self.seconds = Histogram(
            "ada_guard_langchain_check_seconds", "Time of a check", buckets=_SECONDS, registry=registry
        )
        self.cuts = Metric("ada_guard_langchain_cuts", "Streams cut, by reason", ["reason"], registry=registry)
        self.streams = Metric("ada_guard_langchain_streams", "Streams that have ended", registry=registry)
        self.tokens = Metric("ada_guard_langchain_tokens", "Tokens of ended streams", ["kind"], registry=registry)


_by_registry: WeakKeyDictionary[CollectorRegistry, _Metrics] = WeakKeyDictionary()
"""A registry takes each metric once, while LangChain applications make a handler for every request."""
_making = threading.Lock()


def _metrics(registry: bool | CollectorRegistry) -> _Metrics | None:
    if registry is False:
        return None
    try:
        from prometheus_client import REGISTRY
    except ImportError as error:
        raise MissingExtraError("Prometheus metrics", "serve") from error
    wanted = REGISTRY if registry is True else registry
    with _making:
        if wanted not in _by_registry:
            _by_registry[wanted] = _Metrics(wanted)
        return _by_registry[wanted]
