"""Tools and structured output."""

from __future__ import annotations

from typing import Any

from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llama_index.llms.ada_guard.testing.calling import all_of, whole
from llama_index.llms.ada_guard.testing.conformance_base import ConformanceSettings

__all__ = ["ToolConformance"]

_TOOL = "search"


class ToolConformance(ConformanceSettings):
    """Function calling, where the LLM does that."""

    def test_a_tool_is_called(self) -> None:
        for name in ("predict_and_call", "apredict_and_call"):
            called: list[str] = []
            response = whole(self._calling(_TOOL, query="kites"), name, [_tool(called)], user_msg=self.prompt)
            assert called == ["kites"]
            assert [source.tool_name for source in response.sources] == [_TOOL]

    def test_tool_calls_are_found_in_a_response(self) -> None:
        for way in ("", "a"):
            llm = self._calling(_TOOL, query="kites")
            response = whole(llm, f"{way}chat_with_tools", [_tool([])], user_msg=self.prompt)
            streamed = all_of(llm, f"{way}stream_chat_with_tools", [_tool([])], user_msg=self.prompt)
            for last in (response, streamed[-1]):
                [call] = llm.get_tool_calls_from_response(last)
                assert (call.tool_name, call.tool_kwargs) == (_TOOL, {"query": "kites"})

    def test_an_answer_without_tool_call_has_none(self) -> None:
        llm = self.make_llm()
        self._needs(llm.metadata.is_function_calling_model, "it calls no functions")
        assert isinstance(llm, FunctionCallingLLM)
        response = llm.chat(self._asked)
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        try:
            llm.get_tool_calls_from_response(response, error_on_no_tool_call=True)
        except ValueError:
            return
        raise AssertionError("a missing tool call was not an error")

    def test_structured_output(self) -> None:
        prompt = PromptTemplate(self.prompt)
        for way in ("", "a"):
            llm = self._calling(Answer.__name__, said="kites")
            assert whole(llm, f"{way}structured_predict", Answer, prompt) == Answer(said="kites")
            assert whole(llm.as_structured_llm(Answer), f"{way}chat", self._asked).raw == Answer(said="kites")
            *_, last = all_of(llm, f"{way}stream_structured_predict", Answer, prompt)
            assert isinstance(last, BaseModel)

    def _calling(self, name: str, **arguments: Any) -> FunctionCallingLLM:
        llm = self.make_calling_llm(name, arguments)
        self._needs(llm is not None, "it cannot be made to call a tool")
        assert isinstance(llm, FunctionCallingLLM)
        return llm


class Answer(BaseModel):
    """What is said."""

    said: str = ""


def _tool(called: list[str]) -> FunctionTool:
    def search(query: str) -> str:
        """Searches."""
        called.append(query)
        return "nothing found"

    return FunctionTool.from_defaults(search, name=_TOOL)
