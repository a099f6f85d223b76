from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer, ChatSummaryMemoryBuffer, Memory
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.tools import FunctionTool
from sqlalchemy.ext.asyncio import create_async_engine

from ada_guard import ConfigError, ContentFlaggedError, Guard, Policy
from ada_guard.policy import DEFAULT_REPLACEMENT
from ada_guard.sidecar.protocol import Conversation
from ada_guard.testing import UNSAFE, ScriptedGuard, ScriptedSidecar
from llama_index.llms.ada_guard import AdaGuardLLM
from llama_index.llms.ada_guard.engines import Context, guard_chat_engine
from llama_index.llms.ada_guard.held import held_llms
from llama_index.llms.ada_guard.testing import ScriptedLLM, word_responses

SAFE = "one two three four " * 20
TURNING = f"{SAFE}{UNSAFE} " + "much more of it " * 40
RELEASED = " ".join(SAFE.split()[:75])
BENIGN = "a calm answer in a few words"
QUESTION = "What do the papers say?"
HISTORY = [
    ChatMessage(role=MessageRole.USER, content="Hello."),
    ChatMessage(role=MessageRole.ASSISTANT, content="Hello to you."),
]


def index() -> VectorStoreIndex:
    return VectorStoreIndex.from_documents([Document(text="Kites fly.")], embed_model=MockEmbedding(embed_dim=4))


def memory() -> ChatMemoryBuffer:
    return ChatMemoryBuffer.from_defaults(chat_history=list(HISTORY))


ENGINES: dict[str, Callable[[ScriptedLLM, BaseMemory], BaseChatEngine]] = {
    "simple": lambda llm, kept: SimpleChatEngine.from_defaults(llm=llm, memory=kept),
    "context": lambda llm, kept: ContextChatEngine.from_defaults(
        retriever=index().as_retriever(), llm=llm, memory=kept
    ),
    "condense plus context": lambda llm, kept: CondensePlusContextChatEngine.from_defaults(
        retriever=index().as_retriever(), llm=llm, memory=kept
    ),
    "condense question": lambda llm, kept: CondenseQuestionChatEngine.from_defaults(
        query_engine=index().as_query_engine(llm=llm, streaming=True), llm=llm, memory=kept
    ),
}
CONTEXTS: list[Context] = ["shown", "hidden"]


def conversing(text: str) -> ScriptedLLM:
    """Rephrases a question in a few words, and answers it with a text."""

    def script(messages: Sequence[ChatMessage]) -> Sequence[ChatResponse]:
        condenses = any("standalone question" in (message.content or "") for message in messages)
        return word_responses("What then?" if condenses else text)

    return ScriptedLLM(script=script)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ENGINES)
def test_a_stream_that_is_cut_leaves_a_clean_memory_and_a_stopped_llm(name: str, context: Context) -> None:
    llm, kept = conversing(TURNING), memory()
    engine = guard_chat_engine(ENGINES[name](llm, kept), ScriptedGuard(), context=context)
    said = "".join(engine.stream_chat(QUESTION).response_gen)
    assert said == RELEASED + DEFAULT_REPLACEMENT
    assert [message.content for message in kept.get_all()][2:] == [QUESTION, said]
    assert llm.given < len(TURNING.split())


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ENGINES)
async def test_an_async_stream_that_is_cut_leaves_a_clean_memory_and_a_stopped_llm(name: str, context: Context) -> None:
    llm, kept = conversing(TURNING), memory()
    engine = guard_chat_engine(ENGINES[name](llm, kept), ScriptedGuard(), context=context)
    response = await engine.astream_chat(QUESTION)
    said = "".join([text async for text in response.async_response_gen()])
    assert said == RELEASED + DEFAULT_REPLACEMENT
    assert [message.content for message in kept.get_all()][2:] == [QUESTION, said]
    assert llm.given < len(TURNING.split())


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "condense question"])
async def test_a_whole_answer_that_is_cut_is_its_replacement_in_memory_too(name: str) -> None:
    for ask in (lambda engine: asyncio.to_thread(engine.chat, QUESTION), lambda engine: engine.achat(QUESTION)):
        llm, kept = conversing(TURNING), memory()
        engine = guard_chat_engine(ENGINES[name](llm, kept), ScriptedGuard())
        assert str(await ask(engine)) == DEFAULT_REPLACEMENT
        assert kept.get_all()[-1].content == DEFAULT_REPLACEMENT
        assert llm.given < len(TURNING.split())


