"""A scripted chat model for tests of one's own: it says what it is told and counts what it was asked for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import PrivateAttr

__all__ = ["ScriptedChatModel", "call_chunks", "word_chunks"]


def word_chunks(text: str, *, id: str = "scripted-1") -> list[AIMessageChunk]:  # noqa: A002  # as the message calls it
    """One chunk for each word with the space before it, and a last one with finish reason and usage."""
    words = re.findall(r"\s*\S+", text)
    chunks = [AIMessageChunk(content=word, id=id) for word in words]
    last = AIMessageChunk(
        content="",
        id=id,
        response_metadata={"finish_reason": "stop", "model_name": "scripted"},
        usage_metadata={"input_tokens": 5, "output_tokens": len(words), "total_tokens": 5 + len(words)},
        chunk_position="last",
    )
    return [*chunks, last]


def call_chunks(
    name: str,
    arguments: str,
    *,
    size: int = 8,
    id: str = "scripted-1",  # noqa: A002  # as the message calls it
    call_id: str = "call-1",
) -> list[AIMessageChunk]:
    """A tool call whose arguments come in pieces of `size` characters."""
    pieces = [arguments[at : at + size] for at in range(0, len(arguments), size)] or [""]

    def chunk(index: int, piece: str) -> AIMessageChunk:
        head: dict[str, Any] = {"name": name, "id": call_id} if index == 0 else {"name": None, "id": None}
        return AIMessageChunk(content="", id=id, tool_call_chunks=[{**head, "args": piece, "index": 0}])

    chunks = [chunk(index, piece) for index, piece in enumerate(pieces)]
    last = AIMessageChunk(
        content="",
        id=id,
        response_metadata={"finish_reason": "tool_calls", "model_name": "scripted"},
        usage_metadata={"input_tokens": 5, "output_tokens": len(pieces), "total_tokens": 5 + len(pieces)},
        chunk_position="last",
    )
    return [*chunks, last]


class ScriptedChatModel(BaseChatModel):
    """A chat model that streams what a script says.

    Attributes:
        given: Chunks that were asked for so far, over all answers.
        closed: Streams that have ended, or were closed.
    """

    script: Callable[[list[BaseMessage]], Sequence[AIMessageChunk]]
    """Messages -> the chunks of the answer."""
    error: Exception | None = None
    """Raised instead of ending."""
    model_name: str = "scripted"
    _given: int = PrivateAttr(default=0)
    _closed: int = PrivateAttr(default=0)

    @classmethod
    def saying(cls, text: str, **settings: Any) -> ScriptedChatModel:
        """One that says a text, word by word."""
        return cls(script=lambda _: word_chunks(text), **settings)

    @property
    def given(self) -> int:
        """Chunks that were asked for so far, over all answers."""
        return self._given

    @property
    def closed(self) -> int:
        """Streams that have ended, or were closed."""
        return self._closed

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools in OpenAI's form; the script decides what becomes of them."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        try:
            for chunk in self.script(messages):
                self._given += 1
                piece = ChatGenerationChunk(message=chunk.model_copy(deep=True))
                if run_manager:
                    run_manager.on_llm_new_token(str(chunk.content), chunk=piece)
                yield piece
            if self.error is not None:
                raise self.error
        finally:
            self._closed += 1

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for piece in (chunks := self._stream(messages, stop, **kwargs)):
            try:
                if run_manager:
                    await run_manager.on_llm_new_token(str(piece.message.content), chunk=piece)
                yield piece
            except BaseException:
                chunks.close()  # type: ignore[attr-defined]  # it is a generator
                raise

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))
