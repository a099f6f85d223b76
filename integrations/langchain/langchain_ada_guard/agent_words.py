"""Words that a middleware puts in the place of an answer that failed: a guard sees them before the agent does.

They may be the text of an error in which the model's words stand, or the answer of another model. They go through the
guard as an answer of a model of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from langchain_ada_guard.agent_request import Watch

__all__ = ["ajudged", "judged"]


class _Words(BaseChatModel):
    """A chat model that says one message, whole."""

    message: AIMessage

    @property
    def _llm_type(self) -> str:
        return "words-of-a-middleware"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages)


def judged(response: ModelResponse[Any], watch: Watch, request: ModelRequest[Any]) -> ModelResponse[Any]:
    """The response with what the guard makes of a middleware's words in it; all else stays as it is.

    Raises:
        CheckError: The guard could not judge them.
    """
    speakers = _speakers(response, watch)
    said = [
        message if speaker is None else _noted(watch, speaker._generate(_asked(request)))
        for message, speaker in zip(response.result, speakers, strict=True)
    ]
    return replace(response, result=said)


async def ajudged(response: ModelResponse[Any], watch: Watch, request: ModelRequest[Any]) -> ModelResponse[Any]:
    """As `judged`, for async code."""
    speakers = _speakers(response, watch)
    said = [
        message if speaker is None else _noted(watch, await speaker._agenerate(_asked(request)))
        for message, speaker in zip(response.result, speakers, strict=True)
    ]
    return replace(response, result=said)


def _speakers(response: ModelResponse[Any], watch: Watch) -> list[Any]:
    """A guarded model for each message that is a middleware's words; None for the others."""
    if not watch.failed or response.structured_response is not None:  # a guard sees no parsed object
        return [None] * len(response.result)
    return [
        watch.guarded(_Words(message=message))
        if isinstance(message, AIMessage) and message.id is None and not watch.wrote(message)
        else None
        for message in response.result
    ]


def _noted(watch: Watch, result: ChatResult) -> BaseMessage:
    message = result.generations[0].message
    watch.note(message, whole=True)
    return message


def _asked(request: ModelRequest[Any]) -> list[BaseMessage]:
    return [*([request.system_message] if request.system_message else []), *request.messages]
