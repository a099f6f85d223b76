"""Servers that lie: whatever they answer, no text is shown that no check has seen, and none but the stream's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from sidecar_clients import client
from test_http_sidecar_faults import INFO, OPENED

from ada_guard import Check, Done, Event, Fragment, Guard, Policy, Release, ToolCall
from ada_guard.serve.process import bind, require_key
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sidecar.view import view_of

USER = [{"role": "user", "content": "Tell me."}]
PROBED = {**INFO, "calibration": {"thresholds": {"1": 0.5}, "low_thresholds": {"1": 0.1}}}
CALL = Fragment(text='{"path": "/x"}', channel="tool_call", call=ToolCall(index=0, id="c1", name="read_file"))


def lied_to(
    advance: Callable[[dict[str, Any]], Any], pushes: Sequence[Any], policy: Policy | None = None
) -> list[Event]:
    """The events of a stream whose server answers like that."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/info":
            return httpx.Response(200, json=PROBED)
        if request.url.path == "/v1/sessions":
            return httpx.Response(200, json=OPENED)
        if request.method == "DELETE":
            return httpx.Response(204)
        said = advance(json.loads(request.content))
        return said if isinstance(said, httpx.Response) else httpx.Response(200, json=said)

    sidecar = client("http://there.test", retries=0, client=httpx.Client(transport=httpx.MockTransport(answer)))
    events: list[Event] = []
    with Guard(sidecar=sidecar, policy=policy).session(USER) as session:
        for push in pushes:
            events += session.push(push)
        return [*events, *session.close()]


def passed(depth: int) -> dict[str, Any]:
    return {"depth": depth, "answers": [{"kind": "probe", "harm_probability": 0.0}]}


def said(message: dict[str, Any]) -> str:
    return "".join(f["text"] for part in message.get("parts", []) for f in part.get("fragments", []))


def at_the_end(*pieces: dict[str, Any], **more: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A server that settles nothing before the end, and then this."""

    def advance(message: dict[str, Any]) -> dict[str, Any]:
        if not message.get("final"):
            return {"seq": message["seq"]}
        return {"seq": message["seq"], "pieces": list(pieces), "checks": [passed(len(pieces))], **more}

    return advance


def shown(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Release))


def unchecked(events: Sequence[Event]) -> str:
    return next(e.reason or "" for e in events if isinstance(e, Check) and e.decision == "unchecked")


def test_text_that_is_no_token_is_not_shown_without_a_check() -> None:
    begun: list[int] = []

    def advance(message: dict[str, Any]) -> dict[str, Any]:
        text, first = said(message), not begun
        begun.append(1)
        if not first:
            pieces = [{"text": text, "is_token": False}] if text else []
            return {"seq": message["seq"], "pieces": pieces, "checks": []}
        rest = [{"text": text[:4]}, {"text": text[4:], "is_token": False}]
        return {"seq": message["seq"], "pieces": [{"text": ""}] * 4 + rest, "checks": [passed(5)]}

    events = lied_to(advance, ["The " * 40, "More of it " * 30])
    assert shown(events) == "The "
    assert unchecked(events)


def test_an_answer_without_its_end_is_not_shown_as_whole() -> None:
    events = lied_to(at_the_end({"text": "Do not "}), ["Do not ", "mix these."])
    assert "did not settle the whole stream" in unchecked(events)
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "content_filter"


def test_a_tool_call_is_named_as_its_source_named_it() -> None:
    evil = {"text": CALL.text, "channel": "tool_call", "call": {"index": 0, "id": "evil", "name": "delete_file"}}
    events = lied_to(at_the_end({"text": ""}, {"others": [evil]}), [CALL])
    assert [event.call for event in events if isinstance(event, Release)] == [CALL.call]


@pytest.mark.parametrize("index", [0, 7])
def test_a_tool_call_that_the_source_did_not_make_is_not_shown(index: int) -> None:
    call = {"text": "", "channel": "tool_call", "call": {"index": index, "id": "c9", "name": "wipe_disk"}}
    events = lied_to(at_the_end({"text": "Hello there.", "others": [call]}), ["Hello there."])
    assert "a tool call that it was not given" in unchecked(events)
    assert shown(events) == ""


def test_an_answer_to_another_request_is_not_believed() -> None:
    events = lied_to(at_the_end({"text": "Hello there."}, seq=999), ["Hello there."])
    assert "another request" in unchecked(events)


def test_a_check_that_was_not_ordered_is_not_believed() -> None:
    events = lied_to(at_the_end({"text": "Hello there."}, checks=[passed(9)]), ["Hello there."])
    assert "not ordered" in unchecked(events)


@pytest.mark.parametrize("error", ["line\nline", "\x1b[31m", "long " * 100, "größer"])
def test_a_text_is_no_reason(error: str) -> None:
    wrong = [{"depth": 1, "error": error}]
    events = lied_to(at_the_end({"text": "Hello there."}, checks=wrong), ["Hello there."])
    assert "cannot be read" in unchecked(events)


@pytest.mark.parametrize("policy", [Policy(on_error="release"), Policy(release="audit")], ids=["release", "audit"])
def test_without_a_server_a_tool_call_still_comes_whole(policy: Policy) -> None:
    half, rest = CALL.text[:6], CALL.text[6:]
    call = CALL.call
    assert call is not None
    begun = Fragment(text=half, channel="tool_call", call=call)
    gone = Fragment(text=rest, channel="tool_call", call=ToolCall(index=0))
    bare = Fragment(text="", channel="tool_call", call=ToolCall(index=1, id="c2", name="get_time"))
    events = lied_to(
        lambda _: httpx.Response(500), ["A long text, to make a check due. " * 9, begun, "", gone, bare], policy
    )
    calls = [(e.call, e.text) for e in events if isinstance(e, Release) and e.call is not None]
    assert calls == [(call, CALL.text), (bare.call, "")]


def test_somebody_elses_template_is_never_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    from ada_guard import ConfigError
    from ada_guard.local import LocalModel

    model = LocalModel.from_pretrained("reference")
    rendered: list[Any] = []
    monkeypatch.setattr(type(model.tokenizer), "apply_chat_template", lambda *_, **kwargs: rendered.append(kwargs))
    with pytest.raises(ConfigError, match="chat_template"):
        view_of(model, Conversation(messages=USER, template_kwargs={"chat_template": "{{ 'a' * 10**9 }}"}))
    assert rendered == []


@pytest.mark.parametrize("key", ["", " ", "key\n", "ключ"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    from ada_guard import ConfigError

    with pytest.raises(ConfigError, match="API key"):
        require_key(key)
    with pytest.raises(ConfigError, match="API key"):
        bind("0.0.0.0", 0, api_key=key)
