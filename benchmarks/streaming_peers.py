"""How LangChain's and LlamaIndex's users cut a stream by what is built in: a callback or handler that raises.

Not what ada-guard adds to them: that is measured by `langchain_overhead.py` and the matrices of leaks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from langchain_core.callbacks import AsyncCallbackHandler, AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableGenerator
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatInProgressEvent
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback
from pydantic import PrivateAttr
from scripted_stream import Contender, Model, Shown, asked, verdict

__all__ = ["peers"]

INTERVAL_TOKENS = 25
"""Between two checks of a handler: as often as ada-guard's own interval."""


class UnsafeError(Exception):
    """What a handler raises."""


@dataclass(slots=True)
class Watch:
    """Gathers an answer and says when it is to be checked."""

    text: str = ""
    tokens: int = field(default=0)

    def due(self, said: str) -> bool:
        """Whether a check belongs behind this token."""
        self.text += said
        self.tokens += 1
        return self.tokens % INTERVAL_TOKENS == 0


class EndpointChat(BaseChatModel):
    """The scripted model as a chat model of LangChain."""

    _model: Model = PrivateAttr()

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    @property
    def _llm_type(self) -> str:
        return "scripted"

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for said in self._model.words(str(messages[-1].content)):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=said))
            if run_manager is not None:
                await run_manager.on_llm_new_token(said, chunk=chunk)
            yield chunk

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("only asked for streams")


class RaisingHandler(AsyncCallbackHandler):
    """Checks as tokens come, and raises on a hit."""

    def __init__(self, model: Model, check_ms: float, *, raise_error: bool) -> None:
        self._model, self._check_ms, self._watch = model, check_ms, Watch()
        self.raise_error = raise_error

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        """Told of each token before the consumer is."""
        if self._watch.due(str(token)) and await self._model.is_harmful(self._watch.text, self._check_ms):
            raise UnsafeError


def langchain(model: Model, check_ms: float) -> Iterator[Contender]:
    """A callback, once with LangChain's default and once told to raise; and a step behind the model."""
    chat = EndpointChat(model)

    def with_callback(raise_error: bool) -> Callable[[str], AsyncIterator[Shown]]:
        async def stream(question: str) -> AsyncIterator[Shown]:
            handler = RaisingHandler(model, check_ms, raise_error=raise_error)
            async for chunk in chat.astream(question, config={"callbacks": [handler]}):
                yield Shown(str(chunk.content))

        return stream

    async def checked(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        watch = Watch()
        async for chunk in chunks:
            if watch.due(str(chunk.content)) and await model.is_harmful(watch.text, check_ms):
                raise UnsafeError
            yield chunk

    chain: Runnable[Any, Any] = chat | RunnableGenerator(checked)

    async def piped(question: str) -> AsyncIterator[Shown]:
        async for chunk in chain.astream(question):
            yield Shown(str(chunk.content))

    for setting, stream in {
        "callback that raises, default (raise_error=False)": with_callback(False),
        "callback that raises, raise_error=True": with_callback(True),
        "RunnableGenerator behind the model": piped,
    }.items():
        yield Contender(system="langchain", setting=f"{setting}, every 25", check_ms=check_ms, stream=stream)


class EndpointLLM(CustomLLM):
    """The scripted model as an LLM of LlamaIndex."""

    _model: Model = PrivateAttr()

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True)

    @llm_chat_callback()
    async def astream_chat(self, messages: list[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """As LlamaIndex's own LLMs do it."""

        async def responses() -> AsyncGenerator[ChatResponse, None]:
            text = ""
            async for said in self._model.words(str(messages[-1].content)):
                text += said
                yield ChatResponse(message=ChatMessage(role="assistant", content=text), delta=said)

        return responses()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        raise NotImplementedError("only asked for streams")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        raise NotImplementedError("only asked for streams")


class RaisingEvents(BaseEventHandler):
    """Checks as deltas come, and raises on a hit. Handlers are sync: the event loop waits for each check."""

    _judge: Callable[[str], bool] = PrivateAttr()
    _watch: Watch = PrivateAttr(default_factory=Watch)

    def __init__(self, judge: Callable[[str], bool]) -> None:
        super().__init__()
        self._judge = judge

    @classmethod
    def class_name(cls) -> str:
        """As LlamaIndex wants it."""
        return "RaisingEvents"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Told of each delta before the consumer is."""
        if not isinstance(event, LLMChatInProgressEvent):
            return
        if self._watch.due(event.response.delta or "") and self._judge(self._watch.text):
            raise UnsafeError


def llama_index(model: Model, check_ms: float) -> Contender:
    """An instrumentation handler that raises."""
    llm = EndpointLLM(model)
    checker = httpx.Client(timeout=60, trust_env=False)

    def judge(text: str) -> bool:
        return verdict(checker.post(f"{model.base_url}/chat/completions", json=asked(text, check_ms)))

    @contextmanager
    def handled() -> Iterator[None]:
        dispatcher = get_dispatcher()
        dispatcher.add_event_handler(handler := RaisingEvents(judge))
        try:
            yield
        finally:
            dispatcher.event_handlers.remove(handler)

    async def stream(question: str) -> AsyncIterator[Shown]:
        with handled():
            async for response in await llm.astream_chat([ChatMessage(role="user", content=question)]):
                yield Shown(response.delta or "")

    setting = "event handler that raises, every 25"
    return Contender(system="llama-index", setting=setting, check_ms=check_ms, stream=stream)


def peers(model: Model, check_ms: float) -> list[Contender]:
    """All of them."""
    return [*langchain(model, check_ms), llama_index(model, check_ms)]
