"""A guarded chat model on a self-hosted OpenAI-compatible endpoint, over ada_guard's own client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any, Literal, get_args

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_openai_messages
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import Field

from ada_guard import ConfigError, Event, Guard
from ada_guard.assembly import choices_asked
from langchain_ada_guard.messages import guard_messages
from langchain_ada_guard.spoken import SpeakingChat, Spoken
from langchain_ada_guard.structured import refusing

__all__ = ["ChatAdaGuardEndpoint"]

_CHOICES = {"any": "required", True: "required", False: "none"}
_PARTS = frozenset({"text", "image_url", "input_audio", "audio_url", "video_url", "file"})
"""Kinds of parts that servers of this kind take."""
_WORDS = ("auto", "none", "required")
Method = Literal["function_calling", "json_schema", "json_mode"]


class ChatAdaGuardEndpoint(SpeakingChat):
    """A chat model on an endpoint such as vLLM, SGLang or llama.cpp. A cut closes its response: it stops generating.

    Example:
        ```python
        model = ChatAdaGuardEndpoint.for_endpoint(
            "http://127.0.0.1:8000/v1", model="Qwen/Qwen3-8B", sidecar="http://127.0.0.1:8008"
        )
        ```
    """

    model_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as ``top_p`` or ``extra_body``."""

    def _require_source(self) -> None:
        if self.guard.endpoint is None:
            raise ConfigError("this guard has no endpoint: make it by Guard.for_endpoint")
        if self.guard.endpoint.api != "chat":
            raise ConfigError("a chat model needs an endpoint with api='chat'")

    @classmethod
    def for_endpoint(
        cls,
        base_url: str,
        *,
        model: str,
        sidecar: Any,
        tokenizer: Any = None,
        probe: Any = None,
        check: Any = None,
        policy: Any = None,
        shared_tokenizer: bool | None = None,
        **settings: Any,
    ) -> ChatAdaGuardEndpoint:
        """A chat model on an endpoint; see `ada_guard.Guard.for_endpoint`.

        Args:
            base_url: Up to and with ``/v1``.
            model: Its name there.
            sidecar: What judges: the URL of a sidecar server, a Hugging Face id or folder to load here,
                ``"reference"``, a sidecar, or ``"self"``.
            tokenizer: For ``"self"``.
            probe: A probe file for a sidecar that is loaded here.
            check: ``"probe"``, ``"rethink"``, ``"cascade"`` or a checker.
            policy: When to check and what to do then.
            shared_tokenizer: Whether the endpoint's tokenizer is the sidecar's.
            settings: Fields of this class and of any LangChain chat model; the others are settings of
                `ada_guard.sources.Endpoint`, such as ``api_key``.

        Raises:
            ConfigError: A setting that cannot work.
        """
        others = {name: value for name, value in settings.items() if name not in cls.model_fields}
        guard = Guard.for_endpoint(
            base_url,
            model=model,
            sidecar=sidecar,
            tokenizer=tokenizer,
            probe=probe,
            check=check,
            policy=policy,
            shared_tokenizer=shared_tokenizer,
            **others,
        )
        return cls(guard=guard, **{name: value for name, value in settings.items() if name not in others})

    @property
    def _llm_type(self) -> str:
        return "ada-guard-endpoint"

    @property
    def model_name(self) -> str:
        """The model's name at the endpoint."""
        assert self.guard.endpoint is not None
        return self.guard.endpoint.model

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "model_name": self.model_name, "model_kwargs": dict(self.model_kwargs)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        return {**params, "ls_provider": "openai-compatible"}

    def get_token_ids(self, text: str) -> list[int]:
        """As ``custom_get_token_ids`` cuts a text.

        Raises:
            ConfigError: It was not given: the endpoint's tokenizer is not here, and another one's count would be wrong.
        """
        if self.custom_get_token_ids is None:
            raise ConfigError("give custom_get_token_ids: the tokenizer of the endpoint is not known here")
        return self.custom_get_token_ids(text)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools in OpenAI's form. A call is released with the end of an answer that passed, or never.

        Args:
            tools: Whatever LangChain can describe as a tool.
            tool_choice: ``"auto"``, ``"none"``, ``"required"`` or ``"any"``, the name of a tool, or the server's own
                object.
            strict: Whether the server is asked to keep to the schema.
            kwargs: Further fields of the request, such as ``parallel_tool_calls``.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = _choice(tool_choice)
        return self.bind(tools=[convert_to_openai_tool(tool, strict=strict) for tool in tools], **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Method = "function_calling",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Structured output. After a cut an error is raised, as in `ChatAdaGuard`.

        Args:
            schema: What is wanted.
            include_raw: Gives ``{"raw", "parsed", "parsing_error"}``.
            method: ``"function_calling"`` binds the schema as a tool; ``"json_schema"`` and ``"json_mode"`` ask by
                ``response_format``.
            strict: Whether the server is asked to keep to the schema.
            kwargs: None are taken.
        """
        if kwargs or method not in get_args(Method):
            raise ConfigError("with_structured_output takes schema, include_raw, method and strict")
        typed = isinstance(schema, type) and is_basemodel_subclass(schema)
        about = {"kwargs": {"method": method}, "schema": schema}
        parser: BaseOutputParser[Any]
        if method == "function_calling":
            model = self.bind_tools([schema], tool_choice="any", strict=strict, ls_structured_output_format=about)
            name = convert_to_openai_tool(schema)["function"]["name"]
            parser = (
                PydanticToolsParser(tools=[schema], first_tool_only=True)
                if typed
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        else:
            form: dict[str, Any] = {"type": "json_object"}
            if method == "json_schema":
                wanted = convert_to_json_schema(schema, strict=strict)
                named = {"name": wanted.get("title") or "answer", "schema": wanted}
                form = {"type": "json_schema", "json_schema": named if strict is None else {**named, "strict": strict}}
            model = self.bind(response_format=form, ls_structured_output_format=about)
            parser = PydanticOutputParser(pydantic_object=schema) if typed else JsonOutputParser()
        if not include_raw:
            return refusing(model | parser)
        nothing: Runnable[Any, None] = RunnableLambda(lambda _: None)
        parsed = RunnablePassthrough.assign(parsed=RunnableLambda(_raw) | parser, parsing_error=nothing)
        failed = RunnablePassthrough.assign(parsed=nothing)
        return refusing(RunnableParallel(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error"))

    def _events(
        self, passage: Spoken, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> Generator[Event, None, None]:
        return self.guard.stream(**self._asked(passage, messages, stop, settings))

    def _aevents(
        self, passage: Spoken, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> AsyncGenerator[Event, None]:
        return self.guard.astream(**self._asked(passage, messages, stop, settings))

    def _asked(
        self, passage: Spoken, messages: list[BaseMessage], stop: list[str] | None, asked: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of one stream."""
        settings = self._settings(stop, self.model_kwargs, asked)
        if choices_asked(settings) > 1:
            raise ConfigError("n > 1: a chat model gives one answer; use batch for several")
        passage.model_name = settings.get("model") or self.model_name
        settings.setdefault("template_kwargs", self.template_kwargs)
        return {"messages": _wire(messages), **settings}


def _choice(choice: str | bool | dict[str, Any]) -> Any:
    if isinstance(choice, dict) or choice in _WORDS:
        return choice
    return _CHOICES.get(choice, {"type": "function", "function": {"name": choice}})


def _raw(answer: Mapping[str, Any]) -> Any:
    return answer["raw"]


def _wire(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    """The messages as an OpenAI-compatible server takes them."""
    return [{**each, "content": _content(each)} for each in guard_messages(messages)]


def _content(message: Mapping[str, Any]) -> Any:
    """A content in OpenAI's form; what a model said in several pieces is one text."""
    content = message["content"]
    if not isinstance(content, list):
        return content
    try:
        [sent] = convert_to_openai_messages([HumanMessage(content)], text_format="block")
        parts = sent["content"]
    except (ValueError, TypeError, KeyError):
        parts = None
    if parts is None or {part["type"] for part in parts} - _PARTS:
        raise ConfigError("a message has a content that OpenAI's form does not have")
    if message["role"] != "user" and all(part["type"] == "text" for part in parts):
        return ("" if message["role"] == "assistant" else "\n").join(part["text"] for part in parts)
    return parts
