"""Bounds and time limits of a sidecar server. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ada_guard.errors import ConfigError

__all__ = ["ServeSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What a server takes and how long it waits.

    Attributes:
        max_sessions: Sessions that may be open at once, one-shot checks included; one more is answered 503.
        max_waiting: Requests that may wait for the model at once; one more is answered 503.
        max_body_bytes: Longest request.
        idle_s: After how many seconds without a request a session is forgotten. Its client makes it again if need be.
        check_timeout_s: Longest time a check may wait and run, in seconds; then it counts as not made.
        body_timeout_s: How long a client may take to send its request, in seconds.
        ready_timeout_s: How long the check behind ``/readyz`` may take, in seconds.
        ready_cache_s: How long its outcome holds, in seconds: whoever asks often costs no more.
        retry_after_s: What a client that found no room is told to wait, in seconds.
    """

    max_sessions: int = 1024
    max_waiting: int = 1024
    max_body_bytes: int = 8 << 20
    idle_s: float = 300.0
    check_timeout_s: float = 60.0
    body_timeout_s: float = 30.0
    ready_timeout_s: float = 10.0
    ready_cache_s: float = 2.0
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0 and field.name != "ready_cache_s":
                raise ConfigError(f"{field.name} must be more than 0")
