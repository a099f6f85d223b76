"""Clients of sidecar servers for tests, and what their streams must look like when a check was not made."""

from __future__ import annotations

from typing import Any

import httpx
from served import (
    released,
)

from ada_guard import (
    Check,
    Done,
    Halt,
    ProbeChecker,
    Replace,
    RethinkChecker,
)
from ada_guard.checkers import CascadeChecker
from ada_guard.refusals import RefusalMatcher
from ada_guard.sidecar.client import HTTPSidecar
from ada_guard.steps import run

CHECKERS = {
    "probe": ProbeChecker(),
    "rethink": RethinkChecker(),
    "cascade": CascadeChecker(low=0.005, high=0.5),
    "own phrases": RethinkChecker(matcher=RefusalMatcher(["i'm sorry"]), lookahead_tokens=6),
}


OPENED_HERE: list[Any] = []


def client(url: str, **settings: Any) -> HTTPSidecar:
    # Nothing here speaks TLS, and reading the certificates takes longer than most of the tests.
    sidecar = HTTPSidecar(url, **{"verify": False, "api_key_env": None, "backoff_s": 0.02, **settings})
    OPENED_HERE.append(sidecar)
    return sidecar


def close_clients() -> None:
    """Closes what `client` has made."""
    for sidecar in OPENED_HERE:
        run(sidecar.close())
        if sidecar._transport._given is not None:
            sidecar._transport._given.close()
    OPENED_HERE.clear()


class Counting(httpx.HTTPTransport):
    """Counts requests by what they do; can lose what comes back."""

    def __init__(self, lose: set[int] | None = None) -> None:
        super().__init__(verify=False)
        self.counts: dict[str, int] = {}
        self.bodies: list[bytes] = []
        self._lose = lose or set()
        self._all = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        what = "delete" if request.method == "DELETE" else request.url.path.rpartition("/")[2]
        self.counts[what] = self.counts.get(what, 0) + 1
        self.bodies.append(request.read())
        self._all += 1
        response = super().handle_request(request)
        if self._all in self._lose:
            response.read()
            response.close()
            raise httpx.ReadError("lost", request=request)
        return response


def failed_closed(events: list[Any], why: str, text: str) -> None:
    unchecked = [event for event in events if isinstance(event, Check) and event.decision == "unchecked"]
    assert len(unchecked) == 1
    assert why in (unchecked[0].reason or "")
    passed = max((e.depth for e in events if isinstance(e, Check) and e.decision == "pass"), default=0)
    assert len(released(events).split()) <= passed
    assert text.startswith(released(events))
    assert [event.reason for event in events if isinstance(event, Halt)] == ["error"]
    assert any(isinstance(event, Replace) for event in events)
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.unchecked_released_tokens) == ("content_filter", 0)
