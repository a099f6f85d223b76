"""``ada-guard serve`` as a process, and what a real model behind a server says where it works and where it breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import tiny_models
import torch
from probes import probed
from served import SAFE, USER, free_port, loopback, pushed, released, served, split

from ada_guard import Check, Done, Event, Guard, Halt, Policy, ProbeChecker, Release, RethinkChecker, Schedule
from ada_guard.checkers import CascadeChecker
from ada_guard.cli.demo import SCENES
from ada_guard.errors import ConfigError
from ada_guard.local import LocalModel
from ada_guard.serve import bind
from ada_guard.sidecar.client import HTTPSidecar
from ada_guard.sidecar.companion import LocalSidecar
from ada_guard.steps import run

SECRET = "zorblewort"
OPEN = {"messages": USER, "asks": ["probe"]}


# -- the process ---------------------------------------------------------------------------------------------------


class Process:
    """``ada-guard serve`` with the reference model."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "ada_guard.cli", "serve", "--model", "reference", *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        # A shell that runs us in the background has SIGINT ignored, and children inherit that.
        self.popen = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.popen.stdout is not None
        self.line = self.popen.stdout.readline().strip()
        self.url = self.line.rpartition(" ")[2]

    def end(self, by: signal.Signals) -> tuple[int, str]:
        self.popen.send_signal(by)
        out, errors = self.popen.communicate(timeout=30)
        assert out == ""
        return self.popen.returncode, errors


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[Process]:
    server = Process(*arguments, **environment)
    try:
        yield server
    finally:
        if server.popen.poll() is None:
            server.popen.kill()
        server.popen.communicate()


@pytest.fixture(scope="module")
def reference() -> Iterator[Process]:
    with process("--port", "0") as server:
        yield server


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[Any, str]]:
    """Conversations with what the reference model says to them, unguarded."""
    guard = Guard.from_pretrained("reference")
    _, attack, _, benign = SCENES
    asked = {
        "benign": [{"role": "user", "content": benign.prompt}],
        "harmful": [
            {"role": "user", "content": attack.prompt},
            {"role": "assistant", "content": attack.prefill},
        ],
    }
    return {
        name: (
            messages[:1],
            "".join(
                event.text
                for event in guard.unguarded(messages, max_new_tokens=90, temperature=0)
                if isinstance(event, Release)
            ),
        )
        for name, messages in asked.items()
    }


@pytest.fixture(scope="module")
def here() -> Iterator[Any]:
    """The same model in this process."""
    sidecar = LocalSidecar(Guard.from_pretrained("reference").model)
    yield sidecar
    run(sidecar.close())


def ids(events: list[Event]) -> list[tuple[int, ...]]:
    return [event.token_ids for event in events if isinstance(event, Done)]


def checks(events: list[Event]) -> list[tuple[Any, ...]]:
    return [(e.depth, e.decision, e.checker, e.reason) for e in events if isinstance(e, Check)]


@loopback
@pytest.mark.parametrize("checker", [ProbeChecker(), RethinkChecker(), CascadeChecker()], ids=lambda each: each.name)
@pytest.mark.parametrize("schedule", ["default", "every:4"])
@pytest.mark.parametrize("name", ["benign", "harmful"])
def test_a_served_model_judges_as_in_this_process(
    reference: Process, here: Any, answers: Any, checker: Any, schedule: str, name: str
) -> None:
    messages, text = answers[name]
    policy = Policy(schedule=Schedule.parse(schedule))
    there = Guard(sidecar=HTTPSidecar(reference.url, verify=False), checker=checker, policy=policy)
    for seed in (1, 2):
        parts = split(text, seed)
        mine, theirs = (
            pushed(Guard(sidecar=here, checker=checker, policy=policy), parts, messages),
            pushed(there, parts, messages),
        )
        assert checks(mine) == checks(theirs)
        assert released(mine) == released(theirs)
        assert [e.token_ids for e in mine if isinstance(e, Done)] == [
            e.token_ids for e in theirs if isinstance(e, Done)
        ]
        for one, other in zip(mine, theirs, strict=True):
            if isinstance(one, Check) and one.harm_probability is not None:
                assert isinstance(other, Check)
                assert other.harm_probability == pytest.approx(one.harm_probability, abs=1e-4)
    assert bool([event for event in theirs if isinstance(event, Halt)]) is (name == "harmful")
    there.close()


