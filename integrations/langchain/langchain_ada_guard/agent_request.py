"""One request of an agent to its model: whichever model a middleware puts into it comes out guarded and watched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, fields
from typing import Any

from langchain.agents.middleware import ModelRequest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackManager, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import Field, InstanceOf

from ada_guard import AdaGuardError, ConfigError, ContentFlaggedError, Guard
from ada_guard.policy import DEFAULT_REPLACEMENT
from langchain_ada_guard.agent_cut import OWED_KEY, AnswerCut, kept_message
from langchain_ada_guard.agent_report import AnswerReport
from langchain_ada_guard.chat_models import ChatAdaGuard
from langchain_ada_guard.cut import METADATA_KEY, usage_after
from langchain_ada_guard.guarded import GuardedChat
from langchain_ada_guard.rewrap import swap_models

__all__ = ["Watch", "WatchedChat"]


class _GuardedRequest(ModelRequest[Any]):
    """A request whose model is guarded."""


class Watch:
    """Guards the models of one request, and knows which messages they wrote.

    Args:
        guard: For models that have none yet.
        template_kwargs: Variables of the sidecar's chat template, for those models.
        write: LangGraph's stream writer.
    """

    def __init__(
        self, guard: Guard, template_kwargs: Mapping[str, Any] | None, write: Callable[[Any], None] | None
    ) -> None:
        self._guard = guard
        self._template_kwargs = template_kwargs
        self._write = write or (lambda _: None)
        self._written: list[BaseMessage] = []
        self._asked = self._answered = False
        self.report: AnswerReport | None = None

    def request(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """The same request, whose model is guarded whatever becomes of it: replaced, overridden or assigned to."""
        if isinstance(request, _GuardedRequest):
            raise ConfigError("two AdaGuardMiddleware in one agent: one is enough")
        guarded = self.guarded

        class GuardedRequest(_GuardedRequest):
            # ``override``, ``dataclasses.replace`` and assignment all end here.
            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, guarded(value) if name == "model" else value)

        return GuardedRequest(**{field.name: getattr(request, field.name) for field in fields(request)})

    def hear(self) -> AnswerReport:
        """Begins with the next answer."""
        self._asked = True
        self.report = AnswerReport(self._write)
        return self.report

    def note(self, message: BaseMessage, *, whole: bool) -> None:
        """A guarded model wrote this message, or a part of it."""
        self._asked, self._answered = True, self._answered or whole
        self._written.append(message)

    def wrote(self, message: BaseMessage) -> bool:
        """Whether a guarded model wrote a message."""
        return any(message is one or (message.id is not None and message.id == one.id) for one in self._written)

    @property
    def failed(self) -> bool:
        """Whether a guarded model was asked and did not answer: a middleware may speak for it then."""
        return self._asked and not self._answered

    def guarded(self, model: Any) -> Any:
        """The same model, guarded and watched.

        Raises:
            ConfigError: There is no chat model in it.
        """
        found_any = False

        def swap(found: BaseChatModel) -> BaseChatModel:
            nonlocal found_any
            found_any = True
            if isinstance(found, WatchedChat):
                if found.watch is self:
                    return found
                found = found.inner
            if not isinstance(found, GuardedChat):
                found = ChatAdaGuard(inner=found, guard=self._guard, template_kwargs=self._template_kwargs)
            return WatchedChat(inner=found, guard=found.guard, callbacks=found.callbacks, watch=self)

        swapped = swap_models(model, swap) if isinstance(model, Runnable) else model
        if not found_any:
            raise ConfigError(
                f"AdaGuardMiddleware found no chat model in a {type(model).__name__}: give the agent a chat model"
            )
        return swapped


class WatchedChat(ChatAdaGuard):
    """A guarded chat model for one request of an agent.

    It raises nothing for flagged text: what a middleware around it must not take for a failure stands in the metadata
    of the message. All else is left to the guarded model inside.
    """

    inner: GuardedChat
    watch: InstanceOf[Watch] = Field(exclude=True, repr=False)
    parsed: bool = False
    """Whether the agent parses the text of the answer."""

    @property
    def _llm_type(self) -> str:
        return self.inner._llm_type

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return dict(self.inner._identifying_params)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        key = self.inner._get_llm_string(stop, **kwargs)
        # An answer that was flagged is kept here, where another guarded model raises and keeps nothing.
        return f"{key} agent" if self.guard.policy.on_flag == "raise" else key

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """As the model inside. ``response_format`` is how an agent asks the provider for structured output."""
        if kwargs.get("response_format") is not None and not self.parsed:
            told: WatchedChat = self.model_copy(update={"parsed": True})
            return told.bind_tools(tools, tool_choice=tool_choice, **kwargs)
        return super().bind_tools(tools, tool_choice=tool_choice, **kwargs)

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002  # as LangChain calls it
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As any chat model; after a cut the replacement alone."""
        return self._noted(super().invoke(input, config, stop=stop, **kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002  # as LangChain calls it
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As `invoke`, for async code."""
        return self._noted(await super().ainvoke(input, config, stop=stop, **kwargs))

    def _noted(self, message: AIMessage) -> AIMessage:
        kept = kept_message(message, self.guard.policy)
        self.watch.note(kept, whole=True)
        if self.parsed and kept is not message:
            raise AnswerCut(kept)
        return kept

    def _heard(self) -> tuple[AnswerReport, GuardedChat]:
        """The model inside, with somebody who hears what its guard says of the next answer."""
        report = self.watch.hear()
        own = self.inner.callbacks
        others = own.handlers if isinstance(own, BaseCallbackManager) else own or []
        heard: GuardedChat = self.inner.model_copy(update={"callbacks": [*others, report]})
        return report, heard

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        report, inner = self._heard()
        shown = _Shown()
        try:
            with closing(inner._stream(messages, stop, run_manager, **kwargs)) as chunks:  # type: ignore[type-var]  # a generator
                for chunk in chunks:
                    self.watch.note(chunk.message, whole=False)
                    shown.add(chunk.message)
                    yield chunk
        except AdaGuardError as error:
            yield _last_chunk(report, error, shown)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        report, inner = self._heard()
        shown = _Shown()
        try:
            async with aclosing(inner._astream(messages, stop, run_manager, **kwargs)) as chunks:  # type: ignore[type-var]  # likewise
                async for chunk in chunks:
                    self.watch.note(chunk.message, whole=False)
                    shown.add(chunk.message)
                    yield chunk
        except AdaGuardError as error:
            yield _last_chunk(report, error, shown)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        report, inner = self._heard()
        try:
            return inner._generate(messages, stop, run_manager, **kwargs)
        except AdaGuardError as error:
            return _cut_result(report, error)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        report, inner = self._heard()
        try:
            return await inner._agenerate(messages, stop, run_manager, **kwargs)
        except AdaGuardError as error:
            return _cut_result(report, error)


@dataclass(slots=True)
class _Shown:
    """What the chunks of an answer were like that have passed."""

    message_id: str | None = None
    listed: bool = False
    usage: UsageMetadata | None = None

    def add(self, message: BaseMessage) -> None:
        # Read before LangChain gives chunks without an id the one of its run.
        self.message_id = self.message_id or message.id
        self.listed = self.listed or isinstance(message.content, list)
        if isinstance(message, AIMessageChunk) and message.usage_metadata:
            self.usage = add_usage(self.usage, message.usage_metadata)


def _last_chunk(report: AnswerReport, error: AdaGuardError, shown: _Shown) -> ChatGenerationChunk:
    """Ends a stream for which the guard raised.

    Raises:
        AdaGuardError: The error, if it does not say that the answer was cut.
    """
    entry, empty = report.cut(error), [] if shown.listed else ""
    if not isinstance(error, ContentFlaggedError):
        # The chunk with the replacement has passed: only what is owed is missing.
        owed: dict[str, Any] = {METADATA_KEY: {name: entry[name] for name in (OWED_KEY, "error")}}
        return ChatGenerationChunk(message=AIMessageChunk(content=empty, id=shown.message_id, response_metadata=owed))
    message = AIMessageChunk(
        content=empty,
        id=shown.message_id,
        response_metadata={"finish_reason": "content_filter", METADATA_KEY: entry},
        usage_metadata=usage_after(shown.usage, 0, report.usage),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def _cut_result(report: AnswerReport, error: AdaGuardError) -> ChatResult:
    """As `_last_chunk`, for a whole answer."""
    entry = report.cut(error)
    message = AIMessage(
        content=DEFAULT_REPLACEMENT if entry["replacement_chars"] else "",
        response_metadata={"finish_reason": "content_filter", METADATA_KEY: entry},
        usage_metadata=usage_after(None, 0, report.usage),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])
