"""What can go wrong before the first byte of an answer: each is one clear error without text, and some are retried."""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from endpoint_drives import ASK, KEY, SECRET, Drive, both, fails, loopback, pulled, served, text

from ada_guard.errors import AdaGuardError, ConfigError, GenerationError
from ada_guard.sources import Endpoint, Timeouts
from ada_guard.testing_endpoint import Reply

pytestmark = [loopback]
SECRET_ERROR = {"error": {"message": SECRET, "type": "server_error", "code": 500}}


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@both
async def test_connection_refused(drive: Drive) -> None:
    endpoint = Endpoint(base_url=f"http://127.0.0.1:{closed_port()}/v1", model="m", api_key=KEY, backoff_s=0.01)
    _, said = await fails(drive, endpoint.open(ASK), GenerationError)
    assert said == "the endpoint cannot be reached: is it up, and base_url right?"
    await drive(endpoint.close())


@both
async def test_a_name_that_does_not_resolve(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "nowhere.invalid: UNSAFE")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    endpoint = Endpoint(base_url="http://nowhere.invalid/v1", model="m", api_key=KEY)
    _, said = await fails(drive, endpoint.open(ASK), GenerationError)
    assert said == "the endpoint's host name cannot be resolved: check base_url and the DNS"
    await drive(endpoint.close())


STATUSES: dict[str, tuple[int, Any, type[AdaGuardError], str]] = {
    "401": (
        401,
        {"error": {"message": KEY, "code": "invalid_api_key"}},
        ConfigError,
        r"401 \(invalid_api_key\): .*key",
    ),
    "403": (403, b"<html>UNSAFE</html>", ConfigError, "403: .*key"),
    "404 model": (
        404,
        {"error": {"message": SECRET, "param": "model"}},
        ConfigError,
        "404: .*does not serve this model",
    ),
    "404 path": (404, {"detail": "Not Found"}, ConfigError, "404: check base_url"),
    "400": (400, {"error": {"message": SECRET, "type": "BadRequestError"}}, ConfigError, r"400 \(BadRequestError\)"),
    "422": (422, {"detail": SECRET}, ConfigError, "422: .*settings"),
    "302": (302, {}, ConfigError, "302, a redirect"),
    "418": (418, {}, ConfigError, "418"),
    "429": (429, {"error": {"message": SECRET, "type": f"about {SECRET}"}}, GenerationError, "429: too many requests"),
    "500": (500, {"error": SECRET}, GenerationError, "500: its own log"),
    "502": (502, b"UNSAFE", GenerationError, "502: it cannot answer now"),
    "501": (501, {}, GenerationError, "501: its own log"),
}


@both
@pytest.mark.parametrize(("status", "error", "kind", "said"), STATUSES.values(), ids=STATUSES.keys())
async def test_a_status(drive: Drive, status: int, error: Any, kind: type[AdaGuardError], said: str) -> None:
    headers = {"location": "http://127.0.0.1:1/"} if status == 302 else {}
    reply = Reply(status=status, json=error, headers=headers)
    async with served(drive, reply, api_key=KEY, retries=0) as (endpoint, asked):
        deltas, message = await fails(drive, endpoint.open([*ASK, {"role": "user", "content": SECRET}]), kind)
        assert deltas == []
        assert re.search(said, message)
        assert len(asked) == (2 if status in {400, 422} else 1)  # a form that is refused is tried without the count


@both
async def test_a_refused_prefill_says_what_to_set(drive: Drive) -> None:
    async with served(drive, Reply(status=422, json={})) as (endpoint, _):
        _, said = await fails(drive, endpoint.open([*ASK, {"role": "assistant", "content": SECRET}]), ConfigError)
        assert "prefill='reject' or 'plain'" in said


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@both
@pytest.mark.parametrize("wait", ["0", "past", "soon", None], ids=["seconds", "date", "no date", "none"])
async def test_too_many_requests_are_tried_again(drive: Drive, wait: str | None) -> None:
    headers = {} if wait is None else {"retry-after": in_seconds(-5) if wait == "past" else wait}
    busy = Reply(status=429, json={}, headers=headers)
    async with served(drive, busy, busy, "a b", retries=2, backoff_s=0.01) as (endpoint, asked):
        assert text(await pulled(drive, endpoint.open(ASK))) == "a b"
        assert len(asked) == 3


