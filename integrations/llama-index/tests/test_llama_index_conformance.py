"""The conformance suite, on the scripted LLM itself and on guarded LLMs of every kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms import LLM, CustomLLM, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.mock import MockFunctionCallingLLM
from pydantic import PrivateAttr

from ada_guard import Guard
from ada_guard.testing import ScriptedSidecar
from llama_index.llms.ada_guard import AdaGuardLLM
from llama_index.llms.ada_guard.testing import LLMConformance, ScriptedLLM, call_responses, word_responses

SAYS = " ".join(f"word{number}" for number in range(1, 31))


def guarded(llm: LLM, **settings: Any) -> AdaGuardLLM:
    return AdaGuardLLM(llm=llm, guard=Guard.for_sidecar(ScriptedSidecar()), **settings)


def scripted(sent: list[str] | None = None, **settings: Any) -> ScriptedLLM:
    def script(messages: Sequence[ChatMessage]) -> list[ChatResponse]:
        if sent is not None:
            sent.append("\n".join(message.content or "" for message in messages))
        return word_responses(SAYS)

    return ScriptedLLM(script=script, **settings)


def calling(name: str, arguments: dict[str, Any]) -> ScriptedLLM:
    said = call_responses(name, json.dumps(arguments))
    return ScriptedLLM(script=lambda _: said)


class Completing(CustomLLM):
    """An LLM as users write them: two methods that complete; chat is LlamaIndex's, and calls them."""

    chats: bool = False
    _sent: list[str] = PrivateAttr(default_factory=list)
    _given: int = PrivateAttr(default=0)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=self.chats, model_name="completing")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        *_, last = self._said(prompt)
        return last.model_copy(update={"delta": None})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._said(prompt)

    def _said(self, prompt: str) -> CompletionResponseGen:
        self._sent.append(prompt)
        for response in word_responses(SAYS):
            self._given += 1
            yield CompletionResponse(text=response.message.content or "", delta=response.delta, raw=response.raw)


class Undecorated(Completing):
    """One whose author left out LlamaIndex's decorators."""

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._said(prompt)


class NotStreaming(Completing):
    """One that gives whole answers only."""

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        raise NotImplementedError


class Counting(LLMConformance):
    """Where the LLM counts what it gave, and what it was sent."""

    def steps(self, llm: LLM) -> int | None:
        inner = llm.llm if isinstance(llm, AdaGuardLLM) else llm
        assert isinstance(inner, ScriptedLLM | Completing)
        return inner.given if isinstance(inner, ScriptedLLM) else inner._given

    def prompts(self, llm: LLM) -> Sequence[str] | None:
        inner = llm.llm if isinstance(llm, AdaGuardLLM) else llm
        return inner._sent if isinstance(inner, Completing) else self.sent

    sent: Sequence[str] | None = None


class TestScriptedLLM(Counting):
    def make_llm(self, **settings: Any) -> LLM:
        self.sent = sent = []
        return scripted(sent, **settings)

    def make_calling_llm(self, name: str, arguments: dict[str, Any]) -> LLM | None:
        return calling(name, arguments)


class TestGuardedScriptedLLM(Counting):
    def make_llm(self, **settings: Any) -> LLM:
        self.sent = sent = []
        return guarded(scripted(sent, **settings))

    def make_calling_llm(self, name: str, arguments: dict[str, Any]) -> LLM | None:
        return guarded(calling(name, arguments))


class TestSettingsOfTheGuardedLLM(TestGuardedScriptedLLM):
    """Its own, in the place of those of the LLM inside."""

    def make_llm(self, **settings: Any) -> LLM:
        self.sent = sent = []
        return guarded(scripted(sent), **settings)


class TestWholeAnswersOfTheGuardedLLM(TestGuardedScriptedLLM):
    def make_llm(self, **settings: Any) -> LLM:
        self.sent = sent = []
        return guarded(scripted(sent, **settings), stream_whole=False)


class TestGuardedTwice(Counting):
    calls_itself = True  # the outer guard calls the inner one, which asks the same rate limiter

    def make_llm(self, **settings: Any) -> LLM:
        return guarded(guarded(scripted(**settings)))

    def steps(self, llm: LLM) -> int | None:
        assert isinstance(llm, AdaGuardLLM)
        return super().steps(llm.llm)

    def make_calling_llm(self, name: str, arguments: dict[str, Any]) -> LLM | None:
        return guarded(guarded(calling(name, arguments)))


class TestGuardedNotFunctionCallingLLM(Counting):
    def make_llm(self, **settings: Any) -> LLM:
        return guarded(scripted(calls_functions=False, **settings))


class TestCompletingLLM(Counting):
    calls_itself = True

    def make_llm(self, **settings: Any) -> LLM:
        return Completing(**settings)


class TestGuardedCompletingLLM(Counting):
    calls_itself = True

    def make_llm(self, **settings: Any) -> LLM:
        return guarded(Completing(**settings))


class TestGuardedUndecoratedLLM(Counting):
    calls_itself = True

    def make_llm(self, **settings: Any) -> LLM:
        return guarded(Undecorated(**settings))


class TestGuardedNotStreamingLLM:
    """Whole answers only; its streams raise what they raise without a guard."""

    def make_llm(self, **settings: Any) -> LLM:
        return guarded(NotStreaming(**settings))

    prompt = LLMConformance.prompt
    test_chat_gives_a_message = Counting.test_chat_gives_a_message
    test_achat_gives_a_message = Counting.test_achat_gives_a_message
    test_complete_gives_a_text = Counting.test_complete_gives_a_text
    test_acomplete_gives_a_text = Counting.test_acomplete_gives_a_text
    test_instrumentation_is_told_of_a_whole_answer = Counting.test_instrumentation_is_told_of_a_whole_answer
    _asked = LLMConformance._asked
    _check_chat = LLMConformance._check_chat
    _check_complete = LLMConformance._check_complete
    _check_whole_events = LLMConformance._check_whole_events


class TestGuardedMockLLM(LLMConformance):
    calls_itself = True
    deltas_add_up = False  # its messages hold the whole text from the first response on
    prompt = SAYS

    def make_llm(self, **settings: Any) -> LLM:
        llm = MockLLM()
        for name, value in settings.items():
            setattr(llm, name, value)
        return guarded(llm)


class TestGuardedMockFunctionCallingLLM(LLMConformance):
    prompt = SAYS
    test_an_answer_without_tool_call_has_none = None  # LlamaIndex's mock does not raise for a missing call

    def make_llm(self, **settings: Any) -> LLM:
        llm = MockFunctionCallingLLM()
        for name, value in settings.items():
            setattr(llm, name, value)
        return guarded(llm)


def test_the_suite_says_which_llm_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="make_llm"):
        LLMConformance().make_llm()


def test_the_role_of_an_answer_is_that_of_the_llm() -> None:
    assert guarded(scripted()).chat([ChatMessage(content="?")]).message.role == MessageRole.ASSISTANT
