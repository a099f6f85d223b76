"""A guarded ChatOpenAI against a scripted endpoint on the loopback interface: what users really run."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import APIConnectionError, RateLimitError
from pydantic import SecretStr

from ada_guard import Guard, Policy
from ada_guard.errors import ConfigError, GenerationError
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, Chunk, Cut, Pause, Reply, ScriptedEndpoint, ScriptedSidecar
from ada_guard.testing_endpoint import Asked
from langchain_ada_guard import ChatAdaGuard, guard_model

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

BENIGN = "Fold the paper once, turn it over and fold it again until it looks like a small boat."
HARMFUL = f"Take the first one and the next {UNSAFE} stuff, then the secret rest of all of it follows here."
Serve = Callable[..., ChatOpenAI]
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}

both = pytest.mark.parametrize("how", ["sync", "async"])


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an endpoint and gives a client of it."""
    with ExitStack() as stack:

        def client(endpoint: ScriptedEndpoint, **settings: Any) -> ChatOpenAI:
            url = stack.enter_context(endpoint.serve())
            return ChatOpenAI(model="m", base_url=url, api_key=SecretStr("none"), max_retries=0, **settings)

        yield client


def guard(**policy: Any) -> Guard:
    return Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=Schedule.every(4), **policy))


async def streamed(model: Any, how: str, **settings: Any) -> AIMessageChunk:
    chunks = model.stream("?", **settings) if how == "sync" else [c async for c in model.astream("?", **settings)]
    return reduce(add, chunks)


async def invoked(model: Any, how: str, asked: Any = "?", **settings: Any) -> Any:
    return model.invoke(asked, **settings) if how == "sync" else await model.ainvoke(asked, **settings)


def same(first: AIMessageChunk, second: AIMessageChunk) -> bool:
    """Equal but for the ids that LangChain makes up."""
    return first.model_copy(update={"id": None}) == second.model_copy(update={"id": None})


def calling(arguments: str, *, count: int = 1) -> Reply:
    """Parallel tool calls whose arguments alternate piece by piece."""
    heads = [
        {"index": n, "id": f"c{n}", "type": "function", "function": {"name": "clock", "arguments": ""}}
        for n in range(count)
    ]
    rest = [
        {"index": n, "function": {"arguments": arguments[at : at + 5]}}
        for at in range(0, len(arguments), 5)
        for n in range(count)
    ]
    items = [Chunk(delta={"tool_calls": [call]}) for call in [*heads, *rest]]
    return Reply(items=items, finish_reason="tool_calls")


@both
@pytest.mark.parametrize("settings", [{}, {"stream_usage": True}, {"output_version": "v1"}], ids=str)
async def test_a_benign_stream_is_the_unguarded_one(how: str, settings: dict[str, Any], serve: Serve) -> None:
    inner = serve(ScriptedEndpoint(BENIGN), **settings)
    plain = await streamed(inner, how)
    assert same(await streamed(ChatAdaGuard(inner=inner, guard=guard()), how), plain)
    assert bool(plain.usage_metadata) == bool(settings.get("stream_usage"))


@both
async def test_log_probabilities_pass_with_their_text_and_are_cut_with_it(how: str, serve: Serve) -> None:
    def reply(text: str) -> Reply:
        return Reply(
            items=[
                Chunk(
                    delta={"content": f" {word}"},
                    fields={"logprobs": {"content": [{"token": f" {word}", "logprob": 0.0}]}},
                )
                for word in text.split()
            ]
        )

    inner = serve(ScriptedEndpoint(reply(BENIGN), reply(BENIGN), reply(HARMFUL)), logprobs=True)
    model = ChatAdaGuard(inner=inner, guard=guard())
    plain = await streamed(inner, how)
    assert same(await streamed(model, how), plain)
    assert len(plain.response_metadata["logprobs"]["content"]) == len(BENIGN.split())
    cut = await streamed(model, how)
    tokens = [entry["token"] for entry in cut.response_metadata["logprobs"]["content"]]
    assert "".join(tokens) + DEFAULT_REPLACEMENT == cut.text
    assert UNSAFE not in str(cut)


