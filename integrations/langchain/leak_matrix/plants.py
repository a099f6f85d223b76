"""Answers with one planted word: in the text, beside it, and in what providers send along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr, create_model

from ada_guard.testing import UNSAFE
from langchain_ada_guard.testing import ScriptedChatModel, word_chunks
from leak_matrix.record import texts

__all__ = [
    "ARGUMENTS",
    "BENIGN",
    "PLANTS",
    "PLANT_AT",
    "TOOL",
    "WORDS",
    "Answer",
    "Search",
    "Speaker",
    "said",
    "speaker",
]

WORDS, PLANT_AT = 50, 25
BENIGN = "harmless"
"""What stands in the place of the planted word in the run that is to be left as it is."""
TOOL = "search"
ARGUMENTS: Any = create_model(TOOL, query=str)
"""What the tool takes; also asked for as structured output."""
_INFO = "generation_info"
_ID = "answer-1"


def said(word: str) -> list[str]:
    """The words of an answer, each with the space before it."""
    return [f" {word}" if number == PLANT_AT else f" w{number}" for number in range(1, WORDS + 1)]


def _text(word: str) -> list[AIMessageChunk]:
    return [_chunk(content=piece) for piece in said(word)]


def _reasoning_content(word: str) -> list[AIMessageChunk]:
    return _beside("reasoning_content", word)


def _refusal(word: str) -> list[AIMessageChunk]:
    return _beside("refusal", word)


def _reasoning_block(word: str) -> list[AIMessageChunk]:
    return _blocks("reasoning", word)


def _thinking_block(word: str) -> list[AIMessageChunk]:
    return _blocks("thinking", word)


def _tool_arguments(word: str) -> list[AIMessageChunk]:
    pieces = ['{"query": "', *said(word), '"}']
    calls = [{"name": TOOL if not at else None, "id": "call-1" if not at else None} for at in range(len(pieces))]
    return [
        _chunk(content="", tool_call_chunks=[{**call, "args": piece, "index": 0}])
        for call, piece in zip(calls, pieces, strict=True)
    ]


def _tool_name(word: str) -> list[AIMessageChunk]:
    name = TOOL if word == BENIGN else word
    words = [_chunk(content=piece) for piece in said("w25")]
    call = {"name": name, "args": '{"query": "weather"}', "id": "call-1", "index": 0}
    return [*words[: PLANT_AT - 1], _chunk(content="", tool_call_chunks=[call]), *words[PLANT_AT - 1 :]]


def _mirrored(word: str) -> list[AIMessageChunk]:
    return [
        _chunk(
            content=piece,
            additional_kwargs={"raw": piece},
            response_metadata={
                "logprobs": {"content": [{"token": piece, "logprob": -0.5}]},
                _INFO: {"raw_delta": {"text": piece}},
            },
        )
        for piece in said(word)
    ]


def _mirrored_whole(word: str) -> list[AIMessageChunk]:
    whole = "".join(said(word))
    mirrored = {"raw": {"output": [whole]}, _INFO: {"raw_response": whole}}
    return [*_text(word), _chunk(content="", additional_kwargs={"raw": whole}, response_metadata=mirrored)]


PLANTS: dict[str, Callable[[str], list[AIMessageChunk]]] = {
    "text": _text,
    "reasoning_content": _reasoning_content,
    "reasoning block": _reasoning_block,
    "thinking block": _thinking_block,
    "refusal": _refusal,
    "tool arguments": _tool_arguments,
    "tool name": _tool_name,
    "logprobs and raw": _mirrored,
    "raw of the whole": _mirrored_whole,
}
"""Where the word is planted -> word -> the chunks of the answer, without the last one."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """How far an answer was told.

    Attributes:
        given: Chunks that were asked for.
        length: Chunks had nobody stopped it.
        has_word: Whether the harmful word is in it.
    """

    given: int = 0
    length: int
    has_word: bool


class Speaker(ScriptedChatModel):
    """A scripted chat model that also sends ``generation_info``, and counts what was asked for."""

    failing: bool = False
    """Whether it raises at the end of an answer, with the harmful word in the error."""
    _answers: list[Answer] = PrivateAttr(default_factory=list)

    @property
    def answers(self) -> list[Answer]:
        """Those that were begun."""
        return self._answers

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        script = self.script(messages)
        answer = Answer(length=len(script), has_word=any(UNSAFE in text for text in texts(script)))
        self._answers.append(answer)
        for piece in super()._stream(messages, stop, **kwargs):
            answer.given += 1
            info = piece.message.response_metadata.pop(_INFO, None)
            chunk = ChatGenerationChunk(message=piece.message, generation_info=info)
            if run_manager:
                run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
            yield chunk
        if self.failing:
            raise RuntimeError(f"the server said {UNSAFE}")


class Search(BaseTool):
    """A tool that notes what it was called with."""

    name: str = TOOL
    description: str = "Searches."
    args_schema: Any = ARGUMENTS
    _executed: list[str] = PrivateAttr(default_factory=list)

    @property
    def executed(self) -> list[str]:
        """What it was called with."""
        return self._executed

    def _run(self, query: str) -> str:
        self._executed.append(query)
        return "nothing found"


def speaker(plant: str, word: str, **settings: Any) -> Speaker:
    """A model whose answers hold a word, until a tool has answered it."""

    answer, after_tool = [*PLANTS[plant](word), *word_chunks("", id=_ID)], word_chunks(" all done now")

    def script(messages: list[BaseMessage]) -> list[AIMessageChunk]:
        return after_tool if messages and isinstance(messages[-1], ToolMessage) else answer

    return Speaker(script=script, **settings)


def _chunk(**fields: Any) -> AIMessageChunk:
    return AIMessageChunk(id=_ID, **fields)


def _beside(key: str, word: str) -> list[AIMessageChunk]:
    beside = [_chunk(content="", additional_kwargs={key: piece}) for piece in said(word)]
    return [*beside, *(_chunk(content=f" t{number}") for number in range(1, 11))]


def _blocks(kind: str, word: str) -> list[AIMessageChunk]:
    beside = [_chunk(content=[{"type": kind, kind: piece, "index": 0}]) for piece in said(word)]
    texts = [_chunk(content=[{"type": "text", "text": f" t{number}", "index": 1}]) for number in range(1, 11)]
    return [*beside, *texts]
