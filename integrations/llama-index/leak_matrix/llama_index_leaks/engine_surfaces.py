"""The surfaces of query engines and chat engines: what they stream, answer and remember."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from llama_index_leaks.plants import IN_TEXT
from llama_index_leaks.positions import Setup
from llama_index_leaks.record import Record
from llama_index_leaks.surface import ASK, AsyncUse, Surface, Use, all_done, all_threads_done

__all__ = ["ENGINE_SURFACES"]


class _TwoNodes(BaseRetriever):
    """Finds the same two texts for every question."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        nodes = [TextNode(id_=str(at), text=f"Kite {at} is red.") for at in (1, 2)]
        return [NodeWithScore(node=node, score=1.0) for node in nodes]


def _plain(setup: Setup, mode: ResponseMode, *, streaming: bool) -> BaseQueryEngine:
    synthesizer = get_response_synthesizer(llm=setup.llm, response_mode=mode, streaming=streaming)
    return RetrieverQueryEngine(_TwoNodes(), synthesizer)


def _tool(setup: Setup, *, streaming: bool = False) -> QueryEngineTool:
    engine = _plain(setup, ResponseMode.COMPACT, streaming=streaming)
    return QueryEngineTool.from_defaults(engine, name="docs", description="knows of kites")


def _sub_question(setup: Setup, *, streaming: bool) -> BaseQueryEngine:
    return SubQuestionQueryEngine.from_defaults(
        [_tool(setup)],
        llm=setup.llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=setup.llm),
        response_synthesizer=get_response_synthesizer(llm=setup.llm, streaming=streaming, use_async=True),
        verbose=False,
        use_async=False,
    )


def _router(setup: Setup, *, streaming: bool) -> BaseQueryEngine:
    return RouterQueryEngine(
        selector=LLMSingleSelector.from_defaults(llm=setup.llm),
        query_engine_tools=[_tool(setup, streaming=streaming)],
        llm=setup.llm,
    )


def _of_mode(mode: ResponseMode) -> Callable[..., BaseQueryEngine]:
    return lambda setup, *, streaming: _plain(setup, mode, streaming=streaming)


def _query(make: Callable[..., BaseQueryEngine]) -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        response = setup.query_engine(make(setup, streaming=False)).query(ASK)
        record.see("source nodes", [node.model_dump() for node in response.source_nodes], response.metadata)
        record.end(setup.app.whole(str(response)))

    async def ause(setup: Setup, record: Record) -> None:
        response = await setup.query_engine(make(setup, streaming=False)).aquery(ASK)
        record.see("source nodes", [node.model_dump() for node in response.source_nodes], response.metadata)
        record.end(setup.app.whole(str(response)))

    return use, ause


def _streamed_query(make: Callable[..., BaseQueryEngine]) -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        response: Any = setup.query_engine(make(setup, streaming=True)).query(ASK)
        parts = []
        for part in setup.app.stream(response.response_gen):
            record.see("a part", part)
            parts.append(part)
        record.see("source nodes", [node.model_dump() for node in response.source_nodes], response.metadata)
        record.end("".join(parts))

    async def ause(setup: Setup, record: Record) -> None:
        response: Any = await setup.query_engine(make(setup, streaming=True)).aquery(ASK)
        parts = []
        async for part in setup.app.astream(response.async_response_gen()):
            record.see("a part", part)
            parts.append(part)
        record.see("source nodes", [node.model_dump() for node in response.source_nodes], response.metadata)
        record.end("".join(parts))

    return use, ause


def _memory() -> ChatMemoryBuffer:
    said = [
        ChatMessage(role=MessageRole.USER, content="Hello"),
        ChatMessage(role=MessageRole.ASSISTANT, content="Hello, what can I do?"),
    ]
    return ChatMemoryBuffer.from_defaults(chat_history=said, token_limit=100_000, tokenizer_fn=str.split)


def _simple(setup: Setup) -> BaseChatEngine:
    return SimpleChatEngine.from_defaults(llm=setup.llm, memory=_memory())


def _context(setup: Setup) -> BaseChatEngine:
    return ContextChatEngine.from_defaults(_TwoNodes(), llm=setup.llm, memory=_memory())


def _condense(setup: Setup) -> BaseChatEngine:
    return CondensePlusContextChatEngine.from_defaults(_TwoNodes(), llm=setup.llm, memory=_memory())


def _remembered(engine: BaseChatEngine, record: Record) -> None:
    for message in engine.chat_history:
        record.see("memory", message)
        record.outcomes.append(message.model_dump())


def _chat(make: Callable[[Setup], BaseChatEngine]) -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        engine = setup.chat_engine(make(setup))
        record.end(setup.app.whole(engine.chat(ASK).response))
        _remembered(engine, record)

    async def ause(setup: Setup, record: Record) -> None:
        engine = setup.chat_engine(make(setup))
        answer = await engine.achat(ASK)
        record.end(setup.app.whole(answer.response))
        _remembered(engine, record)

    return use, ause


def _streamed_chat(make: Callable[[Setup], BaseChatEngine]) -> tuple[Use, AsyncUse]:
    def use(setup: Setup, record: Record) -> None:
        engine, parts = setup.chat_engine(make(setup)), []
        with all_threads_done():
            for part in setup.app.stream(engine.stream_chat(ASK).response_gen):
                record.see("a part", part)
                parts.append(part)
        record.end("".join(parts))
        _remembered(engine, record)

    async def ause(setup: Setup, record: Record) -> None:
        engine, parts = setup.chat_engine(make(setup)), []
        answer = await engine.astream_chat(ASK)
        async for part in setup.app.astream(answer.async_response_gen()):
            record.see("a part", part)
            parts.append(part)
        await all_done()
        record.end("".join(parts))
        _remembered(engine, record)

    return use, ause


def _queries(name: str, make: Callable[..., BaseQueryEngine]) -> list[Surface]:
    whole, stream = _query(make), _streamed_query(make)
    return [
        Surface(name=name, kind="query engine", use=whole[0], ause=whole[1], shows=IN_TEXT),
        Surface(name=f"{name}, streaming", kind="query engine", use=stream[0], ause=stream[1], shows=IN_TEXT),
    ]


def _chats(name: str, make: Callable[[Setup], BaseChatEngine]) -> list[Surface]:
    whole, stream = _chat(make), _streamed_chat(make)
    return [
        Surface(name=f"{name}, memory", kind="chat engine", use=whole[0], ause=whole[1], shows=IN_TEXT),
        Surface(name=f"{name}, streaming, memory", kind="chat engine", use=stream[0], ause=stream[1], shows=IN_TEXT),
    ]


ENGINE_SURFACES: list[Surface] = [
    *(
        surface
        for mode in ("compact", "refine", "tree_summarize", "simple_summarize")
        for surface in _queries(f"query engine: {mode}", _of_mode(ResponseMode(mode)))
    ),
    *_queries("query engine: sub-question", _sub_question),
    *_queries("query engine: router", _router),
    *_chats("chat engine: simple", _simple),
    *_chats("chat engine: context", _context),
    *_chats("chat engine: condense_plus_context", _condense),
]