@both
async def test_a_cut_closes_the_response_so_that_the_server_stops(how: str, serve: Serve) -> None:
    endpoint = ScriptedEndpoint(Reply(items=[*(f" {word}" for word in HARMFUL.split()), Pause(30), "never sent"]))
    cut = await streamed(ChatAdaGuard(inner=serve(endpoint), guard=guard()), how)
    assert cut.text == " Take the first one" + DEFAULT_REPLACEMENT
    [asked] = endpoint.asked
    assert asked.over.wait(10)
    assert asked.gone


@both
async def test_invoke_is_cut_early_too(how: str, serve: Serve) -> None:
    endpoint = ScriptedEndpoint(Reply(items=[*(f" {word}" for word in HARMFUL.split()), Pause(30), "never sent"]))
    answer = await invoked(ChatAdaGuard(inner=serve(endpoint), guard=guard()), how)
    assert answer.text == DEFAULT_REPLACEMENT
    assert endpoint.asked[0].over.wait(10)
    assert endpoint.asked[0].gone


@both
async def test_a_consumer_that_breaks_off_closes_the_response(how: str, serve: Serve) -> None:
    endpoint = ScriptedEndpoint(Reply(items=[*(f" {word}" for word in BENIGN.split()), Pause(30), "never sent"]))
    model = ChatAdaGuard(inner=serve(endpoint), guard=guard())
    if how == "sync":
        stream = model.stream("?")
        next(stream)
        stream.close()  # type: ignore[attr-defined]  # it is a generator
    else:
        astream = model.astream("?")
        await anext(astream)
        await astream.aclose()  # type: ignore[attr-defined]  # likewise
    # LangChain leaves the rest of an async stream to the event loop.
    assert await asyncio.to_thread(endpoint.asked[0].over.wait, 10)
    assert endpoint.asked[0].gone


@both
@pytest.mark.parametrize("count", [1, 3])
async def test_tool_calls_come_whole_and_equal(how: str, count: int, serve: Serve) -> None:
    inner = serve(ScriptedEndpoint(calling(json.dumps({"zone": "UTC", "why": "I was asked"}), count=count)))
    plain = await streamed(inner, how)
    ours = await streamed(ChatAdaGuard(inner=inner, guard=guard()).bind_tools([CLOCK]), how)
    assert same(ours, plain)
    assert len(ours.tool_calls) == count


@both
async def test_a_flagged_tool_call_never_appears(how: str, serve: Serve) -> None:
    inner = serve(ScriptedEndpoint(calling(json.dumps({"zone": "UTC", "why": f"the {UNSAFE} one"}), count=2)))
    model = ChatAdaGuard(inner=inner, guard=guard()).bind_tools([CLOCK])
    for cut in (await streamed(model, how), await invoked(model, how)):
        assert (cut.tool_calls, cut.invalid_tool_calls, cut.text) == ([], [], DEFAULT_REPLACEMENT)


@both
async def test_the_guard_sees_tools_and_messages_of_the_request(how: str, serve: Serve) -> None:
    judge = ScriptedSidecar()
    seen: list[Any] = []

    class Looking(ScriptedSidecar):
        def open(self, conversation: Any, **kwargs: Any) -> Any:
            seen.append(conversation)
            return judge.open(conversation, **kwargs)

    model = ChatAdaGuard(inner=serve(ScriptedEndpoint(BENIGN)), guard=Guard(sidecar=Looking()))
    await streamed(model.bind_tools([CLOCK]), how)
    assert seen[0].messages == [{"role": "user", "content": "?"}]
    assert [tool["function"]["name"] for tool in seen[0].tools] == ["clock"]


