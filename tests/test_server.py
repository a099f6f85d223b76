"""The sidecar server without a socket: its routes, its bounds, its faults."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from served import BAD, SAFE, USER, Sidecar, in_process, loopback, served

from ada_guard.errors import CheckError, ConfigError
from ada_guard.local import LocalModel
from ada_guard.serve import ServeSettings
from ada_guard.sidecar import questions, wire
from ada_guard.sidecar.companion import LocalSidecar
from ada_guard.steps import Sleep, Steps
from ada_guard.testing import UNSAFE

SECRET = "zorblewort"
OPEN = {"messages": USER, "asks": ["probe"]}


def said(*words: str) -> list[dict[str, Any]]:
    return [{"fragments": [{"text": " ".join(words) + " "}]}]


async def opened(client: httpx.AsyncClient, **more: Any) -> str:
    response = await client.post("/v1/sessions", json={**OPEN, **more})
    assert response.status_code == 200, response.text
    return f"/v1/sessions/{response.json()['session']}"


def order(depth: int | None, kind: str = "probe") -> dict[str, Any]:
    return {"depth": depth, "asks": [{"kind": kind} if kind == "probe" else {"kind": kind, "max_tokens": 5}]}


def fault(response: httpx.Response) -> tuple[int, str]:
    assert SECRET not in response.text
    return response.status_code, response.json()["error"]["code"]


# -- sessions ------------------------------------------------------------------------------------------------------


async def test_a_session_from_beginning_to_end() -> None:
    async with in_process() as (client, service):
        session = await opened(client)
        answer = (
            await client.post(
                f"{session}/advance",
                json={"seq": 1, "parts": said("one", "two", "three"), "checks": [order(2), order(9)]},
            )
        ).json()
        assert answer == {
            "seq": 1,
            "pieces": [
                {"token_id": 0, "text": "one"},
                {"token_id": 1, "text": " two"},
                {"token_id": 2, "text": " three"},
            ],
            "checks": [{"depth": 2, "answers": [{"kind": "probe", "harm_probability": 0.01}]}],
        }
        end = {"seq": 2, "parts": [{"fragments": [{"text": "four"}]}], "final": True, "checks": [order(None)]}
        answer = (await client.post(f"{session}/advance", json=end)).json()
        assert answer["pieces"] == [{"token_id": 3, "text": " four"}]
        assert [check["depth"] for check in answer["checks"]] == [4]
        assert len(service.sessions) == 1
        assert (await client.delete(session)).status_code == 204
        assert (await client.delete(session)).status_code == 204
        assert len(service.sessions) == 0


async def test_a_lookahead_says_its_text_after_each_token() -> None:
    async with in_process(Sidecar(lookahead=lambda _: "I am sorry to say")) as (client, _):
        session = await opened(client, asks=["lookahead"])
        request = {"seq": 1, "parts": said("one", "two"), "checks": [order(1, "lookahead")]}
        answer = (await client.post(f"{session}/advance", json=request)).json()
        assert answer["checks"][0]["answers"] == [
            {
                "kind": "lookahead",
                "steps": [[0, "I"], [1, " am"], [4, " sorry"], [10, " to"], [13, " say"]],
                "ended": True,
            }
        ]


async def test_a_repeated_request_is_answered_again_and_not_applied_again() -> None:
    sidecar = Sidecar()
    async with in_process(sidecar) as (client, _):
        session = await opened(client)
        request = {"seq": 1, "parts": said("one", "two"), "checks": [order(1)]}
        answers = [(await client.post(f"{session}/advance", json=request)).json() for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        assert sidecar.followed[0].checked == [1]
        assert len(sidecar.followed[0].pieces) == 2


async def test_requests_out_of_step_are_refused() -> None:
    async with in_process() as (client, _):
        session = await opened(client)
        assert fault(await client.post(f"{session}/advance", json={"seq": 2})) == (409, "out_of_step")
        await client.post(f"{session}/advance", json={"seq": 1, "parts": said("a"), "final": True})
        late = {"seq": 2, "parts": said("b")}
        assert fault(await client.post(f"{session}/advance", json=late)) == (409, "out_of_step")
        assert (await client.post(f"{session}/advance", json={"seq": 2, "checks": [order(1)]})).status_code == 200


async def test_an_unknown_session() -> None:
    async with in_process() as (client, _):
        assert fault(await client.post("/v1/sessions/nobody/advance", json={"seq": 1})) == (404, "unknown_session")
        assert fault(await client.get("/v1/nothing")) == (404, "not_found")
        assert fault(await client.get("/v1/sessions")) == (405, "method_not_allowed")


async def test_two_requests_of_one_session_do_not_mix() -> None:
    def before(depth: int) -> Steps[None]:
        del depth
        yield Sleep(0.05)

    async with in_process(Sidecar(before=before)) as (client, _):
        session = await opened(client)
        first = {"seq": 1, "parts": said("one", "two"), "checks": [order(1), order(2)]}
        second = {"seq": 2, "parts": said("three"), "checks": [order(3)]}
        answers = await asyncio.gather(
            client.post(f"{session}/advance", json=first), client.post(f"{session}/advance", json=second)
        )
        assert [[check["depth"] for check in answer.json()["checks"]] for answer in answers] == [[1, 2], [3]]


async def test_sessions_do_not_see_each_other() -> None:
    async with in_process() as (client, _):
        sessions = [await opened(client) for _ in range(4)]
        assert len(set(sessions)) == 4
        for seq, word in enumerate(["one", UNSAFE, "three"], start=1):
            for at, session in enumerate(sessions):
                text = word if at == 2 else "fine"
                request = {"seq": seq, "parts": said(text), "checks": [order(seq)]}
                answer = (await client.post(f"{session}/advance", json=request)).json()
                harm = answer["checks"][0]["answers"][0]["harm_probability"]
                assert harm == (0.99 if at == 2 and seq > 1 else 0.01)


async def test_idle_sessions_are_forgotten() -> None:
    sidecar = Sidecar()
    async with in_process(sidecar, idle_s=0.2) as (client, service):
        session, busy = await opened(client), await opened(client)
        for seq in range(1, 12):
            await asyncio.sleep(0.05)
            assert (await client.post(f"{busy}/advance", json={"seq": seq})).status_code == 200
        assert fault(await client.post(f"{session}/advance", json={"seq": 1})) == (404, "unknown_session")
        assert sidecar.followed[0].closed
        assert b"ada_guard_sessions_expired_total 1.0" in service.metrics.text()


async def test_the_end_of_the_server_closes_everything() -> None:
    sidecar = Sidecar()
    async with in_process(sidecar) as (client, _):
        await opened(client)
    assert sidecar.followed[0].closed


# -- bounds --------------------------------------------------------------------------------------------------------


async def test_as_many_sessions_as_there_may_be() -> None:
    async with in_process(max_sessions=2) as (client, _):
        session = await opened(client)
        await opened(client)
        full = await client.post("/v1/sessions", json=OPEN)
        assert fault(full) == (503, "sessions_full")
        assert full.headers["retry-after"] == "1"
        check = {"messages": USER, "response": "fine"}
        assert fault(await client.post("/v1/check", json=check)) == (503, "sessions_full")
        assert (await client.get("/readyz")).status_code == 200  # a server that is full still works
        await client.delete(session)
        await opened(client)


async def test_as_many_requests_as_may_wait() -> None:
    def before(depth: int) -> Steps[None]:
        del depth
        yield Sleep(0.3)

    async with in_process(Sidecar(before=before), max_waiting=1) as (client, _):
        sessions = [await opened(client) for _ in range(2)]
        request = {"seq": 1, "parts": said("one", "two"), "checks": [order(1)]}
        answers = await asyncio.gather(*(client.post(f"{each}/advance", json=request) for each in sessions))
        assert sorted(answer.status_code for answer in answers) == [200, 503]
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert fault(refused) == (503, "overloaded")


async def test_a_long_body_is_refused_however_it_comes() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with in_process(max_body_bytes=1000) as (client, _):
        assert fault(await client.post("/v1/sessions", content=b" " * 1001)) == (413, "too_large")
        assert fault(await client.post("/v1/sessions", content=chunks())) == (413, "too_large")
        await opened(client)


async def test_a_body_that_does_not_come() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async with in_process(body_timeout_s=0.1) as (client, _):
        assert fault(await client.post("/v1/sessions", content=chunks())) == (408, "too_slow")


async def test_the_key() -> None:
    async with in_process(api_key="right") as (client, _):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "right"},
            {"authorization": "Bearer ä"},
        ):
            raw = {name: value.encode() for name, value in headers.items()}
            for path in ("/v1/info", "/metrics", "/v1/nothing"):
                response = await client.get(path, headers=raw)
                assert fault(response) == (401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        client.headers["authorization"] = "Bearer right"
        assert (await client.get("/v1/info")).json()["model"] == "scripted"
        del client.headers["authorization"]
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


def test_bounds_that_cannot_work() -> None:
    for name in ("max_sessions", "max_waiting", "max_body_bytes", "idle_s", "check_timeout_s"):
        with pytest.raises(ConfigError, match=name):
            ServeSettings(**{name: 0})


# -- bad requests, and what is said of them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"messages": USER}, "body.asks"),
        ({**OPEN, "asks": [SECRET]}, "body.asks.0"),
        ({**OPEN, SECRET: 1}, "body.?"),
        ({**OPEN, "messages": SECRET}, "body.messages"),
        ({**OPEN, "messages": [SECRET]}, "body.messages.0"),
        ([SECRET], "body"),
    ],
)
async def test_a_bad_message_is_refused_without_being_repeated(body: Any, place: str) -> None:
    async with in_process() as (client, _):
        response = await client.post("/v1/sessions", json=body)
        assert fault(response) == (422, "invalid_request")
        assert response.json()["error"]["message"].startswith(f"{place}: ")


@pytest.mark.parametrize("body", [b"", b"{", SECRET.encode(), b"\xff\xfe", b"[" * 100_000, b'"\\ud800"'])
async def test_what_is_no_json(body: bytes) -> None:
    async with in_process() as (client, _):
        response = await client.post("/v1/sessions", content=body, headers={"content-type": "application/json"})
        assert fault(response)[0] in (400, 422)


@pytest.mark.parametrize(
    "body",
    [
        {"seq": 0},
        {"seq": "1"},
        {"seq": 1, "checks": [order(1)] * 9},
        {"seq": 1, "checks": [order(-1)]},
        {"seq": 1, "checks": [{"depth": 1, "asks": []}]},
        {"seq": 1, "checks": [{"depth": 1, "asks": [{"kind": SECRET}]}]},
        {"seq": 1, "checks": [{"depth": 1, "asks": [{"kind": "lookahead", "max_tokens": 10**9}]}]},
        {"seq": 1, "parts": [{"fragments": [{"text": "a", "channel": SECRET}]}]},
        {"seq": 1, "parts": [{"token_ids": [-1]}]},
    ],
)
async def test_a_bad_advance_leaves_the_session_as_it_was(body: Any) -> None:
    async with in_process() as (client, _):
        session = await opened(client)
        assert fault(await client.post(f"{session}/advance", json=body)) == (422, "invalid_request")
        assert (await client.post(f"{session}/advance", json={"seq": 1})).status_code == 200


async def test_half_a_character_from_a_client_is_none_of_our_errors() -> None:
    async with in_process() as (client, _):
        session = await opened(client)
        body = json.dumps({"seq": 1, "parts": said("a \ud83e b", "c")}).encode()
        response = await client.post(f"{session}/advance", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 422)


class Unwilling(Sidecar):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def open(self, *_: Any, **__: Any) -> Any:
        yield from ()
        raise self._error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("messages[0] has no content"), (422, "not_showable")),
        (CheckError("the sidecar is full: 3 sessions are open"), (503, "sidecar_full")),
        (RuntimeError(SECRET), (500, "failed")),
        (MemoryError(SECRET), (500, "failed")),
    ],
)
async def test_a_session_that_cannot_be_opened(
    error: Exception, expected: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with in_process(Unwilling(error)) as (client, service):
            assert fault(await client.post("/v1/sessions", json=OPEN)) == expected
            assert len(service.sessions) == 0
            assert (await client.get("/healthz")).status_code == 200
    assert SECRET not in caplog.text


async def test_a_failure_in_the_middle_of_a_stream_ends_its_session(caplog: pytest.LogCaptureFixture) -> None:
    sidecar = Sidecar()
    with caplog.at_level(logging.DEBUG):
        async with in_process(sidecar) as (client, service):
            session = await opened(client)

            def push(*_: Any) -> Any:
                yield from ()
                raise RuntimeError(SECRET)

            sidecar.followed[0].push = push  # type: ignore[method-assign]
            assert fault(await client.post(f"{session}/advance", json={"seq": 1, "parts": said(SECRET)}))[0] == 500
            assert len(service.sessions) == 0
            assert sidecar.followed[0].closed
    assert SECRET not in caplog.text
    assert "unexpected RuntimeError" in caplog.text


async def test_no_text_and_no_session_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with in_process() as (client, service):
            session = await opened(client, messages=[{"role": "user", "content": SECRET}])
            await client.post(f"{session}/advance?q={SECRET}", json={"seq": 1, "parts": said(SECRET, SECRET)})
            await client.get(f"/{SECRET}")
            await client.post("/v1/check", json={"messages": USER, "response": SECRET})
            assert SECRET.encode() not in service.metrics.text()
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert any(line.startswith("POST /v1/sessions/{session}/advance 200") for line in ours)
    assert not [line for line in ours if SECRET in line or session.rpartition("/")[2] in line]


async def test_the_framework_traces_and_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Provider:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def __getattr__(self, name: str) -> Any:
            self.asked.append(name)
            return lambda *_, **__: self

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    provider = Provider()
    monkeypatch.setattr("opentelemetry._logs.get_logger_provider", lambda: provider)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    async with in_process() as (client, _):
        session = await opened(client)
        await client.post(f"{session}/advance", json={SECRET: SECRET})
        await client.post(f"{session}/advance", json={"seq": 1, "parts": said(SECRET)})
    assert provider.asked == []


# -- one-shot checks, health, figures, schema ----------------------------------------------------------------------


async def test_a_finished_answer() -> None:
    async with in_process() as (client, service):
        fine = (await client.post("/v1/check", json={"messages": USER, "response": SAFE})).json()
        assert (fine["decision"], fine["checker"], fine["depth"]) == ("pass", "probe", 60)
        bad = (await client.post("/v1/check", json={"messages": USER, "response": [{"text": BAD}]})).json()
        assert (bad["decision"], bad["reason"], bad["harm_probability"]) == ("flag", "harmful", 0.99)
        assert len(service.sessions) == 0


async def test_a_finished_answer_with_a_tool_call_that_goes_on_after_its_end(tiny: LocalModel) -> None:
    call = {"channel": "tool_call", "call": {"index": 0, "name": "look_up"}}
    answer = [{"text": '{"a": 1}', **call}, {"text": "Well."}, {"text": "{}", **call}]
    async with in_process(LocalSidecar(tiny)) as (client, service):
        response = await client.post("/v1/check", json={"messages": USER, "response": answer})
        assert fault(response) == (422, "broken_stream")
        assert len(service.sessions) == 0


async def test_a_check_that_cannot_be_made_is_no_verdict() -> None:
    async with in_process(Sidecar(harm=lambda _: float("nan"))) as (client, _):
        response = await client.post("/v1/check", json={"messages": USER, "response": SAFE})
        assert fault(response) == (503, "unchecked")


async def test_readiness_is_a_real_check() -> None:
    def failing(depth: int) -> Steps[None]:
        del depth
        yield from ()
        raise RuntimeError(SECRET)

    def slow(depth: int) -> Steps[None]:
        del depth
        yield Sleep(5)

    for sidecar, reason in (
        (Sidecar(before=failing), "RuntimeError"),
        (Sidecar(before=slow), "the check timed out"),
        (Sidecar(harm=lambda _: float("nan")), "the probe's score is not a probability"),
        (Unwilling(CheckError("the sidecar is closed")), "the sidecar is closed"),
    ):
        async with in_process(sidecar, ready_timeout_s=0.2) as (client, _):
            response = await client.get("/readyz")
            assert response.status_code == 503
            assert response.json()["status"] == "not_ready"
            assert response.json()["reason"] in (reason, "timeout")
            assert (await client.get("/healthz")).json() == {"status": "ok", "reason": None}


async def test_readiness_asked_often_costs_one_check() -> None:
    sidecar = Sidecar()
    async with in_process(sidecar) as (client, _):
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(sidecar.followed) == 1
        assert sidecar.followed[0].closed


async def test_figures() -> None:
    async with in_process() as (client, _):
        session = await opened(client)
        await client.post(f"{session}/advance", json={"seq": 1, "parts": said("a", "b"), "checks": [order(1)]})
        text = (await client.get("/metrics")).text
        assert "ada_guard_sessions 1.0" in text
        assert 'ada_guard_checks_total{outcome="answered"} 1.0' in text
        assert "ada_guard_check_seconds_count 1.0" in text
        assert 'ada_guard_http_responses_total{route="/v1/sessions/{session}/advance",status="200"} 1.0' in text
    async with in_process() as (client, _):
        assert "ada_guard_sessions 0.0" in (await client.get("/metrics")).text  # of this app alone


async def test_the_schema_describes_every_message() -> None:
    async with in_process() as (client, _):
        schema = (await client.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.")
    paths = {"/v1/sessions", "/v1/sessions/{session}/advance", "/v1/sessions/{session}", "/v1/check", "/v1/info"}
    assert paths | {"/healthz", "/readyz", "/metrics"} == set(schema["paths"])
    messages = schema["components"]["schemas"]

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    assert {ref.removeprefix("#/components/schemas/") for ref in references(schema)} <= set(messages)
    for name in (*wire.__all__, *questions.__all__):
        model = getattr(wire, name, None) or getattr(questions, name)
        if isinstance(model, type) and issubclass(model, questions.Message) and name in messages:
            assert messages[name]["additionalProperties"] is False, name
    assert {"Open", "Opened", "Advance", "Advanced", "CheckRequest", "VerdictMessage", "Info"} <= set(messages)


@loopback
async def test_a_client_that_leaves_takes_its_check_with_it() -> None:
    started, ended = [], []

    def before(depth: int) -> Steps[None]:
        started.append(depth)
        try:
            yield Sleep(10)
        finally:
            ended.append(depth)

    sidecar = Sidecar(before=before)
    with served(sidecar) as server:
        async with httpx.AsyncClient(base_url=server.url, verify=False) as client:
            session = await opened(client)
            request = {"seq": 1, "parts": said("a", "b"), "checks": [order(1), order(2)]}
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"{session}/advance", json=request, timeout=0.3)
            for _ in range(300):
                if ended:
                    break
                await asyncio.sleep(0.01)
            assert (started, ended) == ([1], [1])
            # What was applied stays applied; only the checks are missing from the answer that is given again.
            again = (await client.post(f"{session}/advance", json=request)).json()
            assert (len(again["pieces"]), again.get("checks", [])) == (2, [])
            assert 'ada_guard_checks_total{outcome="cancelled"} 1.0' in (await client.get("/metrics")).text


@loopback
async def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_bad_request() -> None:
    with served() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/sessions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        async with httpx.AsyncClient(base_url=server.url, verify=False) as client:
            for _ in range(100):
                if 'status="499"' in (text := (await client.get("/metrics")).text):
                    break
                await asyncio.sleep(0.02)
            assert 'ada_guard_http_responses_total{route="other",status="499"} 1.0' in text