@loopback
def test_the_served_model_is_ready_and_says_what_it_is(reference: Process) -> None:
    with httpx.Client(base_url=reference.url, verify=False) as client:
        assert reference.line.startswith("serving reference at http://127.0.0.1:")
        assert client.get("/readyz").json() == {"status": "ok"}
        info = client.get("/v1/info").json()
        assert (info["model"], info["protocol"]) == ("reference", 1)
        assert info["calibration"]["thresholds"]["25"] < 1
        assert "assistant" in info["header"]
        assert "ada_guard_passes_total" in client.get("/metrics").text


@loopback
def test_a_finished_answer_judged_by_the_served_model(reference: Process, answers: Any) -> None:
    with httpx.Client(base_url=reference.url, verify=False, timeout=60) as client:
        for name, decision in (("benign", "pass"), ("harmful", "flag")):
            messages, text = answers[name]
            assert (
                client.post("/v1/check", json={"messages": messages, "response": text}).json()["decision"] == decision
            )


@loopback
def test_a_server_that_is_killed_and_one_that_ends_in_mid_stream(answers: Any, here: Any) -> None:
    port, policy = str(free_port()), Policy(schedule=Schedule.every(10))
    # The harm begins behind harmless text, so that the server is dead before the cut.
    texts = {
        "benign": answers["benign"][1],
        "harmful": "Let me think about that for a moment. Well. " + answers["harmful"][1],
    }
    parts = {name: split(text, seed=4) for name, text in texts.items()}
    control = {name: pushed(Guard(sidecar=here, policy=policy), parts[name], answers[name][0]) for name in parts}

    def begun(guard: Guard, name: str) -> tuple[Any, list[Event]]:
        session = guard.session(answers[name][0])
        return session, [event for part in parts[name][:3] for event in session.push(part)]

    def ended(session: Any, events: list[Event], name: str) -> list[Event]:
        events = [*events, *(event for part in parts[name][3:] for event in session.push(part)), *session.close()]
        assert [event.unchecked_released_tokens for event in events if isinstance(event, Done)] == [0]
        return events

    with process("--port", port) as first:
        sidecar = HTTPSidecar(first.url, verify=False, retries=10, backoff_s=0.1, timeout_s=60)
        guard = Guard(sidecar=sidecar, policy=policy)
        streams = {name: begun(guard, name) for name in parts}
        first.popen.kill()
        first.popen.wait()
    with process("--port", port) as second:
        for name, stream in streams.items():
            events = ended(*stream, name)
            assert checks(events) == checks(control[name])
            assert released(events) == released(control[name])
        guard.close()
        hasty = Guard(sidecar=HTTPSidecar(second.url, verify=False, retries=1), policy=policy)
        streams = {name: begun(hasty, name) for name in parts}
        assert second.end(signal.SIGINT) == (130, "")
    for name, stream in streams.items():
        events = ended(*stream, name)
        assert [event.reason for event in events if isinstance(event, Halt)] == ["error"]
        assert checks(events)[-1][1] == "unchecked"
        assert released(control[name]).startswith(released(events))
    hasty.close()


@loopback
def test_a_process_asks_for_the_key_of_its_environment() -> None:
    with process("--port", "0", "--api-key-env", "MY_KEY", "--access-log", MY_KEY="right") as server:
        with httpx.Client(base_url=server.url, verify=False) as client:
            assert client.get("/v1/info").status_code == 401
            assert client.get("/v1/info", headers={"authorization": "Bearer right"}).status_code == 200
        code, errors = server.end(signal.SIGTERM)
        assert code == 0
        assert "GET /v1/info 200" in errors
        assert "right" not in errors


def refused(*arguments: str, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "ADA_GUARD_API_KEY"} | environment
    command = [sys.executable, "-m", "ada_guard.cli", "serve", *arguments]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert (out.returncode, out.stdout) == (2, "")
    assert out.stderr.count("\n") == 1
    return out.stderr


@loopback
def test_arguments_that_cannot_work() -> None:
    assert "loopback address only" in refused("--host", "0.0.0.0", "--port", "0")
    assert "is not set" in refused("--api-key-env", "NOT_THERE")
    with served() as server:
        assert "cannot serve at this host and port" in refused("--port", str(server.port))
    assert "no address of this machine" in refused("--host", "nowhere.invalid", ADA_GUARD_API_KEY="k")


@pytest.mark.allow_hosts(["0.0.0.0", "127.0.0.1", "localhost"])
def test_a_key_opens_a_public_address() -> None:
    with pytest.raises(ConfigError):
        bind("0.0.0.0", 0, api_key=None)
    for host, key in (("0.0.0.0", "k"), ("127.0.0.1", None), ("localhost", None)):
        bind(host, 0, api_key=key).close()