class Reasoning(ChatOpenAI):
    """Keeps the reasoning that servers such as vLLM send beside the text, as ChatDeepSeek does."""

    def _convert_chunk_to_generation_chunk(self, chunk: dict[str, Any], *args: Any) -> Any:
        found = super()._convert_chunk_to_generation_chunk(chunk, *args)
        choices = chunk.get("choices")
        if found is not None and choices and (said := choices[0]["delta"].get("reasoning_content")):
            found.message.additional_kwargs["reasoning_content"] = said
        return found


@both
async def test_reasoning_beside_the_text_is_guarded_and_else_untouched(how: str) -> None:
    def reply(text: str) -> Reply:
        return Reply(
            items=[*(Chunk(delta={"reasoning_content": f" {word}"}) for word in text.split()), " So.", " Done."]
        )

    endpoint = ScriptedEndpoint(reply(BENIGN), reply(BENIGN), reply(HARMFUL))
    with endpoint.serve() as url:
        inner = Reasoning(model="m", base_url=url, api_key=SecretStr("none"))
        model = ChatAdaGuard(inner=inner, guard=guard())
        plain = await streamed(inner, how)
        assert same(await streamed(model, how), plain)
        assert plain.additional_kwargs["reasoning_content"] == f" {BENIGN}"
        cut = await streamed(model, how)
    assert cut.additional_kwargs["reasoning_content"] + cut.text == " Take the first one" + DEFAULT_REPLACEMENT


