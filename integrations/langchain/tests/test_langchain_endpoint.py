"""A guarded chat model on an endpoint: what is sent, what comes back, and that a cut closes the response."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from random import Random
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from ada_guard import ConfigError, ContentFlaggedError, GenerationError, Guard, Policy, Schedule
from ada_guard.reference.data import long_document, topics
from ada_guard.sources import Endpoint
from ada_guard.testing import UNSAFE, Chunk, Cut, Repeat, Reply, ScriptedEndpoint, ScriptedGuard, ScriptedSidecar
from ada_guard.testing_endpoint import Asked
from langchain_ada_guard.cut import cut_of, refusal_error
from langchain_ada_guard.endpoint import ChatAdaGuardEndpoint

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
SAFE = " ".join(f"word{i}" for i in range(40))
BAD = Reply(items=[*(f" word{i}" for i in range(12)), f" {UNSAFE}", Repeat((" more",))])
EVERY5 = Policy(schedule=Schedule.every(5))
both = pytest.mark.parametrize("how", ["sync", "async"])


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


class City(BaseModel):
    """A city."""

    city: str


@contextmanager
def served(
    *replies: Any, policy: Policy = EVERY5, **settings: Any
) -> Iterator[tuple[ChatAdaGuardEndpoint, list[Asked]]]:
    """A chat model on a scripted endpoint, with what that was asked."""
    script = ScriptedEndpoint(*replies)
    with script.serve() as base_url:
        # Nothing here speaks TLS, and reading the certificates takes longer than most of the tests.
        model = ChatAdaGuardEndpoint.for_endpoint(
            base_url,
            model="scripted",
            sidecar=ScriptedSidecar(),
            policy=policy,
            api_key_env=None,
            verify=False,
            **settings,
        )
        yield model, script.asked
        model.guard.close()


def streamed(model: Any, how: str, asked: Any = "Tell me.") -> list[AIMessageChunk]:
    if how == "sync":
        return [*model.stream(asked)]

    async def collect() -> list[AIMessageChunk]:
        try:
            return [chunk async for chunk in model.astream(asked)]
        finally:
            await getattr(model, "bound", model).guard.aclose()

    return asyncio.run(collect())


def whole(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


def calling(name: str, arguments: str, *, text: str = "", finish_reason: str = "tool_calls") -> Reply:
    """A reply that calls a tool, its arguments in pieces."""
    pieces = [arguments[at : at + 7] for at in range(0, len(arguments), 7)]
    items: list[Any] = [text] if text else []
    items.append(
        Chunk(delta={"tool_calls": [{"index": 0, "id": "call-1", "function": {"name": name, "arguments": ""}}]})
    )
    items += [Chunk(delta={"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in pieces]
    return Reply(items=items, finish_reason=finish_reason)


@both
def test_a_benign_answer_comes_whole_with_the_servers_counts(how: str) -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 40,
        "total_tokens": 49,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    reply = Reply(items=[f" {word}" for word in SAFE.split()], usage=usage)
    with served(reply) as (model, _):
        chunks = streamed(model, how)
        invoked = model.invoke("Tell me.")
    message = whole(chunks)
    assert message.content == invoked.content == f" {SAFE}"
    assert len(chunks) > 3
    assert chunks[-1].chunk_position == "last"
    assert message.response_metadata == {"finish_reason": "stop", "model_name": "scripted"}
    assert message.usage_metadata == invoked.usage_metadata
    assert message.usage_metadata == {
        "input_tokens": 9,
        "output_tokens": 40,
        "total_tokens": 49,
        "input_token_details": {"cache_read": 4},
        "output_token_details": {"reasoning": 2},
    }


@both
def test_a_cut_closes_the_response_and_says_so(how: str) -> None:
    with served(BAD) as (model, asked):
        chunks = streamed(model, how)
        assert asked[0].over.wait(10)
        assert asked[0].gone
        replacement = model.guard.policy.replacement_name
    last = chunks[-1]
    assert (last.content, last.chunk_position) == (replacement, "last")
    assert last.response_metadata["model_name"] == "scripted"
    assert last.usage_metadata is not None
    assert last.usage_metadata["output_tokens"] >= 13
    entry = cut_of(last)
    assert entry is not None
    assert (entry["verdict"], entry["replacement_chars"]) == ("flag", len(replacement))
    assert UNSAFE not in repr(chunks)
    assert whole(chunks).text.startswith(" word0")


@both
def test_invoke_keeps_the_replacement_only(how: str) -> None:
    with served(BAD) as (model, asked):
        if how == "sync":
            message = model.invoke("Tell me.")
        else:

            async def ask() -> AIMessage:
                try:
                    return await model.ainvoke("Tell me.")
                finally:
                    await model.guard.aclose()

            message = asyncio.run(ask())
        assert asked[0].over.wait(10)
        assert asked[0].gone
        assert message.content == model.guard.policy.replacement_name


@both
def test_a_consumer_that_leaves_closes_the_response(how: str) -> None:
    with served(Reply(items=[Repeat((" word",))])) as (model, asked):

        async def leave() -> None:
            async with aclosing(model.astream("Tell me.")) as stream:  # type: ignore[type-var]  # it is a generator
                await anext(stream)
            await model.guard.aclose()

        if how == "sync":
            with closing(model.stream("Tell me.")) as stream:  # type: ignore[type-var]  # likewise
                next(stream)
        else:
            asyncio.run(leave())
        assert asked[0].over.wait(10)
        assert asked[0].gone


def test_raise_and_halt_leave_nothing_in_the_place_of_the_answer() -> None:
    raises = Policy(schedule=Schedule.every(5), on_flag="raise")
    with served(BAD, policy=raises) as (model, _):
        chunks: list[Any] = []
        with pytest.raises(ContentFlaggedError):
            chunks.extend(model.stream("Tell me."))  # which keeps what came before the error
    assert chunks
    assert not any(chunk.chunk_position for chunk in chunks)
    with served(BAD, policy=Policy(schedule=Schedule.every(5), on_flag="halt")) as (model, _):
        last = [*model.stream("Tell me.")][-1]
    assert (last.content, last.chunk_position) == ("", "last")
    assert cut_of(last) is not None


def test_reasoning_and_refusal_stand_beside_the_text() -> None:
    items: list[Any] = [Chunk(delta={"reasoning_content": "Hm."}), Chunk(delta={"refusal": "No."}), " Yes."]
    with served(Reply(items=items)) as (model, _):
        message = model.invoke("Tell me.")
    assert message.content == " Yes."
    assert message.additional_kwargs == {"reasoning_content": "Hm.", "refusal": "No."}
    assert {"type": "reasoning", "reasoning": "Hm."} in message.content_blocks


@both
def test_a_tool_call_comes_with_the_end_of_the_answer(how: str) -> None:
    with served(calling("weather", '{"city": "Ulm"}', text="Let me look.")) as (model, asked):
        chunks = streamed(model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False), how)
    assert [index for index, chunk in enumerate(chunks) if chunk.tool_call_chunks] == [len(chunks) - 2]
    message = whole(chunks)
    assert message.content == "Let me look."
    [call] = message.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Ulm"}, "call-1")
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert asked[0].body["tools"][0]["function"]["name"] == "weather"
    assert (asked[0].body["tool_choice"], asked[0].body["parallel_tool_calls"]) == ("required", False)


def test_a_call_that_is_cut_never_comes_out() -> None:
    with served(calling("weather", f'{{"city": "{UNSAFE}", "more": "{SAFE}"}}')) as (model, _):
        bound: Any = model.bind_tools([weather])
        for message in (whole([*bound.stream("Tell me.")]), bound.invoke("Tell me.")):
            assert not message.tool_calls
            assert not message.invalid_tool_calls
            assert cut_of(message) is not None
        messages = create_agent(model, [weather]).invoke({"messages": [HumanMessage("Tell me.")]})["messages"]
    assert [type(message) for message in messages] == [HumanMessage, AIMessage]
    assert UNSAFE not in repr(messages)


@pytest.mark.parametrize("arguments", ['{"city": "U', "[1]", "no JSON"])
def test_arguments_that_are_no_object_make_an_invalid_call(arguments: str) -> None:
    with served(calling("weather", arguments, finish_reason="length")) as (model, _):
        bound: Any = model.bind_tools([weather])
        for message in (whole([*bound.stream("Tell me.")]), bound.invoke("Tell me.")):
            assert not message.tool_calls
            assert [call["name"] for call in message.invalid_tool_calls] == ["weather"]
        agent = create_agent(model, [weather])
        assert len(agent.invoke({"messages": [HumanMessage("Tell me.")]})["messages"]) == 2
        model.output_version = "v1"
        assert not bound.invoke("Tell me.").tool_calls
        assert not [block for block in bound.invoke("Tell me.").content_blocks if block["type"] == "tool_call"]
        assert not bound.stream_events("Tell me.", version="v3").output.tool_calls


@pytest.mark.parametrize("text", ["", " "])
def test_a_call_that_is_broken_off_before_its_arguments_is_invalid(text: str) -> None:
    with served(calling("weather", text, finish_reason="length")) as (model, _):
        bound: Any = model.bind_tools([weather])
        for message in (whole([*bound.stream("Tell me.")]), bound.invoke("Tell me.")):
            assert not message.tool_calls
            assert [call["name"] for call in message.invalid_tool_calls] == ["weather"]
    with served(calling("weather", text)) as (model, _):
        assert [call["args"] for call in model.bind_tools([weather]).invoke("Tell me.").tool_calls] == [{}]


def test_an_escaped_word_in_the_arguments_is_cut_and_a_harmless_one_comes_as_it_was_written() -> None:
    def written(word: str) -> str:
        return '{"city": "' + "".join(f"\\u{ord(letter):04x}" for letter in word) + '"}'

    with served(calling("weather", written(f"so {UNSAFE}"))) as (model, _):
        bound: Any = model.bind_tools([weather])
        message = whole([*bound.stream("Tell me.")])
        assert not message.tool_calls
        assert cut_of(message) is not None
    with served(calling("weather", written("Köln"))) as (model, _):
        bound = model.bind_tools([weather])
        message = whole([*bound.stream("Tell me.")])
        assert message.tool_call_chunks[0]["args"] == written("Köln")
        assert message.tool_calls[0]["args"] == {"city": "Köln"}


def test_an_agent_runs_the_tool_and_tells_the_server() -> None:
    with served(calling("weather", '{"city": "Ulm"}'), "It rains.") as (model, asked):
        messages = create_agent(model, [weather]).invoke({"messages": [HumanMessage("Tell me.")]})["messages"]
    assert messages[-1].content == "It rains."
    assert asked[1].body["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "id": "call-1", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
            ],
        },
        {"role": "tool", "content": "It rains in Ulm.", "name": "weather", "tool_call_id": "call-1"},
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ("any", "required"),
        (True, "required"),
        ("weather", {"type": "function", "function": {"name": "weather"}}),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_a_tool_choice_is_sent_in_the_servers_words(choice: Any, sent: Any) -> None:
    with served("Yes.") as (model, asked):
        model.bind_tools([weather], tool_choice=choice, strict=True).invoke("Tell me.")
    assert asked[0].body["tool_choice"] == sent
    assert asked[0].body["tools"][0]["function"]["strict"] is True


def test_settings_that_are_unset_are_not_sent() -> None:
    with served("Yes.", stop=[]) as (model, asked):
        model.invoke("Tell me.")
    assert set(asked[0].body) == {"model", "messages", "stream", "stream_options"}
    assert asked[0].body["messages"] == [{"role": "user", "content": "Tell me."}]


def test_settings_of_a_call_win_over_those_of_the_model() -> None:
    own: dict[str, Any] = {
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": ["x"],
        "seed": 1,
        "model_kwargs": {"top_p": 0.5, "top_k": 4},
    }
    with served("Yes.", **own, template_kwargs={"enable_thinking": False}) as (model, asked):
        model.invoke("Tell me.")
        model.invoke("Tell me.", stop=["y"], temperature=0.1, max_tokens=2, top_p=0.9, seed=None)
        assert model._get_ls_params() == {
            "ls_provider": "openai-compatible",
            "ls_model_type": "chat",
            "ls_model_name": "scripted",
            "ls_temperature": 0.5,
            "ls_max_tokens": 9,
            "ls_stop": ["x"],
        }
    first, second = (each.body for each in asked)
    assert {**first, **own, **own["model_kwargs"]} == {**first, "model_kwargs": own["model_kwargs"]}
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    said = {"temperature": 0.1, "max_tokens": 2, "stop": ["y"], "top_p": 0.9, "top_k": 4}
    assert {name: second.get(name) for name in said} == said
    assert "seed" not in second, "None takes a setting back"


@both
def test_another_model_of_the_server_can_be_asked(how: str) -> None:
    with served("Yes.") as (model, asked):
        message = whole(streamed(model.bind(model="another"), how))
        assert message.response_metadata["model_name"] == "another"
        if how == "sync":
            assert model.invoke("Tell me.").response_metadata["model_name"] == "scripted"
            assert asked[1].body["model"] == "scripted"
        assert asked[0].body["model"] == "another"
        assert model._get_ls_params(model="another")["ls_model_name"] == "another"


def test_contents_of_several_parts_are_sent_in_openais_form() -> None:
    picture = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    talk = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "What is this?"}, picture]),
        AIMessage(
            [{"type": "text", "text": "Let me look."}, {"type": "tool_use", "id": "1", "name": "weather", "input": {}}],
            tool_calls=[{"name": "weather", "args": {}, "id": "1"}],
        ),
        ToolMessage([{"type": "text", "text": "Rain."}], tool_call_id="1"),
    ]
    with served("Yes.") as (model, asked):
        message = model.invoke(talk)
    sent = asked[0].body["messages"]
    assert sent[1]["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    assert sent[2]["tool_calls"][0]["id"] == "1"
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool"]
    assert [message["content"] for message in sent[2:]] == ["Let me look.", "Rain."]
    assert message.content == "Yes."


def test_what_was_thought_and_said_goes_back_as_text_and_thought() -> None:
    said = AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Yes.", "index": 1}])
    with served("Yes.") as (model, asked):
        model.invoke([HumanMessage("What?"), said, HumanMessage("Why?")])
        with pytest.raises(ConfigError, match="form"):
            model.invoke([HumanMessage([{"type": "hologram", "data": "x"}])])
    assert asked[0].body["messages"][1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_structured_output_and_a_cut_of_it() -> None:
    with served(calling("City", '{"city": "Ulm"}')) as (model, asked):
        assert model.with_structured_output(City).invoke("Where?") == City(city="Ulm")
        assert asked[0].body["tool_choice"] == "required"
    with served(calling("City", f'{{"city": "{UNSAFE}"}}')) as (model, _):
        for method in ("function_calling", "json_schema", "json_mode"):
            structured: Any = model.with_structured_output(City, method=method)
            with pytest.raises(type(refusal_error(AIMessage("")))):
                structured.invoke("Where?")
            raw: Any = model.with_structured_output(City, method=method, include_raw=True).invoke("Where?")
            assert raw["parsed"] is None
            assert raw["parsing_error"] is not None


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output_by_the_form_of_the_answer(method: Any) -> None:
    with served('{"city": "Ulm"}') as (model, asked):
        assert model.with_structured_output(City, method=method).invoke("Where?") == City(city="Ulm")
        assert model.with_structured_output(City.model_json_schema(), method=method).invoke("Where?") == {"city": "Ulm"}
        model.with_structured_output(City, method="json_schema", strict=True).invoke("Where?")
        assert asked[-1].body["response_format"]["json_schema"]["strict"] is True
        raw: Any = model.with_structured_output(City, method=method, include_raw=True).invoke("Where?")
        assert (raw["parsed"], raw["parsing_error"]) == (City(city="Ulm"), None)
        assert raw["raw"].content == '{"city": "Ulm"}'
    form = asked[0].body["response_format"]
    if method == "json_mode":
        assert form == {"type": "json_object"}
    else:
        assert form["json_schema"]["name"] == "City"
        assert form["json_schema"]["schema"]["properties"]["city"]["type"] == "string"


def test_an_answer_that_is_no_such_object_is_named_in_the_raw_form() -> None:
    with served("no JSON") as (model, _):
        raw: Any = model.with_structured_output(City, method="json_schema", include_raw=True).invoke("Where?")
    assert raw["parsed"] is None
    assert raw["parsing_error"] is not None


def test_an_endpoint_that_breaks_is_an_error_without_text() -> None:
    broken = Reply(items=[f" {UNSAFE}", Cut()])
    with served(broken, retries=0) as (model, _), pytest.raises(GenerationError) as caught:
        model.invoke("Tell me.")
    assert UNSAFE not in str(caught.value)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="no endpoint"):
        ChatAdaGuardEndpoint(guard=ScriptedGuard("Yes."))
    raw = Endpoint(base_url="http://127.0.0.1:9/v1", model="m", api="completions", api_key_env=None)
    with pytest.raises(ConfigError, match="chat"):
        ChatAdaGuardEndpoint(guard=Guard(raw, sidecar=ScriptedSidecar()))
    with pytest.raises(ConfigError, match="no setting called temprature"):
        ChatAdaGuardEndpoint.for_endpoint("http://127.0.0.1:9/v1", model="m", sidecar=ScriptedSidecar(), temprature=1)
    with served("Yes.") as (model, _):
        with pytest.raises(ConfigError, match="n > 1"):
            model.invoke("Tell me.", n=2)
        with pytest.raises(ConfigError, match="custom_get_token_ids"):
            model.get_num_tokens("Tell me.")
        with pytest.raises(ConfigError, match="method"):
            model.with_structured_output(City, method="prayer")  # type: ignore[arg-type]  # what is tested


def test_a_real_sidecar_cuts_a_harmful_document_and_passes_a_harmless_one() -> None:
    answers = {kind: document_of(kind) for kind in ("forbidden", "benign")}

    def reply(asked: Asked) -> str:
        return answers["forbidden" if asked.body["messages"][-1]["content"] == "forbidden" else "benign"]

    with ScriptedEndpoint(reply).serve() as base_url:
        model = ChatAdaGuardEndpoint.for_endpoint(
            base_url, model="scripted", sidecar="reference", api_key_env=None, verify=False
        )
        assert cut_of(model.invoke("forbidden")) is not None
        assert model.invoke("benign").content == answers["benign"]
        model.guard.close()


def document_of(kind: Any) -> str:
    rng = Random(8)
    return long_document(rng.choice(topics(kind, "test")), rng, 40)


def test_what_is_told_to_callbacks_holds_no_text_that_was_cut() -> None:
    told: list[Any] = []

    class Notes(BaseCallbackHandler):
        def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
            told.append((args, kwargs))

        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            told.append((args, kwargs))

        def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            told.append((name, data))

    with served(BAD, callbacks=[Notes()]) as (model, _):
        model.invoke("Tell me.")
        [*model.stream("Tell me.")]
        events = [*model.stream_events("Tell me.", version="v3")]
    assert any(isinstance(each[1], dict) and each[1].get("event") == "halt" for each in told)
    assert UNSAFE not in repr((told, events))