@pytest.mark.parametrize("name", ENGINES)
def test_a_benign_conversation_is_that_of_the_unguarded_engine(name: str) -> None:
    kept = [memory(), memory()]
    engine = ENGINES[name](conversing(BENIGN), kept[0])
    guarded = guard_chat_engine(ENGINES[name](conversing(BENIGN), kept[1]), ScriptedGuard())
    for asked in (QUESTION, "And then?"):
        assert "".join(guarded.stream_chat(asked).response_gen) == "".join(engine.stream_chat(asked).response_gen)
    assert kept[1].get_all() == kept[0].get_all()


def test_the_conversation_goes_on_in_one_memory() -> None:
    engine = ENGINES["simple"](conversing(BENIGN), memory())
    guarded = guard_chat_engine(engine, ScriptedGuard())
    guarded.chat(QUESTION)
    assert len(engine.chat_history) == 4
    assert guarded.chat_history == engine.chat_history
    guarded.reset()
    assert engine.chat_history == []


def test_a_memory_that_asks_an_llm_is_guarded_and_keeps_its_store() -> None:
    def script(messages: Sequence[ChatMessage]) -> Sequence[ChatResponse]:
        summarises = any("concise summary" in (message.content or "") for message in messages)
        return word_responses(TURNING if summarises else BENIGN)

    llm = ScriptedLLM(script=script)
    kept = ChatSummaryMemoryBuffer.from_defaults(
        llm=llm,
        token_limit=12,
        tokenizer_fn=str.split,
        chat_store=SimpleChatStore(),
        chat_history=[*HISTORY, *HISTORY, *HISTORY],
    )
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=kept)
    guarded = guard_chat_engine(engine, ScriptedGuard())
    guarded.chat(QUESTION)
    guarded.chat("And then?")
    assert kept.llm is llm
    assert guarded.chat_history == engine.chat_history
    texts = [message.content or "" for message in guarded.chat_history]
    assert any(DEFAULT_REPLACEMENT in text for text in texts)
    assert not any(UNSAFE in text for text in texts)


async def test_a_memory_of_blocks_holds_nothing_of_what_was_cut() -> None:
    database = create_async_engine("sqlite+aiosqlite:///:memory:")
    kept = Memory.from_defaults(session_id="one", async_engine=database)
    engine = guard_chat_engine(ENGINES["simple"](conversing(TURNING), kept), ScriptedGuard())
    response = await engine.astream_chat(QUESTION)
    said = "".join([text async for text in response.async_response_gen()])
    texts = [message.content for message in await kept.aget_all()]
    await database.dispose()
    assert texts == [QUESTION, said]
    assert UNSAFE not in said


