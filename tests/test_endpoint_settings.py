"""Settings of an endpoint that cannot work, or that must not be shown."""

from __future__ import annotations

from typing import Any

import pytest
from endpoint_drives import ASK, KEY, SECRET, Drive, both, loopback

from ada_guard.errors import ConfigError
from ada_guard.sources import Endpoint, Timeouts

pytestmark = [loopback]


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "127.0.0.1:8000/v1",
        "ftp://host/v1",
        "http:///v1",
        "http://host:99999/v1",
        "http://me:UNSAFE@host/v1",
        "http://UNSAFE@host/v1",
        "http://host/v1?key=UNSAFE",
        "http://host/v1#UNSAFE",
        "http://host/v1\r\nUNSAFE: 1",
        "http://[host/v1",
    ],
)
def test_a_base_url_that_is_none_is_refused_without_showing_it(base_url: str) -> None:
    with pytest.raises(ConfigError, match="base_url must") as caught:
        Endpoint(base_url=base_url, model="m")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("key", ["line\nbreak", "schlüssel", " blank"])
def test_a_key_that_no_header_can_hold_is_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="authorization header") as caught:
        Endpoint(base_url="http://host/v1", model="m", headers={"Authorization": key})
    assert key not in str(caught.value)


def test_the_key_is_in_no_representation() -> None:
    proxy = f"http://user:{KEY}@proxy:1"
    endpoint = Endpoint(base_url="http://host/v1", model="m", api_key=KEY, headers={"x": KEY}, proxy=proxy)
    stream = endpoint.open([{"role": "user", "content": SECRET}])
    shown = repr(endpoint) + repr(stream) + repr(vars(stream))
    assert KEY not in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"messages": []},
        {"messages": ASK, "prompt": "x"},
        {"messages": ASK, "stream": False},
        {"messages": ASK, "extra_body": {"messages": ASK}},
        {"messages": ASK, "n": 0},
        {"messages": ASK, "n": True},
        {"messages": ASK, "temperature": float("nan")},
        {"messages": ASK, "stop": object()},
    ],
)
def test_a_chat_that_cannot_be_asked_for(request_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Endpoint(base_url="http://host/v1", model="m").open(**request_)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"prompt": ""},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
        {"prompt": "x", "echo": True},
        {"messages": ASK},
    ],
)
def test_a_completion_that_cannot_be_asked_for(request_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Endpoint(base_url="http://host/v1", model="m", api="completions").open(**request_)


@pytest.mark.parametrize(
    "settings", [{"model": ""}, {"api": "embeddings"}, {"prefill": "guess"}, {"retries": -1}, {"max_event_bytes": 0}]
)
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Endpoint(**{"base_url": "http://host/v1", "model": "m", **settings})


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_that_is_none(seconds: float) -> None:
    with pytest.raises(ConfigError):
        Timeouts(read_s=seconds)


@both
async def test_certificates_that_cannot_be_read(drive: Drive) -> None:
    endpoint = Endpoint(base_url="https://127.0.0.1:1/v1", model="m", verify="no/such/file")
    with pytest.raises(ConfigError, match="verify names a file"):
        await drive(endpoint.open(ASK).start())