@both
@pytest.mark.parametrize("wait", ["3600", "date"])
async def test_a_server_that_asks_for_a_long_wait_is_not_waited_for(drive: Drive, wait: str) -> None:
    busy = Reply(status=429, json={}, headers={"retry-after": in_seconds(3600) if wait == "date" else wait})
    async with served(drive, busy) as (endpoint, asked):
        _, said = await fails(drive, endpoint.open(ASK), GenerationError)
        assert "too many requests" in said
        assert len(asked) == 1


@both
async def test_retries_come_to_an_end(drive: Drive) -> None:
    async with served(drive, Reply(status=503, json=SECRET_ERROR), retries=2, backoff_s=0.01) as (endpoint, asked):
        _, said = await fails(drive, endpoint.open(ASK), GenerationError)
        assert said.startswith("the endpoint answered 503 (server_error)")
        assert len(asked) == 3


RAISED: dict[str, tuple[Exception, Exception | None, type[AdaGuardError], str]] = {
    "certificate": (httpx.ConnectError(SECRET), ssl.SSLCertVerificationError(1, SECRET), ConfigError, "not trusted"),
    "no TLS": (httpx.ConnectError(SECRET), ssl.SSLError(1, SECRET), ConfigError, "http or https in base_url"),
    "proxy": (httpx.ProxyError(SECRET), None, GenerationError, "check proxy"),
    "connect timeout": (httpx.ConnectTimeout(SECRET), None, GenerationError, "cannot be reached in time"),
    "pool": (httpx.PoolTimeout(SECRET), None, GenerationError, "no free connection"),
    "header": (httpx.LocalProtocolError(SECRET), None, ConfigError, "check base_url and headers"),
    "address": (httpx.UnsupportedProtocol(SECRET), None, ConfigError, "check base_url and headers"),
    "anything": (LookupError(SECRET), None, GenerationError, "cannot be asked (LookupError)"),
}


@both
@pytest.mark.parametrize(("error", "cause", "kind", "said"), RAISED.values(), ids=RAISED.keys())
async def test_an_error_of_the_client(
    drive: Drive, error: Exception, cause: Exception | None, kind: type[AdaGuardError], said: str
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error from cause

    transport = httpx.MockTransport(fail)
    with httpx.Client(transport=transport) as client:
        async with httpx.AsyncClient(transport=transport) as async_client:
            clients: dict[str, Any] = {"client": client, "async_client": async_client}
            endpoint = Endpoint(base_url="https://host/v1", model="m", backoff_s=0.01, **clients)
            assert said in (await fails(drive, endpoint.open(ASK), kind))[1]


@both
async def test_a_server_that_says_nothing(drive: Drive) -> None:
    limits = Timeouts(connect_s=5, read_s=0.5, total_s=None)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = Endpoint(base_url=f"http://127.0.0.1:{mute.getsockname()[1]}/v1", model="m", timeouts=limits)
        _, said = await fails(drive, endpoint.open(ASK), GenerationError)
        assert "did not begin to answer" in said
        await drive(endpoint.close())


@both
@pytest.mark.parametrize("kind", ["application/json", "text/html; charset=utf-8"])
async def test_an_answer_that_is_no_stream(drive: Drive, kind: str) -> None:
    reply = Reply(items=(b'{"choices": [{"message": {"content": "UNSAFE"}}]}',), content_type=kind)
    async with served(drive, reply) as (endpoint, _):
        assert "did not answer with a stream" in (await fails(drive, endpoint.open(ASK), GenerationError))[1]