class Remembering(ScriptedSidecar):
    """Keeps what it is shown as the conversation."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []

    def open(self, conversation: Conversation, **settings: Any) -> Any:
        self.shown.append("\n".join(str(message["content"]) for message in conversation.plain_messages()))
        return super().open(conversation, **settings)


@pytest.mark.parametrize("name", ENGINES)
async def test_answers_are_judged_with_all_the_llm_was_sent_or_against_the_latest_message(name: str) -> None:
    expected_texts: dict[Context, str] = {"shown": "Kites fly.", "hidden": QUESTION}
    for context, expected in expected_texts.items():
        sidecar = Remembering()
        engine = ENGINES[name](conversing(BENIGN), memory())
        guarded = guard_chat_engine(engine, Guard.for_sidecar(sidecar), context=context)
        "".join(guarded.stream_chat(QUESTION).response_gen)
        response = await guarded.astream_chat(QUESTION)
        "".join([text async for text in response.async_response_gen()])
        if context == "hidden":
            assert set(sidecar.shown) == {expected}
        elif name != "simple":
            assert any(expected in text for text in sidecar.shown)
            assert any("Hello to you." in text for text in sidecar.shown)


def test_two_conversations_at_a_time_do_not_see_each_other() -> None:
    guard = ScriptedGuard()
    kept = [memory(), memory()]
    responses = [
        guard_chat_engine(ENGINES["context"](conversing(text), one), guard, context="hidden").stream_chat(text[:7])
        for text, one in zip((SAFE, TURNING), kept, strict=True)
    ]
    said = ["".join(response.response_gen) for response in responses]
    assert said == [SAFE.strip(), RELEASED + DEFAULT_REPLACEMENT]
    assert [one.get_all()[-1].content for one in kept] == said


# LlamaIndex's thread raises its error once more where nobody catches it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ENGINES)
def test_an_error_on_a_flag_reaches_the_reader_and_leaves_no_answer_in_memory(name: str) -> None:
    kept = memory()
    guard = ScriptedGuard(policy=Policy(on_flag="raise"))
    response = guard_chat_engine(ENGINES[name](conversing(TURNING), kept), guard).stream_chat(QUESTION)
    with pytest.raises(ContentFlaggedError):
        list(response.response_gen)
    assert not any(UNSAFE in (message.content or "") for message in kept.get_all())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_llm_reaches_the_reader() -> None:
    llm = ScriptedLLM.saying("", error=TimeoutError("out of time"))
    response = guard_chat_engine(ENGINES["simple"](llm, memory()), ScriptedGuard()).stream_chat(QUESTION)
    with pytest.raises(TimeoutError):
        list(response.response_gen)


def test_a_chat_engine_without_an_llm_is_refused() -> None:
    class Parrot(BaseChatEngine):
        chat_history: list[ChatMessage] = []  # noqa: RUF012  # read only

        def reset(self) -> None: ...

        def chat(self, message: str, chat_history: Any = None) -> Any: ...

        def stream_chat(self, message: str, chat_history: Any = None) -> Any: ...

        async def achat(self, message: str, chat_history: Any = None) -> Any: ...

        async def astream_chat(self, message: str, chat_history: Any = None) -> Any: ...

    with pytest.raises(ConfigError, match="AdaGuardLLM"):
        guard_chat_engine(Parrot(), ScriptedGuard())


# LlamaIndex looks at every attribute of an agent, deprecated ones of pydantic too.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")
async def test_an_agent_within_an_engine_and_the_engines_within_its_tools_are_guarded() -> None:
    llm = conversing(TURNING)
    query_engine = index().as_query_engine(llm=llm)

    def look_up(question: str) -> str:
        """Looks something up."""
        return str(query_engine.query(question))

    engine = ENGINES["simple"](llm, memory())
    engine.agent = FunctionAgent(llm=llm, tools=[FunctionTool.from_defaults(look_up)])  # type: ignore[attr-defined]  # anything may be kept on an engine
    agent = guard_chat_engine(engine, ScriptedGuard()).agent  # type: ignore[attr-defined]  # as above
    assert isinstance(agent.llm, AdaGuardLLM)
    assert str(agent.tools[0].call(QUESTION)) == DEFAULT_REPLACEMENT
    assert str(await agent.tools[0].acall(QUESTION)) == DEFAULT_REPLACEMENT
    assert str(await agent.run(QUESTION)) == DEFAULT_REPLACEMENT
    assert UNSAFE in look_up(QUESTION)
    assert held_llms(engine).wanted == [llm]
