"""The endpoint source against a real server, with the official client as the control."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from endpoint_drives import ASK, Drive, both, loopback, pulled, text
from transformers_serve import MODEL, RealServer, transformers_serve

from ada_guard.errors import ConfigError
from ada_guard.sources import Endpoint

pytestmark = [loopback]
LIMITS = {"max_tokens": 60, "temperature": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    # The marker that allows loopback takes effect with each test, this fixture comes before them.
    import pytest_socket

    pytest_socket.socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)
    with transformers_serve(tmp_path_factory.mktemp("serve") / "log") as running:
        yield running


def by_openai(server: RealServer) -> tuple[str, Any]:
    said, reason = "", None
    messages: Any = ASK
    with openai.OpenAI(base_url=server.base_url, api_key="none") as client:
        for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True, **LIMITS):
            for choice in chunk.choices:
                said += choice.delta.content or ""
                reason = choice.finish_reason or reason
    return said, reason


@both
async def test_a_real_chat_is_what_the_official_client_sees(drive: Drive, server: RealServer) -> None:
    endpoint = Endpoint(base_url=server.base_url, model=MODEL)
    stream = endpoint.open(ASK, **LIMITS)
    said = text(await pulled(drive, stream))
    await drive(endpoint.close())
    assert (said, stream.finish_reasons[0]) == by_openai(server)
    assert "kite" in said
    assert stream.usage is not None
    assert not stream.usage.estimated
    assert stream.usage.completion_tokens == 60


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time is read from /proc")
@both
async def test_a_real_server_stops_when_it_is_left(drive: Drive, server: RealServer) -> None:
    endpoint = Endpoint(base_url=server.base_url, model=MODEL)
    # A generation config without an end token: it would go on for minutes.
    stream = endpoint.open(ASK, max_tokens=4000, extra_body={"generation_config": json.dumps({"do_sample": False})})
    for _ in range(5):
        await drive(stream.pull())
    before = server.cpu_s()
    await asyncio.sleep(0.5)
    assert server.cpu_s() - before > 0.05  # it generates, read or not
    await drive(stream.close())
    await drive(endpoint.close())
    for _ in range(100):
        before = server.cpu_s()
        await asyncio.sleep(0.3)
        if server.cpu_s() - before < 0.05:
            break
    else:
        pytest.fail("the server went on generating")


@both
async def test_what_a_real_server_refuses(drive: Drive, server: RealServer) -> None:
    endpoint = Endpoint(base_url=server.base_url, model=MODEL)
    prefilled = [*ASK, {"role": "assistant", "content": "Sure, here"}]
    with pytest.raises(ConfigError, match=r"422.*prefill='reject' or 'plain'"):
        await drive(endpoint.open(prefilled, **LIMITS).start())
    completions = Endpoint(base_url=server.base_url, model=MODEL, api="completions")
    with pytest.raises(ConfigError, match="400"):
        await drive(completions.open(prompt=[1, 2, 3]).start())
    assert text(await pulled(drive, completions.open(prompt="Fold the paper", max_tokens=5)))
    await drive(completions.close())
    await drive(endpoint.close())
