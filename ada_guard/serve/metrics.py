"""Figures of a server for Prometheus. Their labels are words of ours: no text, no session, no path of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ada_guard.sidecar.stats import PoolStats

__all__ = ["Metrics", "Outcome"]

Outcome: TypeAlias = Literal["answered", "failed", "timeout", "cancelled"]
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_GAUGES = {
    "waiting": ("ada_guard_checks_waiting", "Checks in the model's queue"),
    "kv_bytes": ("ada_guard_kv_bytes", "Memory of keys and values in use"),
    "kv_limit_bytes": ("ada_guard_kv_limit_bytes", "Its bound"),
    "retained": ("ada_guard_retained_conversations", "Conversations kept for their next turn"),
}
_COUNTERS = {
    "evicted": ("ada_guard_evictions", "Sessions whose memory was taken for others"),
    "passes": ("ada_guard_passes", "Forward passes"),
    "rows": ("ada_guard_rows", "Rows fed in them"),
    "reused_tokens": ("ada_guard_reused_tokens", "Prompt tokens that did not have to be read again"),
}


class Metrics:
    """The figures of one server, in a registry of its own.

    Args:
        sessions: Says how many sessions are open.
        stats: Says how the pool is, where there is one.
    """

    def __init__(self, sessions: Callable[[], int], stats: Callable[[], PoolStats] | None) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Now(sessions, stats))
        self._checks = Counter("ada_guard_checks", "Checks by outcome", ["outcome"], registry=self.registry)
        self._seconds = Histogram(
            "ada_guard_check_seconds", "Time of a check, waiting included", buckets=_SECONDS, registry=self.registry
        )
        self._expired = Counter("ada_guard_sessions_expired", "Sessions forgotten for idleness", registry=self.registry)
        self._responses = Counter(
            "ada_guard_http_responses", "Answers by route and status", ["route", "status"], registry=self.registry
        )

    def checked(self, outcome: Outcome, seconds: float) -> None:
        """Notes a check."""
        self._checks.labels(outcome).inc()
        self._seconds.observe(seconds)

    def expired(self) -> None:
        """Notes a session that was forgotten."""
        self._expired.inc()

    def responded(self, route: str, status: int) -> None:
        """Notes an answer."""
        self._responses.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is looked at when it is asked for."""

    def __init__(self, sessions: Callable[[], int], stats: Callable[[], PoolStats] | None) -> None:
        self._sessions, self._stats = sessions, stats

    def collect(self) -> Iterator[Metric]:
        """The figures of now."""
        yield GaugeMetricFamily("ada_guard_sessions", "Sessions that are open", value=self._sessions())
        if self._stats is None:
            return
        stats = self._stats()
        for name, (metric, text) in _GAUGES.items():
            if (value := getattr(stats, name)) is not None:
                yield GaugeMetricFamily(metric, text, value=value)
        for name, (metric, text) in _COUNTERS.items():
            yield CounterMetricFamily(metric, text, value=getattr(stats, name))
        yield GaugeMetricFamily("ada_guard_packed", "Whether streams share passes", value=int(stats.packed))
