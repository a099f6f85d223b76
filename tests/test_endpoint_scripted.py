"""The scripted endpoint itself, as an application's tests use it."""

from __future__ import annotations

import httpx
import pytest
from endpoint_drives import ASK, loopback

from ada_guard.testing_endpoint import Asked, Chunk, Repeat, Reply, ScriptedEndpoint

pytestmark = [loopback]
BODY = {"model": "m", "messages": ASK, "stream": True}


def test_replies_come_in_order_and_the_last_one_stays() -> None:
    script = ScriptedEndpoint(Reply(status=429, headers={"Retry-After": "1"}), "a b")
    with script.serve() as url:
        answers = [httpx.post(f"{url}/chat/completions", json=BODY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 200, 200]
    assert answers[0].headers["retry-after"] == "1"
    assert answers[1].text == answers[2].text
    assert answers[1].text.endswith('"finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
    assert [asked.generated for asked in script.asked] == [0, 2, 2]
    assert not any(asked.gone for asked in script.asked)


def test_a_reply_can_depend_on_what_was_asked() -> None:
    def reply(asked: Asked) -> Reply | str:
        return Reply(json={"data": []}) if asked.path == "/v1/models" else str(asked.body["prompt"])

    with ScriptedEndpoint(reply).serve() as url:
        assert httpx.get(f"{url}/models").json() == {"data": []}
        assert '"text": "echo"' in httpx.post(f"{url}/completions", json={"prompt": "echo"}).text


async def test_without_a_socket() -> None:
    script = ScriptedEndpoint(Reply(items=(Chunk(delta={"refusal": "no"}), Repeat(("x",), times=2))))
    async with httpx.AsyncClient(transport=script.transport()) as client:
        answer = await client.post("http://scripted/v1/chat/completions", json=BODY)
    assert answer.text.count("data: ") == 6  # role, refusal, x, x, end, [DONE]
    assert script.asked[0].generated == 3


def test_a_script_needs_a_reply() -> None:
    with pytest.raises(ValueError, match="needs a reply"):
        ScriptedEndpoint()


def test_nothing_of_a_reply_or_a_request_is_in_its_representation() -> None:
    asked = Asked(path="/", headers={"authorization": "UNSAFE"}, body={"messages": "UNSAFE"})
    reply = Reply(items=("UNSAFE", Chunk(delta={"content": "UNSAFE"})), json={"error": "UNSAFE"})
    assert "UNSAFE" not in repr(asked) + repr(reply) + repr(Chunk(delta={"content": "UNSAFE"}))
