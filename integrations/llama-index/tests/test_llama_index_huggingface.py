"""A guarded LLM on a local model: what it streams, counts and cuts, and that a cut stops the model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from random import Random
from typing import Any

import pytest
import tiny_models
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import LLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from ada_guard import ConfigError, ContentFlaggedError, Guard, Policy, Schedule
from ada_guard.checking import AskLookahead, Calibration, CheckContext, Checking
from ada_guard.local import LocalModel
from ada_guard.probe import LinearProbe
from ada_guard.reference import PROBE_FILE
from ada_guard.reference.data import chat, long_document, question, topics
from ada_guard.testing import UNSAFE, ScriptedGuard, ScriptedSidecar
from ada_guard.verdict import Decision, Verdict
from llama_index.llms.ada_guard import cut_of
from llama_index.llms.ada_guard.huggingface import AdaGuardHuggingFaceLLM
from llama_index.llms.ada_guard.testing import EventRecorder, LLMConformance

TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
QUESTION = "How do I bake bread?"
ASK = [ChatMessage(role=MessageRole.USER, content=QUESTION)]
EVERY_TOKEN = Policy(schedule=Schedule.every(1))
EVERY4 = Policy(schedule=Schedule.every(4))
both = pytest.mark.parametrize("how", ["sync", "async"])
AGENT_WARNINGS = (
    # LlamaIndex's own, when it builds and runs a workflow.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
)


def with_agents(test: Any) -> Any:
    """A test that runs an agent."""
    for mark in AGENT_WARNINGS:
        test = mark(test)
    return test


class City(BaseModel):
    """A city."""

    city: str = ""


class FlagFrom:
    """Passes, and flags from a depth on."""

    name = "flag-from"
    asks = frozenset({AskLookahead})

    def __init__(self, depth: int = 10**9) -> None:
        self.depth = depth
        self.checks = 0

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> FlagFrom:
        return self

    def check(self, context: CheckContext) -> Checking:
        self.checks += 1
        yield AskLookahead(max_tokens=1, undecided=lambda _: False)
        decision = Decision.FLAG if context.depth >= self.depth else Decision.PASS
        return Verdict(decision=decision, checker=self.name, depth=context.depth)


def load_reference() -> LocalModel:
    return LocalModel.from_pretrained("reference", probe=LinearProbe.load(PROBE_FILE))


def build_caller() -> LocalModel:
    """A random model whose template knows tools."""
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    return LocalModel(tiny_models.build("llama", max_position_embeddings=4096), tokenizer, name="caller")


@pytest.fixture(scope="module")
def reference() -> LocalModel:
    return load_reference()


@pytest.fixture(scope="module")
def caller() -> LocalModel:
    return build_caller()


def weather_tool(called: list[str]) -> FunctionTool:
    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return f"It rains in {city}."

    return FunctionTool.from_defaults(weather)


def question_of(kind: Any, seed: int) -> tuple[str, str]:
    """A question to the reference model, and the text of an answer to it."""
    rng = Random(seed)
    topic = rng.choice(topics(kind, "test"))
    return chat(question(topic, rng, long=False))[-1]["content"], long_document(topic, rng, 200)


def saying(model: LocalModel, text: str) -> dict[str, Any]:
    """Settings that make a model write a text and end: longer matches of what stands there weigh more."""
    ids = [*model.tokenizer.encode(text, add_special_tokens=False), model.tokenizer.eos_token_id]
    bias = [[ids[: at + 1], 100.0 * (at + 1) ** 2] for at in range(len(ids))]
    return {"temperature": 0, "max_tokens": len(ids) + 1, "generation": {"sequence_bias": bias}}


def llm_on(
    model: LocalModel, flag_from: int = 10**9, policy: Policy = EVERY_TOKEN, **settings: Any
) -> AdaGuardHuggingFaceLLM:
    guard = Guard(model, checker=FlagFrom(flag_from), policy=policy)
    return AdaGuardHuggingFaceLLM(guard=guard, **settings)


@contextmanager
def counted(model: LocalModel) -> Iterator[list[int]]:
    """The forward passes of a model while the block lasts."""
    assert model.shortcuts  # tried once for a model, in passes that are none of the block's
    passes: list[int] = []
    handle = model.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


def all_of(llm: LLM, how: str, messages: Sequence[ChatMessage] = ASK, **kwargs: Any) -> list[ChatResponse]:
    if how == "sync":
        return list(llm.stream_chat(messages, **kwargs))

    async def collect() -> list[ChatResponse]:
        return [response async for response in await llm.astream_chat(messages, **kwargs)]

    return asyncio.run(collect())


def whole(llm: LLM, how: str, messages: Sequence[ChatMessage] = ASK, **kwargs: Any) -> ChatResponse:
    if how == "sync":
        return llm.chat(messages, **kwargs)
    return asyncio.run(llm.achat(messages, **kwargs))


def calls_in(response: ChatResponse) -> list[tuple[str, Any]]:
    return [(b.tool_name, b.tool_kwargs) for b in response.message.blocks if isinstance(b, ToolCallBlock)]


# -- answers --------------------------------------------------------------------------------------------------------


@both
def test_a_benign_answer_is_the_models_own_with_its_counts(reference: LocalModel, how: str) -> None:
    asked, _ = question_of("benign", 4)
    llm = AdaGuardHuggingFaceLLM(guard=Guard(reference), temperature=0, max_tokens=30)
    messages = [{"role": "user", "content": asked}]
    plain = [*llm.guard.unguarded(messages, max_new_tokens=30, temperature=0)]
    text = "".join(getattr(event, "text", "") for event in plain)
    done: Any = plain[-1]
    asked_of_it = [ChatMessage(role="user", content=asked)]
    responses = all_of(llm, how, asked_of_it)
    assert text
    assert len(responses) > 3
    assert "".join(response.delta or "" for response in responses) == text
    assert whole(llm, how, asked_of_it).message.content == responses[-1].message.content == text
    sent, said = len(reference.encode(messages).ids), done.generated_tokens
    counts = {"prompt_tokens": sent, "completion_tokens": said, "total_tokens": sent + said}
    last = responses[-1]
    assert last.additional_kwargs == {**counts, "finish_reason": done.finish_reason}
    assert last.raw == {"model": "reference", "finish_reason": done.finish_reason, "usage": counts}
    assert all(response.raw is None for response in responses[:-1])
    assert last.message.additional_kwargs == {}


def test_llama_index_counts_the_tokens_that_the_model_counted(reference: LocalModel) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: [0] * 1000)
    llm = AdaGuardHuggingFaceLLM(
        guard=Guard(reference), temperature=0, max_tokens=12, callback_manager=CallbackManager([counter])
    )
    stated = llm.chat(ASK).additional_kwargs
    list(llm.stream_complete(QUESTION))
    assert [event.prompt_token_count for event in counter.llm_token_counts] == [stated["prompt_tokens"]] * 2
    assert [event.completion_token_count for event in counter.llm_token_counts] == [stated["completion_tokens"]] * 2


@both
def test_a_forbidden_prefill_is_cut_and_only_the_replacement_is_left(reference: LocalModel, how: str) -> None:
    asked, document = question_of("forbidden", 0)
    llm = AdaGuardHuggingFaceLLM(guard=Guard(reference), max_tokens=40)
    messages = [ChatMessage(role="user", content=asked), ChatMessage(role="assistant", content=document[:160])]
    [streamed] = all_of(llm, how, messages)
    for response in (streamed, whole(llm, how, messages)):
        assert response.message.content == llm.guard.policy.replacement_name
        entry = cut_of(response)
        assert entry is not None
        assert entry["verdict"] == "flag"
        assert cut_of(response.message) == entry
        assert response.additional_kwargs["finish_reason"] == "content_filter"
        assert response.additional_kwargs["completion_tokens"] == 0


@both
def test_a_cut_stops_the_model(caller: LocalModel, how: str) -> None:
    llm = llm_on(caller, 8, EVERY4, max_tokens=300, temperature=0)
    with counted(caller) as passes:
        responses = all_of(llm, how)
    assert len(passes) < 20
    replacement, last = llm.guard.policy.replacement_name, responses[-1]
    assert cut_of(last) is not None
    assert last.additional_kwargs["completion_tokens"] == 8
    assert (last.message.content, last.delta) == (replacement, replacement)
    shown = "".join(response.delta or "" for response in responses)
    assert shown.endswith(replacement)
    assert shown != replacement
    assert last.raw == {
        "model": "caller",
        "finish_reason": "content_filter",
        "usage": {
            name: last.additional_kwargs[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        },
    }
    assert whole(llm, how).message.content == replacement


@both
@pytest.mark.parametrize("kind", ["chat", "complete"])
def test_a_consumer_that_leaves_stops_the_model(caller: LocalModel, how: str, kind: str) -> None:
    llm = llm_on(caller, max_tokens=300, temperature=0)
    asked: Any = ASK if kind == "chat" else QUESTION

    async def leave() -> None:
        stream = await getattr(llm, f"astream_{kind}")(asked)
        async with aclosing(stream):
            await anext(stream)

    with counted(caller) as passes:
        if how == "sync":
            with closing(getattr(llm, f"stream_{kind}")(asked)) as stream:
                next(stream)
        else:
            asyncio.run(leave())
    assert len(passes) < 20


def test_a_task_that_is_cancelled_stops_the_model(caller: LocalModel) -> None:
    llm = llm_on(caller, max_tokens=3000, temperature=0)

    async def cancel(passes: list[int]) -> None:
        task = asyncio.create_task(llm.achat(ASK))
        while not passes:  # noqa: ASYNC110  # a forward hook in the worker's thread sets no event
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with counted(caller) as passes:
        asyncio.run(cancel(passes))
        stopped_at = len(passes)
        assert llm.chat(ASK, max_tokens=1)
    assert stopped_at < 1000
    assert len(passes) <= stopped_at + 4


def test_raise_and_halt_leave_nothing_in_the_place_of_the_answer(caller: LocalModel) -> None:
    raises = llm_on(caller, 8, Policy(schedule=Schedule.every(4), on_flag="raise"), max_tokens=20)
    with pytest.raises(ContentFlaggedError):
        raises.chat(ASK)
    with pytest.raises(ContentFlaggedError):
        list(raises.stream_complete(QUESTION))
    halts = llm_on(caller, 8, Policy(schedule=Schedule.every(4), on_flag="halt"), max_tokens=20)
    last = list(halts.stream_chat(ASK))[-1]
    assert last.delta == ""
    assert last.message.content, "a turn without content would be refused"
    assert cut_of(last) is not None


def test_a_completion_is_what_a_user_says(caller: LocalModel) -> None:
    llm = llm_on(caller, **saying(caller, "one two three"), completion_to_prompt=lambda prompt: f"Please: {prompt}")
    bare = llm_on(caller, **saying(caller, "one two three"))

    def sent(asked: Any) -> int:
        return int(asked.additional_kwargs["prompt_tokens"])

    assert llm.complete(QUESTION).text == "one two three"
    assert sent(llm.complete(QUESTION)) == sent(bare.complete(f"Please: {QUESTION}"))
    assert sent(llm.complete(QUESTION, formatted=True)) == sent(bare.complete(QUESTION)) == sent(bare.chat(ASK))
    assert llm.complete(QUESTION).raw == llm.chat([ChatMessage(content=f"Please: {QUESTION}")]).raw


@both
def test_a_completion_that_is_cut_is_the_replacement(caller: LocalModel, how: str) -> None:
    llm = llm_on(caller, 8, EVERY4, max_tokens=300, temperature=0)
    response = llm.complete(QUESTION) if how == "sync" else asyncio.run(llm.acomplete(QUESTION))
    assert response.text == llm.guard.policy.replacement_name
    assert cut_of(response) is not None
    assert list(llm.stream_complete(QUESTION))[-1].additional_kwargs == response.additional_kwargs


# -- settings -------------------------------------------------------------------------------------------------------


def test_settings_of_a_call_win_over_those_of_the_llm(caller: LocalModel) -> None:
    said = saying(caller, "one two three four")
    llm = llm_on(caller, **said)
    assert llm.chat(ASK).message.content == "one two three four"
    assert llm.chat(ASK, stop=[" three"]).message.content == "one two"
    assert llm.complete(QUESTION, max_tokens=3).text == "one"
    assert llm.chat(ASK, max_new_tokens=3).additional_kwargs["completion_tokens"] == 3
    short = llm_on(caller, temperature=0, max_tokens=2, generation={**said["generation"], "max_new_tokens": 4})
    assert short.chat(ASK).additional_kwargs["completion_tokens"] == short.metadata.num_output == 4
    assert short.chat(ASK, max_tokens=3).additional_kwargs["completion_tokens"] == 3
    assert llm_on(caller, **said, stop=[" two"]).chat(ASK).message.content == "one"
    seeded = llm_on(caller, temperature=1.5, seed=3, max_tokens=12)
    assert seeded.chat(ASK).message.content == seeded.chat(ASK).message.content
    assert seeded.chat(ASK).message.content != seeded.chat(ASK, seed=4).message.content


def test_an_unknown_setting_is_refused(caller: LocalModel) -> None:
    with pytest.raises(ConfigError, match="frequency_penalty"):
        llm_on(caller).chat(ASK, frequency_penalty=1.0)


def test_a_guard_without_a_local_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no local model"):
        AdaGuardHuggingFaceLLM(guard=Guard(sidecar=ScriptedSidecar()))


def test_from_pretrained_takes_settings_of_the_guard_the_model_and_the_llm() -> None:
    llm = AdaGuardHuggingFaceLLM.from_pretrained(
        "reference", check="rethink", policy=EVERY_TOKEN, dtype="float32", max_tokens=5, temperature=0
    )
    assert (llm.metadata.model_name, llm.max_tokens, llm.guard.policy) == ("reference", 5, EVERY_TOKEN)
    assert llm.guard.checker.name == "rethink"
    assert llm.chat(ASK).additional_kwargs["completion_tokens"] <= 5


def test_metadata_are_those_of_the_model_and_its_template(reference: LocalModel, caller: LocalModel) -> None:
    metadata = llm_on(caller, max_tokens=9).metadata
    assert (metadata.context_window, metadata.num_output, metadata.model_name) == (4096, 9, "caller")
    assert metadata.is_chat_model
    assert metadata.is_function_calling_model
    own = llm_on(reference, context_window=77, generation={"max_new_tokens": 8}).metadata
    assert (own.context_window, own.num_output, own.is_function_calling_model) == (77, 8, False)


def test_an_llm_that_is_shown_shows_no_guard(caller: LocalModel) -> None:
    llm = llm_on(caller)
    assert "guard" not in llm.to_dict()
    assert json.dumps([llm.to_dict(), llm.metadata.model_dump()])
    assert "checker" not in repr(llm)


# -- tools ----------------------------------------------------------------------------------------------------------


@both
def test_a_tool_call_comes_with_the_end_of_the_answer(caller: LocalModel, how: str) -> None:
    llm = llm_on(caller, **saying(caller, f"Let me look. {CALL}"))
    asked = llm._prepare_chat_with_tools([weather_tool([])], chat_history=ASK)
    responses = all_of(llm, how, asked["messages"], tools=asked["tools"])
    assert [bool(calls_in(response)) for response in responses] == [False] * (len(responses) - 1) + [True]
    assert responses[-1].message.content == "Let me look. "
    assert calls_in(responses[-1]) == [("weather", {"city": "Ulm"})]
    assert responses[-1].additional_kwargs["finish_reason"] == "stop"
    [call] = llm.get_tool_calls_from_response(responses[-1])
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Ulm"})
    assert call.tool_id


def test_without_tools_the_same_text_is_text(caller: LocalModel) -> None:
    response = llm_on(caller, **saying(caller, CALL)).chat(ASK)
    assert (response.message.content, calls_in(response)) == (CALL, [])


@pytest.mark.parametrize("depth", [15, 40, 72])
def test_a_call_that_is_cut_never_comes_out(caller: LocalModel, depth: int) -> None:
    llm = llm_on(caller, depth, **saying(caller, CALL))
    called: list[str] = []
    tools = [weather_tool(called)]
    streamed = list(llm.stream_chat_with_tools(tools, user_msg=QUESTION))
    for response in (streamed[-1], llm.chat_with_tools(tools, user_msg=QUESTION)):
        assert not calls_in(response)
        assert "invalid_tool_calls" not in response.additional_kwargs
        assert cut_of(response) is not None
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        with pytest.raises(ContentFlaggedError):
            llm.get_tool_calls_from_response(response)
    assert "tool_call" not in "".join(response.delta or "" for response in streamed)
    with pytest.raises(ContentFlaggedError):
        llm.predict_and_call(tools, user_msg=QUESTION)
    replaced = llm.predict_and_call(tools, user_msg=QUESTION, error_on_no_tool_call=False)
    assert replaced.response == llm.guard.policy.replacement_name
    assert called == []


def test_a_call_that_the_length_ends_never_runs(caller: LocalModel) -> None:
    llm = llm_on(caller, **saying(caller, CALL))
    called: list[str] = []
    tools = [weather_tool(called)]
    response = llm.chat_with_tools(tools, user_msg=QUESTION, max_tokens=58)
    assert response.additional_kwargs["finish_reason"] == "length"
    assert not calls_in(response)
    assert [call["name"] for call in response.additional_kwargs["invalid_tool_calls"]] == ["weather"]
    with pytest.raises(ValueError, match="no tool"):
        llm.predict_and_call(tools, user_msg=QUESTION, max_tokens=58)
    assert called == []


def test_half_a_call_from_elsewhere_is_none(caller: LocalModel) -> None:
    blocks = [TextBlock(text=""), ToolCallBlock(tool_name="weather", tool_kwargs='{"city": "Ul')]
    response = ChatResponse(message=ChatMessage(role="assistant", content=blocks))
    assert llm_on(caller).get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    blocks[1] = ToolCallBlock(tool_name="weather", tool_kwargs='{"city": "Ulm"}')
    response = ChatResponse(message=ChatMessage(role="assistant", content=blocks))
    assert llm_on(caller).get_tool_calls_from_response(response)[0].tool_kwargs == {"city": "Ulm"}


def test_one_call_is_kept_where_several_may_not_be(caller: LocalModel) -> None:
    llm = llm_on(caller, **saying(caller, CALL + CALL.replace("Ulm", "Bonn")))
    tools = [weather_tool([])]
    assert calls_in(llm.chat_with_tools(tools, user_msg=QUESTION)) == [("weather", {"city": "Ulm"})]
    parallel = llm.chat_with_tools(tools, user_msg=QUESTION, allow_parallel_tool_calls=True)
    assert [arguments for _, arguments in calls_in(parallel)] == [{"city": "Ulm"}, {"city": "Bonn"}]


def scripted(answer: Any, caller: LocalModel, **settings: Any) -> tuple[AdaGuardHuggingFaceLLM, list[Any]]:
    """An LLM whose model says what a function makes of the last message, and what it was shown."""
    seen: list[Any] = []

    class Answers(ScriptedGuard):
        def _open(self, conversation: Any, generation: object) -> Any:
            seen.append([*conversation.messages])
            self._answer = answer(conversation.messages[-1])
            return super()._open(conversation, generation)

    guard = Answers()
    guard.model.tokenizer = caller.tokenizer
    return AdaGuardHuggingFaceLLM(guard=guard, context_window=4096, **settings), seen


@with_agents
@pytest.mark.parametrize("streaming", [True, False])
def test_an_agent_runs_the_tool_and_shows_the_result_to_the_model(caller: LocalModel, streaming: bool) -> None:
    llm, seen = scripted(lambda last: "It rains." if last["role"] == "tool" else CALL, caller)
    called: list[str] = []

    async def ask() -> Any:
        return await FunctionAgent(llm=llm, tools=[weather_tool(called)], streaming=streaming).run(QUESTION)

    assert str(asyncio.run(ask())) == "It rains."
    assert called == ["Ulm"]
    shown = seen[1][-2]["tool_calls"][0]
    assert shown["function"] == {"name": "weather", "arguments": {"city": "Ulm"}}, "templates want an object"
    assert seen[1][-1]["tool_call_id"] == shown["id"]


@with_agents
@pytest.mark.parametrize(
    "written", [CALL.replace("Ulm", UNSAFE), CALL[:-20], CALL.replace('{"city": "Ulm"}', '["Ulm"]')]
)
def test_an_agent_never_runs_a_tool_that_was_cut_or_not_called_whole(caller: LocalModel, written: str) -> None:
    llm, seen = scripted(lambda _: written, caller)
    called: list[str] = []

    async def ask() -> tuple[Any, list[Any]]:
        handler = FunctionAgent(llm=llm, tools=[weather_tool(called)]).run(QUESTION)
        events = [event async for event in handler.stream_events()]
        return await handler, events

    with EventRecorder().listening() as recorder:
        output, events = asyncio.run(ask())
    assert called == []
    assert len(seen) == 1
    assert UNSAFE not in repr((output, events, recorder.events))


def test_a_call_cannot_be_forced_but_missed(caller: LocalModel) -> None:
    llm, tools = llm_on(caller, **saying(caller, "No.")), [weather_tool([])]
    for wish in ({"tool_required": True}, {"tool_choice": "weather"}, {"tool_choice": "none"}):
        with pytest.raises(ConfigError, match="made to call"):
            llm.chat_with_tools(tools, user_msg=QUESTION, **wish)
    assert llm.chat_with_tools(tools, user_msg=QUESTION, tool_choice="auto").message.content == "No."
    with pytest.raises(ValueError, match="no tool"):
        llm.predict_and_call(tools, user_msg=QUESTION, tool_required=True, error_on_no_tool_call=False)
    with pytest.raises(ValueError, match="no tool"):
        asyncio.run(llm.apredict_and_call(tools, user_msg=QUESTION, tool_required=True, error_on_no_tool_call=False))


def test_tools_that_the_template_ignores_are_refused(reference: LocalModel) -> None:
    llm = llm_on(reference)
    with pytest.raises(ConfigError, match="ignores tools"):
        llm.chat_with_tools([weather_tool([])], user_msg=QUESTION)


def test_structured_output_is_a_call_and_a_cut_is_an_error(caller: LocalModel) -> None:
    written = CALL.replace('"weather"', '"City"')
    prompt = PromptTemplate(QUESTION)
    assert llm_on(caller, **saying(caller, written)).structured_predict(City, prompt) == City(city="Ulm")
    cut = llm_on(caller, 20, **saying(caller, written))
    with pytest.raises(ContentFlaggedError):
        cut.structured_predict(City, prompt)
    with pytest.raises(ContentFlaggedError):
        asyncio.run(cut.astructured_predict(City, prompt))
    with pytest.raises(ContentFlaggedError):
        list(cut.stream_structured_predict(City, prompt))
    with pytest.raises(ContentFlaggedError):
        cut.as_structured_llm(City).chat(ASK)


def test_a_template_for_responses_reads_the_calls_itself(caller: LocalModel) -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {},
            "thinking": {"open": "<think>", "close": "</think>"},
            "tool_calls": {
                "open": "<call>",
                "close": "</call>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
        },
    }
    model = LocalModel(caller.model, tokenizer)
    said = '<think>Hm.</think>Let me look.<call>{"name": "weather", "arguments": {"city": "Ulm"}}</call>'
    responses = list(llm_on(model, **saying(model, said)).stream_chat_with_tools([weather_tool([])], user_msg=QUESTION))
    assert [response.additional_kwargs.get("thinking_delta") for response in responses] == ["Hm.", None, None]
    assert [block.block_type for block in responses[-1].message.blocks] == ["thinking", "text", "tool_call"]
    assert responses[-1].message.content == "Let me look."


def test_importing_the_modules_loads_no_torch() -> None:
    code = (
        "import sys, llama_index.llms.ada_guard.huggingface, llama_index.llms.ada_guard.endpoint;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


# -- conformance ----------------------------------------------------------------------------------------------------


class Noted(LocalModel):
    """A model that keeps what it was sent."""

    def __init__(self, model: LocalModel) -> None:
        super().__init__(model.model, model.tokenizer, spec=model.spec, name=model.name)
        self.sent: list[str] = []

    def encode(self, messages: Any, **kwargs: Any) -> Any:
        self.sent.append("\n".join(message["content"] for message in messages))
        return super().encode(messages, **kwargs)


class Conforming(LLMConformance):
    """Each token of an answer is a check, and counted."""

    model: LocalModel

    def make_llm(self, **settings: Any) -> LLM:
        return llm_on(Noted(self.model), **self.answers(), **settings)

    def answers(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 20}

    def steps(self, llm: LLM) -> int | None:
        assert isinstance(llm, AdaGuardHuggingFaceLLM)
        checker: Any = llm.guard.checker
        return int(checker.checks)

    def prompts(self, llm: LLM) -> Sequence[str] | None:
        assert isinstance(llm, AdaGuardHuggingFaceLLM)
        model: Any = llm.guard.model
        return list(model.sent)


class TestReferenceModel(Conforming):
    prompt = question_of("benign", 4)[0]

    @pytest.fixture(autouse=True)
    def _model(self, reference: LocalModel) -> None:
        self.model = reference


class TestModelThatCallsTools(Conforming):
    @pytest.fixture(autouse=True)
    def _model(self, caller: LocalModel) -> None:
        self.model = caller

    def answers(self) -> dict[str, Any]:
        return saying(self.model, "one two three four five six")

    def make_calling_llm(self, name: str, arguments: dict[str, Any]) -> LLM | None:
        written = json.dumps({"name": name, "arguments": arguments})
        return llm_on(self.model, **saying(self.model, f"<tool_call>{written}</tool_call>"))
