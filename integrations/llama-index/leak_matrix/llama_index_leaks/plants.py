"""Answers with one planted word: in the text, beside it, and in what providers send along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.tools import FunctionTool
from pydantic import PrivateAttr

from ada_guard.testing import UNSAFE
from llama_index.llms.ada_guard.testing import ScriptedLLM, word_responses
from llama_index_leaks.record import texts

__all__ = [
    "BENIGN",
    "IN_TEXT",
    "PLANTS",
    "PLANT_AT",
    "TOOL",
    "WORDS",
    "Answer",
    "SelfCalling",
    "Speaker",
    "said",
    "speaker",
]

WORDS, PLANT_AT = 50, 25
BENIGN = "harmless"
"""What stands in the place of the planted word in the run that is to be left as it is."""
TOOL = "search"


def said(word: str) -> list[str]:
    """The words of an answer, each with the space before it."""
    return [f" {word}" if number == PLANT_AT else f" w{number}" for number in range(1, WORDS + 1)]


def _text(word: str) -> list[ChatResponse]:
    return [_response(TextBlock(text=whole), delta=piece) for whole, piece in _grown(said(word))]


def _thinking_block(word: str) -> list[ChatResponse]:
    thought = [
        _response(ThinkingBlock(content=whole), additional_kwargs={"thinking_delta": piece})
        for whole, piece in _grown(said(word))
    ]
    block = ThinkingBlock(content="".join(said(word)))
    spoken = [_response(block, TextBlock(text=whole), delta=piece) for whole, piece in _grown(_few_words())]
    return [*thought, *spoken]


def _thinking_delta(word: str) -> list[ChatResponse]:
    thought = [_response(TextBlock(text=""), additional_kwargs={"thinking_delta": piece}) for piece in said(word)]
    return [*thought, *(_response(TextBlock(text=whole), delta=piece) for whole, piece in _grown(_few_words()))]


def _tool_arguments(word: str) -> list[ChatResponse]:
    pieces = ['{"query": "', *said(word), '"}']
    return [_response(TextBlock(text=""), _call(TOOL, whole)) for whole, _ in _grown(pieces)]


def _tool_name(word: str) -> list[ChatResponse]:
    before, after = _few_words(), [f" u{number}" for number in range(1, 21)]
    call = _call(TOOL if word == BENIGN else word, '{"query": "weather"}')
    spoken = [_response(TextBlock(text=whole), delta=piece) for whole, piece in _grown(before)]
    rest = [_response(TextBlock(text="".join(before) + whole), call, delta=piece) for whole, piece in _grown(after)]
    return [*spoken, *rest]


def _raw(word: str) -> list[ChatResponse]:
    return [
        _response(TextBlock(text=whole), delta=piece, raw={"choices": [{"delta": piece, "text": whole}]})
        for whole, piece in _grown(said(word))
    ]


def _raw_of_the_whole(word: str) -> list[ChatResponse]:
    whole = "".join(said(word))
    return [*_text(word), _response(TextBlock(text=whole), delta="", raw={"output": [whole]})]


def _logprobs(word: str) -> list[ChatResponse]:
    return [
        _response(TextBlock(text=whole), delta=piece, logprobs=[[LogProb(token=piece, logprob=-0.5)]])
        for whole, piece in _grown(said(word))
    ]


PLANTS: dict[str, Callable[[str], list[ChatResponse]]] = {
    "text": _text,
    "thinking block": _thinking_block,
    "thinking delta": _thinking_delta,
    "tool arguments": _tool_arguments,
    "tool name": _tool_name,
    "raw": _raw,
    "raw of the whole": _raw_of_the_whole,
    "logprobs": _logprobs,
}
"""Where the word is planted -> word -> the responses of the answer."""
IN_TEXT = frozenset({"text", "raw", "raw of the whole", "logprobs"})
"""Plants whose word is in the text too."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """How far an answer was told.

    Attributes:
        given: Responses that were asked for.
        length: Responses had nobody stopped it.
        has_word: Whether the harmful word is in it.
    """

    given: int = 0
    length: int
    has_word: bool


class Speaker(ScriptedLLM):
    """A scripted LLM that counts its answers."""

    _answers: list[Answer] = PrivateAttr(default_factory=list)

    @property
    def answers(self) -> list[Answer]:
        """Those that were begun."""
        return self._answers

    def _said(self, messages: Sequence[ChatMessage]) -> ChatResponseGen:
        script = self.script(messages)
        answer = Answer(length=len(script), has_word=any(UNSAFE in text for text in texts(script)))
        self._answers.append(answer)
        for response in super()._said(messages):
            answer.given += 1
            yield response


class SelfCalling(Speaker):
    """One whose chat methods call another decorated method of its own, as many LLMs do."""

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """What `_told` streams, and tells."""
        return self._told(messages)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, for async code."""

        async def stream() -> ChatResponseAsyncGen:
            for response in self._told(messages):
                yield response

        return stream()

    @llm_chat_callback()
    def _told(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._said(messages)


def speaker(plant: str, word: str, kind: type[Speaker] = Speaker) -> tuple[Speaker, FunctionTool, list[str]]:
    """An LLM whose answers hold a word, the tool it calls, and what the tool was called with."""
    executed: list[str] = []

    def search(query: str) -> str:
        """Searches."""
        executed.append(query)
        return "nothing found"

    def script(messages: Sequence[ChatMessage]) -> list[ChatResponse]:
        asked = "\n".join(message.content or "" for message in messages)
        for question, answer in _STEPS.items():
            if question in asked:
                return word_responses(answer)
        if messages[-1].role == MessageRole.TOOL:
            return word_responses(" all done now")
        return PLANTS[plant](word)

    return kind(script=script), FunctionTool.from_defaults(search, name=TOOL), executed


_STEPS = {
    "sub_question": '```json\n{"items": [{"sub_question": "how many kites", "tool_name": "docs"}]}\n```',
    "Some choices are given below": '[{"choice": 1, "reason": "fits"}]',
    "standalone question": "how many kites",
}
"""What an engine asks its LLM on the way to an answer -> what the LLM says to that."""


def _response(*blocks: Any, delta: str = "", **fields: Any) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=list(blocks))
    return ChatResponse(message=message, delta=delta, **fields)


def _call(name: str, arguments: str) -> ToolCallBlock:
    return ToolCallBlock(tool_call_id="call-1", tool_name=name, tool_kwargs=arguments)


def _grown(pieces: Sequence[str]) -> list[tuple[str, str]]:
    return [("".join(pieces[: at + 1]), piece) for at, piece in enumerate(pieces)]


def _few_words() -> list[str]:
    return [f" t{number}" for number in range(1, 13)]
