"""A guarded chat model on a local Hugging Face model, whose checks ride in its own decode steps."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from ada_guard import ConfigError, Event, Guard
from ada_guard.tool_template import messages_for_template, shows_tools
from ada_guard.tool_text import CallReader
from langchain_ada_guard.messages import guard_messages, guard_tools
from langchain_ada_guard.spoken import SpeakingChat, Spoken
from langchain_ada_guard.structured import refusing

__all__ = ["ChatAdaGuardHuggingFace"]

_STRUCTURED = "ls_structured_output_format"


class ChatAdaGuardHuggingFace(SpeakingChat):
    """A chat model on a local model, which judges its own answer at any depth.

    Tools are shown to the model by its chat template, and read out of the text that it writes; nothing forces it to
    call one: ``tool_choice`` is None or ``"auto"``. Structured output is such a call, whatever ``method`` says; it is
    None where the model did not make one.

    Example:
        ```python
        model = ChatAdaGuardHuggingFace.from_pretrained("Qwen/Qwen3-8B", probe="qwen3-8b.safetensors")
        ```
    """

    generation: Mapping[str, Any] = Field(default_factory=dict)
    """Further fields of transformers' ``GenerationConfig``, such as ``top_p``."""

    def _require_source(self) -> None:
        _ = self.guard.model

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        *,
        probe: Any = None,
        check: Any = None,
        policy: Any = None,
        check_pass: Any = "fused",
        **settings: Any,
    ) -> ChatAdaGuardHuggingFace:
        """A chat model on a model that is loaded by id or folder; see `ada_guard.Guard.from_pretrained`.

        Args:
            model: Hugging Face id, folder, or ``"reference"``.
            probe: A probe file or a loaded probe of this model.
            check: ``"probe"``, ``"rethink"``, ``"cascade"`` or a checker.
            policy: When to check and what to do then.
            check_pass: ``"fused"`` or ``"separate"``.
            settings: Fields of this class and of any LangChain chat model; the others are for loading the model:
                ``device``, ``dtype``, ``device_map``, ``revision`` and so on.

        Raises:
            ConfigError: The model or the probe cannot be had, or they do not belong together.
            MissingExtraError: torch or transformers is not installed.
        """
        others = {name: value for name, value in settings.items() if name not in cls.model_fields}
        guard = Guard.from_pretrained(
            model,
            probe=probe,
            check=check,
            policy=policy,
            check_pass=check_pass,
            **others,
        )
        return cls(guard=guard, **{name: value for name, value in settings.items() if name not in others})

    @property
    def _llm_type(self) -> str:
        return "ada-guard-huggingface"

    @property
    def model_name(self) -> str:
        """The id or folder of the model."""
        return self.guard.model.name

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "model_name": self.model_name, "generation": dict(self.generation)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        return {**params, "ls_provider": "huggingface"}

    def get_token_ids(self, text: str) -> list[int]:
        """As the model's own tokenizer cuts a text."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        ids: list[int] = self.guard.model.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """As the chat template writes them, the beginning of an answer included.

        A part of a conversation that the template does not take by itself, such as a lone answer, is counted by its
        texts.
        """
        try:
            prompt = self.guard.model.encode(
                self._template_messages(messages, self.template_kwargs),
                tools=guard_tools([convert_to_openai_tool(tool) for tool in tools or ()]),
                template_kwargs=self.template_kwargs,
            )
        except ConfigError:
            return sum(self.get_num_tokens(json.dumps(each, ensure_ascii=False)) for each in guard_messages(messages))
        return len(prompt.ids) + len(prompt.prefill_ids)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools that the chat template shows to the model. A call is released with an answer that passed.

        Raises:
            ConfigError: The template ignores tools; a choice that would have to be forced.
        """
        # with_structured_output says "any"; its parser reads what there is.
        if tool_choice not in (None, "auto") and _STRUCTURED not in kwargs:
            raise ConfigError("a local model cannot be made to call a tool: leave tool_choice out, or say 'auto'")
        kwargs.pop("strict", None)  # nothing checks arguments here, strictly or not
        self._require_template_with_tools()
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Structured output as a tool call. After a cut an error is raised, as in `ChatAdaGuard`."""
        return refusing(super().with_structured_output(schema, include_raw=include_raw, **kwargs))

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
        """The arguments of the guard's stream."""
        settings = self._settings(stop, self.generation, asked)
        tools = guard_tools(settings.pop("tools", None))
        if (limit := settings.pop("max_tokens", None)) is not None:
            of_this_call = asked.get("max_tokens") is not None and asked.get("max_new_tokens") is None
            settings["max_new_tokens"] = limit if of_this_call else settings.get("max_new_tokens", limit)
        passage.model_name = self.model_name
        kwargs = settings.pop("template_kwargs", self.template_kwargs)
        shown = self._template_messages(messages, kwargs)
        if tools:
            tokenizer, prompt = self.guard.model.tokenizer, []
            if getattr(tokenizer, "response_template", None) is not None:
                prompt = [*self.guard.model.encode(shown, tools=tools, template_kwargs=kwargs).ids]
            passage.reader = CallReader(tokenizer, tools, prompt=prompt)
        return {"messages": shown, "tools": tools, "template_kwargs": kwargs, **settings}

    def _template_messages(
        self, messages: list[BaseMessage], template_kwargs: Mapping[str, Any] | None
    ) -> list[Mapping[str, Any]]:
        return messages_for_template(self.guard.model.tokenizer, guard_messages(messages), template_kwargs)

    def _require_template_with_tools(self) -> None:
        if not shows_tools(self.guard.model.tokenizer):
            raise ConfigError("the model's chat template ignores tools: the model was not made to call any")
