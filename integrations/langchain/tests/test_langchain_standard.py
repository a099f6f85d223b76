"""LangChain's own conformance suites, for each of the three chat models."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import pytest
import tiny_models
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from ada_guard import ConfigError, Guard
from ada_guard.delta import Usage
from ada_guard.testing import Chunk, Reply, ScriptedEndpoint, ScriptedGuard, ScriptedSidecar, words
from ada_guard.testing_endpoint import Asked
from langchain_ada_guard import ChatAdaGuard, guard_messages
from langchain_ada_guard.endpoint import ChatAdaGuardEndpoint
from langchain_ada_guard.huggingface import ChatAdaGuardHuggingFace
from langchain_ada_guard.testing import ScriptedChatModel, call_chunks, word_chunks

TEXT = "Hello there, how are you today?"
TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def call_for(messages: Sequence[Mapping[str, Any]], tools: Any, choice: Any) -> tuple[str, str] | None:
    """What a model would call that always uses a tool until it has its result: name and arguments."""
    if not tools or messages[-1]["role"] == "tool":
        return None
    named = choice["function"]["name"] if isinstance(choice, dict) else choice
    functions = [tool["function"] for tool in tools]
    function = next((each for each in functions if each["name"] == named), functions[0])
    return function["name"], filled(function.get("parameters") or {}, messages)


def filled(schema: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    """An object of a schema, as JSON: numbers are 3, texts what the question has in quotes."""
    quoted = re.findall(r"'([^']+)'", str(messages[-1]["content"])) or ["cats"]
    values = {
        name: 3 if each.get("type") == "integer" else quoted[0] for name, each in schema.get("properties", {}).items()
    }
    return json.dumps(values, ensure_ascii=False)


def reply_for(asked: Asked) -> Reply | str:
    """The answer of a server."""
    body = asked.body
    call = call_for(body["messages"], body.get("tools"), body.get("tool_choice"))
    if call is not None:
        name, arguments = call
        function = {"name": name, "arguments": arguments}
        delta = {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": function}]}
        return Reply(items=[Chunk(delta=delta)], finish_reason="tool_calls")
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return filled(form["json_schema"]["schema"], body["messages"])
    if form.get("type") == "json_object":
        return json.dumps({"setup": "Why?", "punchline": "Because."})
    return TEXT


class SmartChatModel(ScriptedChatModel):
    """A scripted chat model that sees the tools it was given."""

    def _stream(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        call = call_for(guard_messages(messages), kwargs.get("tools"), kwargs.get("tool_choice"))
        chunks: list[AIMessageChunk] = word_chunks(TEXT) if call is None else call_chunks(*call)
        chunks[-1].response_metadata["model_name"] = kwargs.get("model", self.model_name)
        for chunk in chunks:
            yield ChatGenerationChunk(message=chunk)

    async def _astream(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, **kwargs):
            yield chunk


class SmartGuard(ScriptedGuard):
    """A scripted guard whose model sees tools in its template, and writes calls as text."""

    def __init__(self) -> None:
        super().__init__(TEXT)
        self.model.tokenizer = tiny_models.tokenizer()
        self.model.tokenizer.chat_template = TOOLS_TEMPLATE

    def _open(self, conversation: Any, generation: object) -> Any:
        call = call_for(conversation.messages, conversation.tools, None)
        written = None if call is None else '{{"name": "{}", "arguments": {}}}'.format(*call)
        self._answer = TEXT if written is None else f"<tool_call>\n{written}\n</tool_call>"
        source, session = super()._open(conversation, generation)
        source.usage = Usage(prompt_tokens=5, completion_tokens=len(words(self._answer)))
        return source, session


@cache
def reference() -> Guard:
    return Guard.from_pretrained("reference")


class _AroundScripted:
    chat_model_class = ChatAdaGuard
    supports_model_override = True
    model_override_value = "another"

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"inner": SmartChatModel(script=lambda _: []), "guard": Guard(sidecar=ScriptedSidecar())}


class _AroundOpenAI:
    chat_model_class: type[BaseChatModel] = ChatAdaGuard
    supports_model_override = True
    model_override_value = "another"
    supports_json_mode = True
    supports_image_inputs = False  # the suite loads its pictures from the network
    base_url: ClassVar[str]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _served(cls) -> Iterator[None]:
        with ScriptedEndpoint(reply_for).serve() as cls.base_url:
            yield

    @property
    def chat_model_params(self) -> dict[str, Any]:
        inner = ChatOpenAI(model="scripted", base_url=self.base_url, api_key="key", stream_usage=True)
        return {"inner": inner, "guard": Guard(sidecar=ScriptedSidecar())}


class _Endpoint(_AroundOpenAI):
    chat_model_class = ChatAdaGuardEndpoint  # the server is the same, the model another

    @property
    def chat_model_params(self) -> dict[str, Any]:
        guard = Guard.for_endpoint(
            self.base_url, model="scripted", sidecar=ScriptedSidecar(), api_key_env=None, verify=False
        )
        return {"guard": guard}


class _Reference:
    chat_model_class = ChatAdaGuardHuggingFace
    supports_model_override = False  # it is loaded
    has_tool_calling = False  # its template knows no tools
    has_structured_output = False  # which is made of tool calls

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"guard": reference()}


class _Local:
    chat_model_class = ChatAdaGuardHuggingFace
    supports_model_override = False  # it is loaded
    has_tool_choice = False  # nothing forces a local model

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"guard": SmartGuard()}


forced = pytest.mark.xfail(raises=ConfigError, strict=True, reason="the suite forces a call: a local model cannot be")
loopback = pytest.mark.allow_hosts(["127.0.0.1"])


class TestAroundScriptedUnit(_AroundScripted, ChatModelUnitTests): ...


class TestAroundScripted(_AroundScripted, ChatModelIntegrationTests): ...


@loopback
class TestAroundOpenAIUnit(_AroundOpenAI, ChatModelUnitTests): ...


# ChatOpenAI's own: about pydantic's old classes, which it then binds as tools, and when it streams parsed output.
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning")
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@loopback
class TestAroundOpenAI(_AroundOpenAI, ChatModelIntegrationTests): ...


@loopback
class TestEndpointUnit(_Endpoint, ChatModelUnitTests): ...


@loopback
class TestEndpoint(_Endpoint, ChatModelIntegrationTests): ...


class TestReferenceUnit(_Reference, ChatModelUnitTests): ...


class TestReference(_Reference, ChatModelIntegrationTests): ...


class TestLocalUnit(_Local, ChatModelUnitTests):
    @forced
    def test_bind_tool_pydantic(self, model: Any, my_adder_tool: Any) -> None:
        super().test_bind_tool_pydantic(model, my_adder_tool)


class TestLocal(_Local, ChatModelIntegrationTests):
    @forced
    def test_structured_few_shot_examples(self, model: Any, my_adder_tool: Any) -> None:
        super().test_structured_few_shot_examples(model, my_adder_tool)

    @forced
    def test_unicode_tool_call_integration(self, model: Any) -> None:
        super().test_unicode_tool_call_integration(model)
