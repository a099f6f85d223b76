"""What the client of a sidecar server makes of faults: it recovers, or it fails closed and says so."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import (
    BAD,
    SAFE,
    USER,
    Served,
    Sidecar,
    apushed,
    free_port,
    loopback,
    pushed,
    released,
    served,
    shape,
    split,
)
from sidecar_clients import CHECKERS, Counting, client, close_clients, failed_closed

from ada_guard import (
    AdaGuardError,
    Check,
    CheckError,
    ConfigError,
    Done,
    Guard,
    Policy,
)
from ada_guard.sidecar.client import HTTPSidecar
from ada_guard.steps import Sleep, Steps, run

pytestmark = loopback
SECRET = "zorblewort"


@pytest.fixture(autouse=True)
def _connections_are_closed() -> Iterator[None]:
    yield
    close_clients()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as each:
        yield each


# -- what gets lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SAFE, BAD], ids=["benign", "harmful"])
def test_lost_answers_are_given_again(text: str) -> None:
    sidecar = Sidecar()
    with served(sidecar) as server:
        transport = Counting(lose={1, 4, 5, 7, 8})
        there = Guard(sidecar=client(server.url, client=httpx.Client(transport=transport)))
        parts = split(text, seed=5)
        assert shape(pushed(there, parts)) == shape(pushed(Guard(sidecar=Sidecar()), parts))
        # Nothing was applied twice: each depth was looked at once.
        checked = sidecar.followed[-1].checked
        assert checked == sorted(set(checked))


@pytest.mark.parametrize("checker", ["probe", "rethink"])
@pytest.mark.parametrize("text", [SAFE, BAD], ids=["benign", "harmful"])
def test_a_server_that_has_forgotten_the_session_is_given_it_again(checker: str, text: str) -> None:
    with served() as server:
        there, here = (Guard(sidecar=sidecar, checker=CHECKERS[checker]) for sidecar in (client(server.url), Sidecar()))
        parts = split(text, seed=6)

        def losing() -> Iterator[str]:
            for at, part in enumerate(parts):
                if at % 10 == 9:
                    server.lose_sessions()
                yield part

        assert shape(pushed(there, losing())) == shape(pushed(here, parts))  # type: ignore[arg-type]


def test_a_server_that_comes_back_with_another_model_fails_closed() -> None:
    port = free_port()
    parts = [f"{word} " for word in SAFE.split()]
    with served(port=port) as first:
        there = Guard(sidecar=client(first.url))
        session = there.session(USER)
        events = [event for part in parts[:20] for event in session.push(part)]
    with served(Sidecar(name="another"), port=port):
        for part in parts[20:]:
            events += session.push(part)
        events += session.close()
        with pytest.raises(CheckError, match="another model"):
            there.session(USER)
    failed_closed(events, "came back with another model", SAFE)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_server_that_stays_away_fails_closed(how: str) -> None:
    parts = split(SAFE, seed=8)
    with served() as server:
        there = Guard(sidecar=client(server.url, retries=1))

        def stopping() -> Iterator[str]:
            for at, part in enumerate(parts):
                if at == 30:
                    server.stop()
                yield part

        events = pushed(there, stopping()) if how == "sync" else asyncio.run(apushed(there, stopping()))  # type: ignore[arg-type]
    failed_closed(events, "the sidecar server c", SAFE)


def test_a_server_that_stays_away_under_fail_open_is_recorded_as_unchecked() -> None:
    parts = split(SAFE, seed=8)
    with served() as server:
        there = Guard(sidecar=client(server.url, retries=0), policy=Policy(on_error="release"))
        with there.session(USER) as session:
            events = [event for part in parts[:30] for event in session.push(part)]
            server.stop()
            events += [event for part in parts[30:] for event in session.push(part)]
            events += session.close()
    assert released(events) == SAFE
    assert any(event.decision == "unchecked" for event in events if isinstance(event, Check))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.finish_reason == "stop"
    assert done.unchecked_released_tokens > 0


def test_nobody_there_is_an_error_before_any_token() -> None:
    there = Guard(sidecar=client(f"http://127.0.0.1:{free_port()}", retries=1))
    with pytest.raises(CheckError, match="cannot be reached"):
        there.session(USER)


def test_closing_never_fails_and_does_not_wait() -> None:
    with served() as server:
        session = Guard(sidecar=client(server.url)).session(USER)
        session.push(SAFE)
        server.stop()
        started = time.perf_counter()
        session.abandon()
        session.abandon()
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize("text", [SAFE, BAD], ids=["benign", "harmful"])
def test_a_server_that_is_restarted_while_it_checks(text: str) -> None:
    class Restarting(Counting):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            try:
                return super().handle_request(request)
            except httpx.ReadError:
                server.lose_sessions()
                raise

    with served() as server:
        transport = Restarting(lose={3, 8, 14})
        there = Guard(sidecar=client(server.url, client=httpx.Client(transport=transport)))
        parts = split(text, seed=5)
        assert shape(pushed(there, parts)) == shape(pushed(Guard(sidecar=Sidecar()), parts))
        assert transport.counts["sessions"] >= 2


# -- what a check can say ------------------------------------------------------------------------------------------


def _waits(seconds: float) -> Any:
    def before(depth: int) -> Steps[None]:
        del depth
        yield Sleep(seconds)

    return before


def _raises(error: Exception) -> Any:
    def before(depth: int) -> Steps[None]:
        del depth
        yield from ()
        raise error

    return before


@pytest.mark.parametrize(
    ("sidecar", "client_settings", "server_settings", "why"),
    [
        (Sidecar(harm=lambda _: math.nan), {}, {}, "the probe's score is not a probability"),
        (Sidecar(harm=lambda _: 1.5), {}, {}, "the probe's score is not a probability"),
        (Sidecar(before=_waits(5)), {}, {"check_timeout_s": 0.1}, "the check timed out"),
        (Sidecar(before=_waits(5)), {"timeout_s": 0.3}, {}, "did not answer in time"),
        (Sidecar(before=_raises(RuntimeError(SECRET))), {}, {}, "RuntimeError"),
        (Sidecar(before=_raises(MemoryError(SECRET))), {}, {}, "MemoryError"),
        (Sidecar(before=_raises(CheckError("OutOfMemoryError"))), {}, {}, "OutOfMemoryError"),
    ],
    ids=["nan", "no probability", "server's limit", "client's limit", "failure", "memory", "cuda memory"],
)
def test_a_check_that_is_not_made_fails_closed(
    sidecar: Sidecar, client_settings: dict[str, Any], server_settings: dict[str, Any], why: str
) -> None:
    with served(sidecar, **server_settings) as server:
        there = Guard(sidecar=client(server.url, **client_settings))
        events = pushed(there, split(SAFE, seed=9))
        failed_closed(events, why, SAFE)
        assert SECRET not in repr(events)


def test_a_failed_check_harms_no_later_one() -> None:
    def before(depth: int) -> Steps[None]:
        yield from ()
        if depth == 10:
            raise RuntimeError

    with served(Sidecar(before=before)) as server:
        there = Guard(sidecar=client(server.url), policy=Policy(on_error="release"))
        events = pushed(there, split(SAFE, seed=9))
        decisions = {event.depth: event.decision for event in events if isinstance(event, Check)}
        assert decisions == {5: "pass", 10: "unchecked", 15: "pass", 25: "pass", 50: "pass", 60: "pass"}


def test_a_server_that_gives_back_other_text_is_not_believed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/info":
            return httpx.Response(200, json=INFO)
        if request.url.path == "/v1/sessions":
            return httpx.Response(201, json=OPENED)
        piece = {"token_id": 1, "text": "Buy this!"}
        return httpx.Response(200, json={"seq": 1, "pieces": [piece] * 5, "checks": []})

    there = Guard(sidecar=client("http://there.test", client=httpx.Client(transport=httpx.MockTransport(answer))))
    failed_closed(pushed(there, split(SAFE, seed=9)), "other text", SAFE)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"seq": 1, "pieces": [], "more": 1}', b"{" * 5000])
def test_an_answer_that_cannot_be_read_fails_closed(body: bytes) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/info":
            return httpx.Response(200, json=INFO)
        return httpx.Response(200, content=body) if "advance" in request.url.path else httpx.Response(200, json=OPENED)

    there = Guard(sidecar=client("http://there.test", client=httpx.Client(transport=httpx.MockTransport(answer))))
    failed_closed(pushed(there, split(SAFE, seed=9)), "cannot be read", SAFE)


INFO = {
    "protocol": 1,
    "version": "0",
    "model": "m",
    "identity": "i",
    "calibration": None,
    "header": None,
    "context_tokens": None,
    "max_sessions": 1,
    "max_body_bytes": 1,
    "idle_s": 1,
}
OPENED = {
    "session": "s" * 32,
    "identity": "i",
    "prompt_tokens": 0,
    "prefill_tokens": 0,
    "prefill_text": "",
}


# -- what it is told of the server ---------------------------------------------------------------------------------


def test_a_wrong_key_is_one_clear_line_without_the_key() -> None:
    with served(api_key="right") as server:
        for key in (SECRET, None):
            sidecar = client(server.url, api_key=key)
            with pytest.raises(ConfigError, match="does not take the API key") as caught:
                run(sidecar.connect())
            assert SECRET not in str(caught.value) + repr(sidecar) + repr(vars(sidecar))
            run(sidecar.close())
        there = Guard(sidecar=client(server.url, api_key="right"))
        assert released(pushed(there, [SAFE])) == SAFE


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADA_GUARD_API_KEY", "right")
    with served(api_key="right") as server:
        sidecar = HTTPSidecar(server.url, verify=False)
        run(sidecar.connect())
        run(sidecar.close())


def test_another_model_than_expected_is_an_error_before_any_token(server: Served) -> None:
    sidecar = client(server.url, expected_model="mine")
    with pytest.raises(ConfigError, match="'scripted', not 'mine'"):
        run(sidecar.connect())
    run(sidecar.close())
    sidecar = client(server.url, expected_model="scripted")
    run(sidecar.connect())
    assert sidecar.name == "scripted"
    run(sidecar.close())


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (httpx.Response(404), ConfigError, "no ada-guard sidecar server is there"),
        (httpx.Response(302, headers={"location": "http://x.test"}), ConfigError, "no ada-guard sidecar server"),
        (httpx.Response(200, json={**INFO, "protocol": 2}), ConfigError, "speaks version 2"),
        (httpx.Response(200, text="<html>"), CheckError, "cannot be read"),
        (httpx.Response(500, text=SECRET), CheckError, "answered 500"),
        (httpx.Response(503, headers={"retry-after": "0"}), CheckError, "busy or not ready"),
    ],
)
def test_what_is_no_sidecar_server(answer: httpx.Response, error: type[AdaGuardError], says: str) -> None:
    transport = httpx.MockTransport(lambda _: answer)
    sidecar = client("http://there.test", client=httpx.Client(transport=transport))
    with pytest.raises(error, match=says) as caught:
        run(sidecar.connect())
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def _raising(error: Exception, cause: Exception | None = None) -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error from cause

    return answer


@pytest.mark.parametrize(
    ("error", "cause", "kind", "says"),
    [
        (httpx.ConnectError(SECRET), None, CheckError, "cannot be reached"),
        (httpx.ConnectTimeout(SECRET), None, CheckError, "cannot be reached"),
        (httpx.ConnectError(SECRET), ssl.SSLCertVerificationError(SECRET), ConfigError, "certificate is not trusted"),
        (httpx.ReadTimeout(SECRET), None, CheckError, "did not answer in time"),
        (httpx.RemoteProtocolError(SECRET), None, CheckError, "closed the connection"),
        (httpx.PoolTimeout(SECRET), None, CheckError, "no free connection"),
        (httpx.UnsupportedProtocol(SECRET), None, CheckError, "cannot be asked"),
        (ValueError(SECRET), None, CheckError, "cannot be asked .ValueError."),
    ],
)
def test_what_goes_wrong_on_the_way(error: Exception, cause: Any, kind: type[AdaGuardError], says: str) -> None:
    transport = httpx.MockTransport(_raising(error, cause))
    with pytest.raises(kind, match=says) as caught:
        run(client("http://there.test", client=httpx.Client(transport=transport)).connect())
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "url", ["", "localhost:8008", "ftp://a", "http://", "http://u:p@a", "http://a?b", "http://a#b", "http://a b"]
)
def test_a_url_that_cannot_work(url: str) -> None:
    with pytest.raises(ConfigError):
        HTTPSidecar(url)


def test_settings_that_cannot_work() -> None:
    for settings_ in ({"timeout_s": 0}, {"connect_s": 0}, {"retries": -1}, {"backoff_s": -1}, {"api_key": "a\nb"}):
        with pytest.raises(ConfigError):
            HTTPSidecar("http://a", **settings_)


def test_conversations_that_json_cannot_express(server: Served) -> None:
    there = Guard(sidecar=client(server.url))
    for messages, more in (
        (USER, {"tools": [print]}),
        (USER, {"template_kwargs": {"x": object()}}),
        ([{"role": "user", "content": "\ud83e" + SECRET}], {}),
    ):
        with pytest.raises(ConfigError) as caught:
            there.session(messages, **more)
        assert SECRET not in str(caught.value)
        assert caught.value.__context__ is None
