"""A guarded chat model on a local model: what it streams, counts and cuts, and that a cut stops the model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from random import Random
from typing import Any

import pytest
import tiny_models
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from ada_guard import ConfigError, ContentFlaggedError, Guard, Policy, Schedule
from ada_guard.checking import AskLookahead, Calibration, CheckContext, Checking
from ada_guard.local import LocalModel
from ada_guard.probe import LinearProbe
from ada_guard.reference import PROBE_FILE
from ada_guard.reference.data import chat, long_document, question, topics
from ada_guard.testing import UNSAFE, ScriptedGuard, ScriptedSidecar
from ada_guard.verdict import Decision, Verdict
from langchain_ada_guard.cut import cut_of, refusal_error
from langchain_ada_guard.huggingface import ChatAdaGuardHuggingFace

TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
ASK = [HumanMessage("How do I bake bread?")]
EVERY_TOKEN = Policy(schedule=Schedule.every(1))


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


class City(BaseModel):
    """A city."""

    city: str


class FlagFrom:
    """Passes, and flags from a depth on."""

    name = "flag-from"
    asks = frozenset({AskLookahead})

    def __init__(self, depth: int = 10**9) -> None:
        self.depth = depth

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> FlagFrom:
        return self

    def check(self, context: CheckContext) -> Checking:
        yield AskLookahead(max_tokens=1, undecided=lambda _: False)
        decision = Decision.FLAG if context.depth >= self.depth else Decision.PASS
        return Verdict(decision=decision, checker=self.name, depth=context.depth)


@pytest.fixture(scope="module")
def reference() -> LocalModel:
    return LocalModel.from_pretrained("reference", probe=LinearProbe.load(PROBE_FILE))


@pytest.fixture(scope="module")
def caller() -> LocalModel:
    """A random model whose template knows tools."""
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    return LocalModel(tiny_models.build("llama", max_position_embeddings=4096), tokenizer, name="caller")


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


def chat_on(model: LocalModel, flag_from: int = 10**9, policy: Policy = EVERY_TOKEN, **settings: Any) -> Any:
    guard = Guard(model, checker=FlagFrom(flag_from), policy=policy)
    return ChatAdaGuardHuggingFace(guard=guard, **settings)


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


def whole(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


async def listed(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


def test_a_benign_answer_is_the_models_own_with_its_counts(reference: LocalModel) -> None:
    asked, _ = question_of("benign", 4)
    model = ChatAdaGuardHuggingFace(guard=Guard(reference), temperature=0, max_tokens=30)
    messages = [{"role": "user", "content": asked}]
    plain = [*model.guard.unguarded(messages, max_new_tokens=30, temperature=0)]
    text = "".join(getattr(event, "text", "") for event in plain)
    chunks = [*model.stream(asked)]
    streamed, invoked = whole(chunks), model.invoke(asked)
    assert text
    assert streamed.content == invoked.content == text
    assert len(chunks) > 3
    done: Any = plain[-1]
    assert streamed.usage_metadata == invoked.usage_metadata
    assert streamed.usage_metadata == {
        "input_tokens": len(reference.encode(messages).ids),
        "output_tokens": done.generated_tokens,
        "total_tokens": len(reference.encode(messages).ids) + done.generated_tokens,
    }
    assert streamed.response_metadata == {"finish_reason": done.finish_reason, "model_name": "reference"}
    assert chunks[-1].chunk_position == "last"
    assert asyncio.run(model.ainvoke(asked)).content == text
    assert whole(asyncio.run(listed(model.astream(asked)))).content == text


def test_a_forbidden_prefill_is_cut_and_only_the_replacement_is_left(reference: LocalModel) -> None:
    asked, document = question_of("forbidden", 0)
    model = ChatAdaGuardHuggingFace(guard=Guard(reference), max_tokens=40)
    messages = [HumanMessage(asked), AIMessage(document[:160])]
    [chunk] = model.stream(messages)
    for answer in (chunk, model.invoke(messages), asyncio.run(model.ainvoke(messages))):
        assert answer.content == model.guard.policy.replacement_name
        entry = cut_of(answer)
        assert entry is not None
        assert entry["verdict"] == "flag"
        assert answer.response_metadata["finish_reason"] == "content_filter"
        assert answer.response_metadata["model_name"] == "reference"
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == 0


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_cut_stops_the_model(caller: LocalModel, how: str) -> None:
    model = chat_on(caller, 8, Policy(schedule=Schedule.every(4)), max_tokens=300, temperature=0)
    with counted(caller) as passes:
        chunks = [*model.stream(ASK)] if how == "sync" else asyncio.run(listed(model.astream(ASK)))
    assert len(passes) < 20
    assert cut_of(chunks[-1]) is not None
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].usage_metadata["output_tokens"] == 8
    text = whole(chunks).text
    assert text.endswith(model.guard.policy.replacement_name)
    invoked = model.invoke(ASK)
    assert invoked.content == model.guard.policy.replacement_name
    assert text != invoked.content


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_consumer_that_leaves_stops_the_model(caller: LocalModel, how: str) -> None:
    model = chat_on(caller, max_tokens=300, temperature=0)

    async def leave() -> None:
        async with aclosing(model.astream(ASK)) as stream:
            await anext(stream)

    with counted(caller) as passes:
        if how == "sync":
            with closing(model.stream(ASK)) as stream:
                next(stream)
        else:
            asyncio.run(leave())
    assert len(passes) < 20


def test_raise_and_halt_leave_nothing_in_the_place_of_the_answer(caller: LocalModel) -> None:
    raises = chat_on(caller, 8, Policy(schedule=Schedule.every(4), on_flag="raise"), max_tokens=20)
    with pytest.raises(ContentFlaggedError):
        raises.invoke(ASK)
    halts = chat_on(caller, 8, Policy(schedule=Schedule.every(4), on_flag="halt"), max_tokens=20)
    last = [*halts.stream(ASK)][-1]
    assert (last.content, last.chunk_position) == ("", "last")
    assert cut_of(last) is not None


def test_settings_of_a_call_win_over_those_of_the_model(caller: LocalModel) -> None:
    said = saying(caller, "one two three four")
    model = chat_on(caller, **said)
    assert model.invoke(ASK).content == "one two three four"
    assert model.invoke(ASK, stop=[" three"]).content == "one two"
    assert model.bind(max_tokens=3).invoke(ASK).content == "one"
    assert model.invoke(ASK, max_new_tokens=3).usage_metadata["output_tokens"] == 3
    said["generation"]["max_new_tokens"] = 3
    assert chat_on(caller, **said).invoke(ASK).content == "one"
    assert chat_on(caller, **said).invoke(ASK, max_tokens=30).content == "one two three four"
    del said["generation"]["max_new_tokens"]
    own = chat_on(caller, **said, stop=[" two"])
    assert own.invoke(ASK).content == "one"
    assert own._get_ls_params()["ls_stop"] == [" two"]
    seeded = chat_on(caller, temperature=1.5, seed=3, max_tokens=12)
    assert seeded.invoke(ASK).content == seeded.invoke(ASK).content
    assert seeded.invoke(ASK).content != seeded.invoke(ASK, seed=4).content


def test_an_unknown_setting_is_refused(caller: LocalModel) -> None:
    with pytest.raises(ConfigError, match="frequency_penalty"):
        chat_on(caller).invoke(ASK, frequency_penalty=1.0)
    with pytest.raises(ConfigError, match="model"):
        chat_on(caller).invoke(ASK, model="another")


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"max_tokens": "many"}, "max_new_tokens must be a whole number"),
        ({"max_tokens": 2.5}, "max_new_tokens must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"stop": 3}, "stop must be"),
        ({"stop": [3]}, "stop string"),
    ],
)
def test_a_setting_of_a_wrong_type_is_refused(caller: LocalModel, asked: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        chat_on(caller).invoke(ASK, **asked)


def test_a_setting_that_nothing_knows_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="does not take these settings: max_token"):
        ChatAdaGuardHuggingFace.from_pretrained("reference", max_token=3)


def test_a_guard_without_a_local_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no local model"):
        ChatAdaGuardHuggingFace(guard=Guard(sidecar=ScriptedSidecar()))


def test_from_pretrained_takes_settings_of_the_guard_the_model_and_the_chat() -> None:
    model = ChatAdaGuardHuggingFace.from_pretrained(
        "reference", check="rethink", policy=EVERY_TOKEN, dtype="float32", max_tokens=5, temperature=0
    )
    assert (model.model_name, model.max_tokens, model.guard.policy) == ("reference", 5, EVERY_TOKEN)
    assert model.guard.checker.name == "rethink"
    assert model._get_ls_params() == {
        "ls_provider": "huggingface",
        "ls_model_type": "chat",
        "ls_model_name": "reference",
        "ls_temperature": 0,
        "ls_max_tokens": 5,
    }
    used = model.invoke("Hello").usage_metadata
    assert used is not None
    assert used["output_tokens"] <= 5


def test_tokens_are_counted_as_the_model_counts_them(reference: LocalModel) -> None:
    model = ChatAdaGuardHuggingFace(guard=Guard(reference))
    assert model.get_token_ids("How are you?") == reference.tokenizer.encode("How are you?", add_special_tokens=False)
    messages: list[BaseMessage] = [HumanMessage("How are you?")]
    sent = model.invoke(messages, max_tokens=1).usage_metadata
    assert sent is not None
    assert model.get_num_tokens_from_messages(messages) == sent["input_tokens"]
    assert model.get_num_tokens_from_messages([AIMessage("Fine.")]) > model.get_num_tokens("Fine.")
    own = ChatAdaGuardHuggingFace(guard=Guard(reference), custom_get_token_ids=lambda text: [0] * len(text))
    assert own.get_num_tokens("four") == 4


def test_the_key_of_the_cache_holds_guard_and_settings(caller: LocalModel) -> None:
    models = [chat_on(caller), chat_on(caller, seed=1), chat_on(caller, generation={"top_p": 0.5})]
    models += [chat_on(caller, policy=Policy()), chat_on(caller, template_kwargs={"enable_thinking": True})]
    assert len({model._get_llm_string() for model in models}) == len(models)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_tool_call_comes_with_the_end_of_the_answer(caller: LocalModel, how: str) -> None:
    model = chat_on(caller, **saying(caller, f"Let me look. {CALL}")).bind_tools([weather])
    chunks = [*model.stream(ASK)] if how == "sync" else asyncio.run(listed(model.astream(ASK)))
    at = [index for index, chunk in enumerate(chunks) if chunk.tool_call_chunks]
    assert at == [len(chunks) - 2]
    message = whole(chunks)
    assert message.content == "Let me look. "
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("weather", {"city": "Ulm"})]
    assert message.response_metadata["finish_reason"] == "stop"
    assert model.invoke(ASK).tool_calls[0]["args"] == {"city": "Ulm"}


def test_without_tools_the_same_text_is_text(caller: LocalModel) -> None:
    message = chat_on(caller, **saying(caller, CALL)).invoke(ASK)
    assert (message.content, message.tool_calls) == (CALL, [])


@pytest.mark.parametrize("depth", [15, 40, 72])
def test_a_call_that_is_cut_never_comes_out(caller: LocalModel, depth: int) -> None:
    model = chat_on(caller, depth, **saying(caller, CALL))
    for message in (whole([*model.bind_tools([weather]).stream(ASK)]), model.bind_tools([weather]).invoke(ASK)):
        assert not message.tool_calls
        assert not message.invalid_tool_calls
        assert "tool_call" not in message.content
        assert cut_of(message) is not None


def test_a_call_that_the_length_ends_is_invalid(caller: LocalModel) -> None:
    message = chat_on(caller, **saying(caller, CALL)).bind_tools([weather]).invoke(ASK, max_tokens=58)
    assert message.response_metadata["finish_reason"] == "length"
    assert not message.tool_calls
    assert [call["name"] for call in message.invalid_tool_calls] == ["weather"]


def test_an_agent_runs_the_tool_and_shows_the_result_to_the_model(caller: LocalModel) -> None:
    seen: list[Any] = []

    class Answers(ScriptedGuard):
        def _open(self, conversation: Any, generation: object) -> Any:
            seen.append([*conversation.messages])
            self._answer = "It rains." if conversation.messages[-1]["role"] == "tool" else CALL
            return super()._open(conversation, generation)

    guard = Answers()
    guard.model.tokenizer = caller.tokenizer
    agent: Any = create_agent(ChatAdaGuardHuggingFace(guard=guard), [weather])
    messages = agent.invoke({"messages": ASK})["messages"]
    assert messages[-1].content == "It rains."
    assert [message.content for message in messages if isinstance(message, ToolMessage)] == ["It rains in Ulm."]
    shown = seen[1][1]["tool_calls"][0]
    assert shown["function"] == {"name": "weather", "arguments": {"city": "Ulm"}}, "templates want an object"
    assert seen[1][2]["tool_call_id"] == shown["id"]


def test_an_agent_never_runs_a_tool_that_was_cut(caller: LocalModel) -> None:
    guard = ScriptedGuard(CALL.replace("Ulm", UNSAFE))
    guard.model.tokenizer = caller.tokenizer
    agent: Any = create_agent(ChatAdaGuardHuggingFace(guard=guard), [weather])
    messages = agent.invoke({"messages": ASK})["messages"]
    assert [type(message) for message in messages] == [HumanMessage, AIMessage]
    assert UNSAFE not in repr(messages)


def test_structured_output_is_a_call_and_a_cut_is_an_error(caller: LocalModel) -> None:
    written = CALL.replace('"weather"', '"City"')
    model = chat_on(caller, **saying(caller, written))
    assert model.with_structured_output(City).invoke(ASK) == City(city="Ulm")
    raw: Any = model.with_structured_output(City, include_raw=True).invoke(ASK)
    assert raw["parsed"] == City(city="Ulm")
    cut = chat_on(caller, 20, **saying(caller, written))
    with pytest.raises(type(refusal_error(AIMessage("")))):
        cut.with_structured_output(City).invoke(ASK)
    raw = cut.with_structured_output(City, include_raw=True).invoke(ASK)
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], type(refusal_error(AIMessage(""))))


def test_tools_that_the_template_ignores_are_refused(reference: LocalModel) -> None:
    with pytest.raises(ConfigError, match="ignores tools"):
        ChatAdaGuardHuggingFace(guard=Guard(reference)).bind_tools([weather])


@pytest.mark.parametrize("choice", ["any", "required", "weather", "none"])
def test_a_choice_that_cannot_be_forced_is_refused(caller: LocalModel, choice: str) -> None:
    model = chat_on(caller)
    with pytest.raises(ConfigError, match="tool_choice"):
        model.bind_tools([weather], tool_choice=choice)
    assert model.bind_tools([weather], tool_choice="auto")


def test_arguments_stay_text_for_a_template_that_wants_them_so(caller: LocalModel) -> None:
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE.replace("c.function.arguments | tojson", "': ' + c.function.arguments")
    model = ChatAdaGuardHuggingFace(guard=Guard(LocalModel(caller.model, tokenizer)))
    call = {"name": "weather", "args": {"city": "Ulm"}, "id": "1"}
    talk = [*ASK, AIMessage("", tool_calls=[call]), ToolMessage("Rain.", tool_call_id="1")]
    assert model._template_messages(talk, None)[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Ulm"}'


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, langchain_ada_guard.huggingface, langchain_ada_guard.endpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
