"""A guarded chat model around any other one.

It calls the protected half of the model inside: the public half would tell LangChain's callbacks what nobody has
checked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextvars import copy_context
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import model_validator

from ada_guard import ConfigError, Event, Guard, Policy
from langchain_ada_guard.guarded import GuardedChat, whole_answer
from langchain_ada_guard.inner import (
    as_chunk,
    awhole_chunk,
    awhole_result,
    choices,
    streams,
    wants_streaming,
    whole_chunk,
    whole_result,
    with_generations,
)
from langchain_ada_guard.messages import guard_messages, guard_tools
from langchain_ada_guard.relay import Relay
from langchain_ada_guard.report import Reporter
from langchain_ada_guard.rewrap import swap_models
from langchain_ada_guard.structured import refusing
from langchain_ada_guard.unobserved import in_context, unobserved

__all__ = ["ChatAdaGuard", "guard_model"]

_TAKEN_OVER = (
    "rate_limiter",
    "output_version",
    "disable_streaming",
    "cache",
    "name",
    "tags",
    "custom_get_token_ids",
)
"""Settings that LangChain applies around a model, so that the model inside would not apply them any more."""


class ChatAdaGuard(GuardedChat):
    """A chat model around another one: nothing it says is seen anywhere before a guard has passed it.

    The model inside is called below LangChain's callbacks, so that no callback, tracer or event stream sees raw tokens.
    Its own ``callbacks`` are therefore never called: give them to this one, which shows them what passes.

    Example:
        ```python
        model = ChatAdaGuard(inner=ChatOpenAI(model="..."), guard=Guard.for_sidecar("http://127.0.0.1:8008"))
        ```
    """

    inner: BaseChatModel
    """The model that generates."""
    stream_invoke: bool = True
    """Whether `invoke` streams from the model inside, so that a cut stops it. Otherwise it waits for the whole answer
    and judges that: for models whose streams lack something that their whole answers have, such as usage."""
    template_kwargs: Mapping[str, Any] | None = None
    """Variables of the sidecar's chat template."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        if not isinstance(inner := fields.get("inner"), BaseChatModel):
            given = "none was given" if inner is None else f"not a {type(inner).__name__}"
            raise ConfigError(
                f"ChatAdaGuard takes a chat model as inner=, {given}: guard_model takes what is bound to one"
            )
        super().__init__(*args, **fields)

    @model_validator(mode="after")
    def _take_over(self) -> ChatAdaGuard:
        for name in _TAKEN_OVER:
            if name not in self.model_fields_set:
                setattr(self, name, getattr(self.inner, name, None))
        self.profile = self.profile or self.inner.profile
        self.metadata = {**(self.inner.metadata or {}), **(self.metadata or {})}
        return self

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        wanted = {"stream": True} if self._wants_streaming() else {}
        return super()._should_stream(async_api=async_api, run_manager=run_manager, **{**wanted, **kwargs})

    def _wants_streaming(self) -> bool:
        inner = self.inner
        return self.stream_invoke and (
            inner._wants_streaming() if isinstance(inner, ChatAdaGuard) else wants_streaming(inner)
        )

    @property
    def _llm_type(self) -> str:
        return f"ada-guard-{self.inner._llm_type}"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        view = {"template_kwargs": dict(self.template_kwargs)} if self.template_kwargs else {}
        return {**self.inner._identifying_params, **super()._identifying_params, **view}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return self.inner._get_ls_params(stop=stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        inside = self.inner._get_llm_string(stop, **kwargs)
        return f"{inside} {super()._get_llm_string(stop, **kwargs)}"

    @property
    def model_name(self) -> str | None:
        """The name of the model inside."""
        names = (getattr(self.inner, name, None) for name in ("model_name", "model", "model_id"))
        return next((name for name in names if isinstance(name, str)), None)

    def get_num_tokens(self, text: str) -> int:
        """As the model inside counts."""
        return self.inner.get_num_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        """As the model inside counts."""
        return self.inner.get_token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """As the model inside counts."""
        return self.inner.get_num_tokens_from_messages(messages, **({} if tools is None else {"tools": tools}))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools as the model inside does. A call is released with the end of an answer that passed, or never."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        bound = self.inner.bind_tools(tools, **kwargs)
        return self._around(bound, "bind_tools")

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Structured output as the model inside makes it.

        After a cut there is none: langchain-core's ``ModelRefusalError`` is raised where the installed version has it,
        else `StructuredOutputCutError`; with ``include_raw`` it stands under ``parsing_error``.
        """
        structured = self.inner.with_structured_output(schema, include_raw=include_raw, **kwargs)
        return refusing(self._around(structured, "with_structured_output"))

    def _around(self, runnable: Runnable[Any, Any], made_by: str) -> Runnable[Any, Any]:
        """What a method of the model inside built, with this model in its place."""

        def guarded(model: BaseChatModel) -> BaseChatModel:
            return self if model is self.inner else self.model_copy(update={"inner": model})

        wrapped = swap_models(runnable, guarded)
        if wrapped is runnable:
            raise ConfigError(f"{type(self.inner).__name__}.{made_by} hides its model: it cannot be guarded")
        return wrapped

    def _passage(self) -> Relay:
        return Relay(model_name=self.model_name, raises=self.guard.policy.on_flag == "raise")

    def _events(
        self, passage: Relay, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> Generator[Event, None, None]:
        kind = streams(self.inner, settings)
        if kind["sync"]:
            with unobserved():
                chunks = self.inner._stream(messages, stop=stop, **settings)
        else:
            chunks = whole_chunk(self.inner, messages, stop, settings)
        return self.guard.stream_from(passage.deltas(chunks), **self._asked(messages, settings))

    def _aevents(
        self, passage: Relay, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]
    ) -> AsyncGenerator[Event, None]:
        kind = streams(self.inner, settings)
        asked = self._asked(messages, settings)
        if kind["async"]:
            with unobserved():
                chunks = self.inner._astream(messages, stop=stop, **settings)
        elif kind["sync"]:
            # Driven here, on a worker thread: LangChain's own bridge would leave it running after a cut.
            with unobserved():
                steps = in_context(copy_context(), self.inner._stream(messages, stop=stop, **settings))
            return self.guard.astream_from(passage.deltas(steps), **asked)
        else:
            chunks = awhole_chunk(self.inner, messages, stop, settings)
        return self.guard.astream_from(passage.adeltas(chunks), **asked)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if streams(self.inner, kwargs)["sync"] and self.stream_invoke and choices(self.inner, kwargs) == 1:
            return super()._generate(messages, stop, run_manager, **kwargs)
        result = whole_result(self.inner, messages, stop, kwargs)
        judged = []
        for generation in result.generations:
            passage, reporter = self._passage(), Reporter(self.callbacks, run_manager)
            chunks: list[ChatGenerationChunk] = []
            deltas = passage.deltas(iter([as_chunk(generation)]))
            for event in self.guard.stream_from(deltas, **self._asked(messages, kwargs)):
                reporter.tell(event)
                chunks += passage.chunks(event)
            judged.append(whole_answer(chunks).generations[0] if passage.cut else generation)
        return with_generations(result, judged)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if any(streams(self.inner, kwargs).values()) and self.stream_invoke and choices(self.inner, kwargs) == 1:
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        result = await awhole_result(self.inner, messages, stop, kwargs)
        judged = []
        for generation in result.generations:
            passage, reporter = self._passage(), Reporter(self.callbacks, run_manager)
            chunks: list[ChatGenerationChunk] = []
            deltas = passage.deltas(iter([as_chunk(generation)]))
            async for event in self.guard.astream_from(deltas, **self._asked(messages, kwargs)):
                await reporter.atell(event)
                chunks += passage.chunks(event)
            judged.append(whole_answer(chunks).generations[0] if passage.cut else generation)
        return with_generations(result, judged)

    def _asked(self, messages: list[BaseMessage], settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the answer answers, as the guard takes it."""
        return {
            "messages": guard_messages(messages),
            "tools": guard_tools(settings.get("tools") or settings.get("functions")),
            "template_kwargs": self.template_kwargs,
        }


def guard_model(
    model: Runnable[Any, Any],
    guard: Guard | None = None,
    *,
    sidecar: Any = None,
    probe: Any = None,
    check: Any = None,
    policy: Policy | None = None,
) -> Any:
    """The same model, guarded.

    Args:
        model: A chat model, or one with tools or settings bound to it.
        guard: A guard that many models may share; without it the other arguments make one, as `Guard.for_sidecar`.
        sidecar: What judges: the URL of a sidecar server, a Hugging Face id or folder to load here, ``"reference"``.
        probe: A probe file for a sidecar that is loaded here.
        check: ``"probe"``, ``"rethink"``, ``"cascade"`` or a checker.
        policy: When to check and what to do then.

    Returns:
        A `ChatAdaGuard`, or what was bound around the model with one inside.

    Raises:
        ConfigError: There is no chat model in it; neither a guard nor a sidecar was given, or both.
    """
    if not isinstance(guard, Guard | None):
        raise ConfigError(f"guard_model takes a Guard, not a {type(guard).__name__}: give what judges as sidecar=")
    if guard is None:
        if sidecar is None:
            raise ConfigError("guard_model needs something that judges: give a guard, or sidecar=")
        guard = Guard.for_sidecar(sidecar, probe=probe, check=check, policy=policy)
    elif any(given is not None for given in (sidecar, probe, check, policy)):
        raise ConfigError("guard_model takes a guard, or what to make one of: not both")
    guarded = (
        swap_models(model, lambda inner: ChatAdaGuard(inner=inner, guard=guard))
        if isinstance(model, Runnable)
        else model
    )
    if guarded is model:
        raise ConfigError(
            f"there is no chat model in this {type(model).__name__}: guard_model takes a chat model, or one with tools "
            "or settings bound to it"
        )
    return guarded