@both
async def test_of_several_choices_each_is_judged_and_a_cut_one_is_replaced_alone(how: str, serve: Serve) -> None:
    texts = [BENIGN, HARMFUL, BENIGN]
    choices = [
        {"index": n, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for n, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
    model = ChatAdaGuard(inner=serve(ScriptedEndpoint(Reply(json=answer)), n=3), guard=guard())
    asked: Any = [[HumanMessage("?")]]
    result = model.generate(asked) if how == "sync" else await model.agenerate(asked)
    assert [one.text for one in result.generations[0]] == [BENIGN, DEFAULT_REPLACEMENT, BENIGN]
    assert UNSAFE not in str(result)


@both
async def test_stream_invoke_off_keeps_usage_of_servers_that_state_it_in_whole_answers(how: str, serve: Serve) -> None:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": BENIGN}}
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    inner = serve(ScriptedEndpoint(Reply(json=answer)))
    plain = await invoked(inner, how)
    ours = await invoked(ChatAdaGuard(inner=inner, guard=guard(), stream_invoke=False), how)
    assert ours.model_copy(update={"id": plain.id}) == plain
    assert ours.usage_metadata["input_tokens"] == 3


@both
async def test_errors_of_the_server_are_the_clients_own(how: str, serve: Serve) -> None:
    inner = serve(ScriptedEndpoint(Reply(status=429, json={"error": {"message": "slow down"}})))
    model = ChatAdaGuard(inner=inner, guard=guard())
    with pytest.raises(RateLimitError):
        await invoked(model, how)
    other = ChatAdaGuard(inner=serve(ScriptedEndpoint(BENIGN)), guard=guard())
    fallback = model.with_fallbacks([other], exceptions_to_handle=(RateLimitError,))
    assert (await invoked(fallback, how)).text == BENIGN


@both
async def test_a_server_that_breaks_off_behind_text_is_a_generation_error_without_it(how: str, serve: Serve) -> None:
    endpoint = ScriptedEndpoint(Reply(items=[*(f" {word}" for word in BENIGN.split()[:6]), Cut()]))
    with pytest.raises(GenerationError) as raised:
        await streamed(ChatAdaGuard(inner=serve(endpoint), guard=guard()), how)
    assert not isinstance(raised.value, APIConnectionError)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    assert "Fold" not in str(raised.value)


@both
async def test_what_init_chat_model_gives_can_be_guarded_with_all_that_was_built_around_it(how: str) -> None:
    endpoint = ScriptedEndpoint(HARMFUL)
    with endpoint.serve() as url:
        made = init_chat_model("openai:m", base_url=url, api_key="none", max_retries=0)
        built: Sequence[Any] = [
            made,
            made.bind_tools([CLOCK]),
            ChatPromptTemplate.from_template("{x}") | made.bind_tools([CLOCK]) | (lambda answer: answer),
            made.with_fallbacks([made.bind_tools([CLOCK])]),
        ]
        for runnable in built:
            asked: Any = {"x": "?"} if runnable is built[2] else "?"
            assert (await invoked(guard_model(runnable, guard()), how, asked)).text == DEFAULT_REPLACEMENT
        assert [bool(asked.body.get("tools")) for asked in endpoint.asked] == [False, True, True, False]


def test_a_model_that_is_only_made_when_it_is_called_is_a_config_error() -> None:
    made = init_chat_model("m", model_provider="openai", configurable_fields=("model",), api_key="none")
    with pytest.raises(ConfigError, match="there is no chat model in this _ConfigurableModel"):
        guard_model(made, guard())


# -- the Responses API, as the client converts it ------------------------------------------------------------------


def responses(text: str) -> bytes:
    """The server-sent events of an answer with reasoning, a text and a function call."""
    usage = {
        "input_tokens": 3,
        "output_tokens": 9,
        "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 4},
    }
    response = {"id": "resp_1", "object": "response", "created_at": 0, "model": "m", "output": [], "tools": []}
    response |= {"parallel_tool_calls": True, "tool_choice": "auto", "status": "completed"}
    reasoning = {"id": "rs_1", "type": "reasoning", "summary": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    call = {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "c1",
        "name": "clock",
        "arguments": "",
        "status": "in_progress",
    }
    part = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
    said = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    words = [f" {word}" for word in text.split()]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "status": "in_progress"}},
        {"type": "response.output_item.added", "output_index": 0, "item": reasoning},
        {"type": "response.reasoning_summary_part.added", **part, "part": {"type": "summary_text", "text": ""}},
        *({"type": "response.reasoning_summary_text.delta", **part, "delta": f" {n}"} for n in ("think", "a", "bit")),
        {"type": "response.output_item.added", "output_index": 1, "item": message},
        *({"type": "response.output_text.delta", **said, "delta": word, "logprobs": []} for word in words),
        {"type": "response.output_text.done", **said, "text": text, "logprobs": []},
        {"type": "response.output_item.added", "output_index": 2, "item": call},
        *(
            {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 2, "delta": piece}
            for piece in ('{"zone"', ': "UTC"', "}")
        ),
        {"type": "response.completed", "response": {**response, "usage": usage}},
    ]
    numbered = ({**event, "sequence_number": n} for n, event in enumerate(events))
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in numbered)


@both
@pytest.mark.parametrize("version", ["v0", "responses/v1", "v1"])
async def test_an_answer_of_the_responses_api_is_guarded_and_else_untouched(
    how: str, version: str, serve: Serve
) -> None:
    def reply(asked: Asked) -> Reply:
        return Reply(items=[responses(HARMFUL if "bad" in json.dumps(asked.body["input"]) else BENIGN)], done=False)

    inner = serve(ScriptedEndpoint(reply), use_responses_api=True, output_version=version)
    model = ChatAdaGuard(inner=inner, guard=guard())
    plain, ours = await streamed(inner, how), await streamed(model, how)
    assert same(ours, plain)
    assert [call["args"] for call in ours.tool_calls] == [{"zone": "UTC"}]
    cut = await invoked(model, how, "bad")
    assert (cut.text, cut.tool_calls) == (DEFAULT_REPLACEMENT, [])
    assert UNSAFE not in str(cut)
    chunks = list(model.stream("bad")) if how == "sync" else [chunk async for chunk in model.astream("bad")]
    assert UNSAFE not in str(chunks)
    assert len(chunks) > 3  # reasoning and text are not held to the end
    assert reduce(add, chunks).text.endswith(DEFAULT_REPLACEMENT)
