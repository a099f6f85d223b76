"""What LlamaIndex expects of an LLM, as tests. LlamaIndex itself has no such suite."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse, LLMMetadata, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM

from llama_index.llms.ada_guard.testing.calling import all_of, first_of, whole
from llama_index.llms.ada_guard.testing.conformance_observers import ObserverConformance, SettingConformance
from llama_index.llms.ada_guard.testing.conformance_tools import ToolConformance

__all__ = ["LLMConformance"]


class LLMConformance(ObserverConformance, SettingConformance, ToolConformance):
    """Tests of an LLM. Inherit from it in a test module and say in `make_llm` which one.

    The other methods and attributes of `ConformanceSettings` say more of it; what is not said is skipped.

    Example:
        ```python
        class TestMyLLM(LLMConformance):
            def make_llm(self, **settings):
                return MyLLM(temperature=0, **settings)
        ```
    """

    # -- the eight methods ----------------------------------------------------------------------------------------

    def test_chat_gives_a_message(self) -> None:
        self._check_chat("chat")

    def test_achat_gives_a_message(self) -> None:
        self._check_chat("achat")

    def test_complete_gives_a_text(self) -> None:
        self._check_complete("complete")

    def test_acomplete_gives_a_text(self) -> None:
        self._check_complete("acomplete")

    def test_stream_chat_is_cumulative(self) -> None:
        self._check_stream_chat("stream_chat")

    def test_astream_chat_is_cumulative(self) -> None:
        self._check_stream_chat("astream_chat")

    def test_stream_complete_is_cumulative(self) -> None:
        self._check_stream_complete("stream_complete")

    def test_astream_complete_is_cumulative(self) -> None:
        self._check_stream_complete("astream_complete")

    def test_a_stream_ends_with_the_whole_answer(self) -> None:
        self._needs(self.repeats_itself and self.deltas_add_up, "its answers differ")
        said = {whole(self.make_llm(), name, self._asked).message.content for name in ("chat", "achat")}
        said |= {all_of(self.make_llm(), f"{way}stream_chat", self._asked)[-1].message.content for way in ("", "a")}
        assert len(said) == 1
        texts = {whole(self.make_llm(), name, self.prompt).text for name in ("complete", "acomplete")}
        texts |= {all_of(self.make_llm(), f"{way}stream_complete", self.prompt)[-1].text for way in ("", "a")}
        assert len(texts) == 1

    def test_an_llm_is_used_again(self) -> None:
        llm = self.make_llm()
        first = [response.message.content for response in all_of(llm, "stream_chat", self._asked)]
        again = [response.message.content for response in all_of(llm, "stream_chat", self._asked)]
        assert first == again or not self.repeats_itself

    # -- what it says of itself -----------------------------------------------------------------------------------

    def test_metadata_and_name(self) -> None:
        llm = self.make_llm()
        assert isinstance(llm.metadata, LLMMetadata)
        assert llm.metadata == llm.metadata
        assert llm.class_name()
        assert isinstance(llm, FunctionCallingLLM) or not llm.metadata.is_function_calling_model

    def test_messages_of_the_caller_stay_as_they_are(self) -> None:
        asked = self._asked
        for name in ("stream_chat", "astream_chat"):
            all_of(self.make_llm(), name, asked)
            assert asked == self._asked

    # -- closing --------------------------------------------------------------------------------------------------

    def test_closing_a_stream_stops_the_work(self) -> None:
        self._check_stops("stream_chat", self._asked)
        self._check_stops("stream_complete", self.prompt)

    def test_closing_an_async_stream_stops_the_work(self) -> None:
        self._check_stops("astream_chat", self._asked)
        self._check_stops("astream_complete", self.prompt)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _check_chat(self, name: str) -> None:
        response = whole(self.make_llm(), name, self._asked)
        assert isinstance(response, ChatResponse)
        assert response.message.role == MessageRole.ASSISTANT
        assert response.message.content

    def _check_complete(self, name: str) -> None:
        responses = [whole(self.make_llm(), name, self.prompt, formatted=formatted) for formatted in (False, True)]
        assert all(isinstance(response, CompletionResponse) and response.text for response in responses)

    def _check_stream_chat(self, name: str) -> None:
        responses = all_of(self.make_llm(), name, self._asked)
        assert responses
        assert all(isinstance(response, ChatResponse) for response in responses)
        assert all(response.message.role == MessageRole.ASSISTANT for response in responses)
        self._check_growing([(response.message.content or "", response.delta or "") for response in responses])

    def _check_stream_complete(self, name: str) -> None:
        for formatted in (False, True):
            responses = all_of(self.make_llm(), name, self.prompt, formatted=formatted)
            assert responses
            assert all(isinstance(response, CompletionResponse) for response in responses)
            self._check_growing([(response.text, response.delta or "") for response in responses])

    def _check_growing(self, responses: list[tuple[str, str]]) -> None:
        said = ""
        for text, delta in responses:
            said += delta
            assert text == said or not self.deltas_add_up
        assert said

    def _check_stops(self, name: str, asked: Any) -> None:
        llm, full = self.make_llm(), self.make_llm()
        all_of(full, name, asked)
        first_of(llm, name, asked)
        made, all_made = self.steps(llm), self.steps(full)
        self._needs(made is not None and all_made is not None, "nobody counts what it generates")
        assert made is not None
        assert all_made is not None
        assert made < all_made