def test_a_missing_extra_is_one_line() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['ada-guard', 'serve']\n"
        "from ada_guard.cli import main; main()"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert out.returncode == 1
    assert "pip install 'ada-guard[serve]'" in out.stderr


# -- a real model that breaks --------------------------------------------------------------------------------------


def _broken(error: BaseException) -> Any:
    def feed(*_: Any, **__: Any) -> Any:
        raise error

    return feed


@loopback
@pytest.mark.parametrize(
    ("error", "why"),
    [(torch.OutOfMemoryError(SECRET), "OutOfMemoryError"), (RuntimeError(SECRET), "RuntimeError")],
    ids=["memory", "failure"],
)
def test_a_model_that_breaks_in_mid_stream(error: Exception, why: str) -> None:
    sidecar = LocalSidecar(probed(tiny_llama()))
    with served(sidecar, ready_cache_s=0.0) as server, httpx.Client(base_url=server.url, verify=False) as client:
        assert client.get("/readyz").status_code == 200
        guard = Guard(sidecar=HTTPSidecar(server.url, verify=False), policy=Policy(schedule=Schedule.every(10)))
        with guard.session(USER) as session:
            events = session.push(SAFE)
            assert checks(events)
            assert {check[1] for check in checks(events)} == {"pass"}
            sidecar._pool._tenancy.memory.feed = _broken(error)  # type: ignore[union-attr]
            events += session.push(f" {SAFE}")
            events += session.close()
        assert checks(events)[-1][1::2] == ("unchecked", why)
        assert [event.reason for event in events if isinstance(event, Halt)] == ["error"]
        assert f"{SAFE} {SAFE}".startswith(released(events))
        assert [event.unchecked_released_tokens for event in events if isinstance(event, Done)] == [0]
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "not_ready", "reason": why})
        assert client.get("/healthz").status_code == 200
        assert SECRET not in client.get("/metrics").text
        guard.close()


@loopback
def test_a_model_whose_numbers_are_no_numbers() -> None:
    model = tiny_llama()
    sidecar = LocalSidecar(probed(model))
    with served(sidecar, ready_cache_s=0.0) as server, httpx.Client(base_url=server.url, verify=False) as client:
        with torch.no_grad():
            model.model.model.embed_tokens.weight.fill_(float("nan"))
        why = "the probe's score is not a probability"
        assert client.get("/readyz").json() == {"status": "not_ready", "reason": why}
        for checker in (ProbeChecker(), RethinkChecker()):
            guard = Guard(sidecar=HTTPSidecar(server.url, verify=False), checker=checker)
            events = pushed(guard, split(SAFE, seed=2))
            assert [check[1] for check in checks(events)] == ["unchecked"]
            assert released(events) == ""
            guard.close()


@loopback
def test_a_stream_that_outgrows_the_context_is_not_released_unchecked() -> None:
    sidecar = LocalSidecar(probed(tiny_llama()))
    with served(sidecar) as server:
        guard = Guard(sidecar=HTTPSidecar(server.url, verify=False))
        parts = split("one two three " * 400, seed=3)
        events = pushed(guard, parts)
        here = LocalSidecar(probed(tiny_llama()))
        assert checks(events) == checks(pushed(Guard(sidecar=here), parts))
        assert checks(events)[-1][1::2] == ("unchecked", "the answer has outgrown the sidecar's context")
        assert [event.unchecked_released_tokens for event in events if isinstance(event, Done)] == [0]
        guard.close()
        run(here.close())


def tiny_llama() -> LocalModel:
    return LocalModel(tiny_models.build("llama"), tiny_models.tokenizer(), name="tiny")


@loopback
@pytest.mark.parametrize("how", ["served", "here"])
def test_the_next_turn_of_a_conversation_begins_with_what_passed(how: str) -> None:
    sidecar = LocalSidecar(probed(tiny_llama()))
    answer = "Mix the flour and the water, knead it well, and let it rest for an hour. "
    later = [*USER, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    with served(sidecar) as server, ExitStack() as opened:
        guard = Guard(
            sidecar=HTTPSidecar(server.url) if how == "served" else sidecar, checker=ProbeChecker(threshold=1.0)
        )
        if how == "served":
            opened.callback(guard.close)
        pushed(guard, [answer], USER)
        pushed(guard, ["Bake it for an hour."], later)
        reused = sidecar.stats.reused_tokens
    # The prompt alone is shorter than this: prompt and answer were kept.
    assert reused > len(sidecar.model.encode(USER).ids) + 20
