"""Who is told of what an LLM says, and which of its settings count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.prompts import PromptTemplate

from llama_index.llms.ada_guard.inner import INNER_TAG
from llama_index.llms.ada_guard.testing.calling import all_of, whole
from llama_index.llms.ada_guard.testing.conformance_base import ConformanceSettings
from llama_index.llms.ada_guard.testing.observers import (
    CountingLimiter,
    EventRecorder,
    RecordingCallback,
    ShoutingParser,
)

__all__ = ["ObserverConformance", "SettingConformance"]

_STARTS = ("LLMChatStartEvent", "LLMCompletionStartEvent")


class ObserverConformance(ConformanceSettings):
    """Instrumentation and callbacks."""

    def test_instrumentation_is_told_of_a_stream(self) -> None:
        for way in ("", "a"):
            self._check_events(f"{way}stream_chat", "LLMChat", self._asked)
            self._check_events(f"{way}stream_complete", "LLMCompletion", self.prompt)

    def test_instrumentation_is_told_of_a_whole_answer(self) -> None:
        for way in ("", "a"):
            self._check_whole_events(f"{way}chat", "LLMChat", self._asked)
            self._check_whole_events(f"{way}complete", "LLMCompletion", self.prompt)

    def test_callbacks_are_told(self) -> None:
        for way in ("", "a"):
            self._check_callbacks(f"{way}stream_chat", self._asked, EventPayload.RESPONSE, EventPayload.MESSAGES)
            self._check_callbacks(f"{way}stream_complete", self.prompt, EventPayload.COMPLETION, EventPayload.PROMPT)

    def _check_events(self, name: str, kind: str, asked: Any) -> None:
        llm = self.make_llm()
        with EventRecorder().listening() as recorder:
            responses = all_of(llm, name, asked)
        told = [event for event in recorder.events if not event.tags.get(INNER_TAG)]
        starts = [event for event in told if type(event).__name__ == f"{kind}StartEvent"]
        shown, ends = (
            [vars(event)["response"] for event in told if type(event).__name__ == f"{kind}{stage}Event"]
            for stage in ("InProgress", "End")
        )
        if self.calls_itself:
            assert starts
            assert all(response in shown for response in responses)
            assert ends[-1] == responses[-1]
        else:
            assert len(starts) == 1
            assert shown == responses
            assert ends == responses[-1:]

    def _check_whole_events(self, name: str, kind: str, asked: Any) -> None:
        llm = self.make_llm()
        with EventRecorder().listening() as recorder:
            response = whole(llm, name, asked)
        told = [event for event in recorder.events if not event.tags.get(INNER_TAG)]
        assert type(told[0]).__name__ == f"{kind}StartEvent"
        assert [vars(event)["response"] for event in told if type(event).__name__ == f"{kind}EndEvent"][-1] == response

    def _check_callbacks(self, name: str, asked: Any, answer: EventPayload, question: EventPayload) -> None:
        llm, callback = self.make_llm(), RecordingCallback()
        llm.callback_manager.add_handler(callback)
        responses = all_of(llm, name, asked)
        starts = [payload for kind, payload in callback.starts if kind is CBEventType.LLM]
        ends = [payload for kind, payload in callback.ends if kind is CBEventType.LLM]
        assert starts[0][question] == asked
        assert len(starts) == len(ends)
        assert ends[-1][answer] == responses[-1]


class SettingConformance(ConformanceSettings):
    """Settings that LlamaIndex has for every LLM."""

    def test_system_prompt_is_sent_once(self) -> None:
        for name in ("predict", "apredict"):
            llm = self.make_llm(system_prompt="Be kind to kites.")
            with EventRecorder().listening() as recorder:
                whole(llm, name, PromptTemplate(self.prompt))
            starts = [event for event in recorder.events if type(event).__name__ in _STARTS]
            assert str(_sent(starts[0])).count("Be kind to kites.") == 1
            sent = self.prompts(llm)
            assert sent is None or [text.count("Be kind to kites.") for text in sent] == [1]

    def test_messages_to_prompt_is_used_once_at_most(self) -> None:
        for name in ("chat", "achat"):
            made: list[Sequence[ChatMessage]] = []

            def to_prompt(messages: Sequence[ChatMessage], made: list[Any] = made) -> str:
                made.append(messages)
                return "PROMPT: " + "".join(str(message.content) for message in messages)

            llm = self.make_llm(messages_to_prompt=to_prompt)
            whole(llm, name, self._asked)
            assert len(made) <= 1
            sent = self.prompts(llm)
            assert sent is None or [text.count("PROMPT: ") for text in sent] == [len(made)]

    def test_output_parser_is_used_once(self) -> None:
        for name in ("predict", "apredict"):
            parser = ShoutingParser()
            llm = self.make_llm(output_parser=parser)
            said = whole(llm, name, PromptTemplate(self.prompt))
            assert len(parser.parsed) == 1
            assert said == parser.parsed[0].upper()
            sent = self.prompts(llm)
            assert sent is None or [text.count("(loud)") for text in sent] == [1]

    def test_rate_limiter_is_asked_once(self) -> None:
        for way in ("", "a"):
            for stream in ("", "stream_"):
                limiter = CountingLimiter()
                llm = self.make_llm(rate_limiter=limiter)
                chats = llm.metadata.is_chat_model
                name = f"{way}{stream}{'chat' if chats else 'complete'}"
                (all_of if stream else whole)(llm, name, self._asked if chats else self.prompt)
                assert limiter.acquired == 1 or (self.calls_itself and limiter.acquired), name


def _sent(event: Any) -> Any:
    if hasattr(event, "prompt"):
        return event.prompt
    return [message.content for message in event.messages]
