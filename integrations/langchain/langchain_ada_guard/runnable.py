"""A guard as a step of a chain, behind a model. Weaker than a guarded model, and says so."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import MessageLikeRepresentation, convert_to_messages
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    patch_config,
    set_config_context,
)

from ada_guard import Guard
from ada_guard.errors import GenerationError
from langchain_ada_guard.counts import TOLD_ONCE
from langchain_ada_guard.guarded import require_guard
from langchain_ada_guard.items import (
    aitems_as_chunks,
    as_chat_chunk,
    as_output,
    is_whole,
    items_as_chunks,
    judged,
    only,
    sum_of,
)
from langchain_ada_guard.messages import guard_messages, guard_tools
from langchain_ada_guard.relay import ObservedRelay, Relay
from langchain_ada_guard.report import Reporter

__all__ = ["STAND_IN", "RunnableAdaGuard"]

Asked: TypeAlias = Sequence[MessageLikeRepresentation] | Callable[[RunnableConfig], Sequence[MessageLikeRepresentation]]
STAND_IN = "Please answer."
"""The user's turn that an answer is judged behind where nobody says what it answers."""


class RunnableAdaGuard(Runnable[Any, Any]):
    """Guards what the step before it gives: ``prompt | model | RunnableAdaGuard(guard) | StrOutputParser()``.

    It stands directly behind a model, where a cut closes the model's stream and so stops it; or behind
    `StrOutputParser`. What comes out has the type of what goes in. For plain chains only: a guarded model
    (`langchain_ada_guard.guard_model`) protects more, for

    - callbacks, tracers and ``astream_events``' ``on_chat_model_stream`` still see all that the model writes: they
      belong to the model's own step;
    - with ``invoke`` the model has written its whole answer before it is judged;
    - LangChain's own parsers read what is before them to its end, also when nobody reads on. Behind one, a cut does not
      stop the model of a sync chain; before one, a consumer that breaks off does not, as without a guard;
    - the prompt is not among what goes in: without `messages` the answer is judged behind a neutral stand-in for the
      user's turn, which was never measured. A forbidden request whose answer looks harmless by itself can pass so.

    It is a step of its own in traces, with what it released as its output and nothing as its input.

    Args:
        guard: Who judges, when, and what happens then.
        messages: What the answer answers: messages, or a function of the step's config that gives them.
        tools: Tools that the model was given, in any form that ``bind_tools`` takes.
        template_kwargs: Variables of the sidecar's chat template.
        name: The name of the step.

    Raises:
        ConfigError: It was given no guard; when it is run, neither messages nor text.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        messages: Asked | None = None,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name
        self.guard = require_guard(guard, "RunnableAdaGuard")
        self._messages = messages
        self._tools = tools
        self._template_kwargs = template_kwargs

    def invoke(
        self,
        input: Any,  # noqa: A002  # the host's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Judges a whole answer."""
        config = ensure_config(config)
        run = self._start(config)
        try:
            with closing(self._answers(iter([as_chat_chunk(input)]), _child(config, run))) as chunks:
                answer = judged(input, list(chunks))
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(answer)
        return answer

    async def ainvoke(
        self,
        input: Any,  # noqa: A002  # the host's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `invoke`, for async code."""
        config = ensure_config(config)
        run = await self._astart(config)
        try:
            async with aclosing(self._aanswers(only(as_chat_chunk(input)), _child(config, run))) as chunks:
                answer = judged(input, [chunk async for chunk in chunks])
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(answer)
        return answer

    def transform(
        self,
        input: Iterator[Any],  # noqa: A002  # the host's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Guards a stream. LangChain's helper for this is not used: it reads the model's stream to its end."""
        config, source = ensure_config(config), iter(input)
        first = next(source, None)  # the step before starts before this one does
        run = self._start(config)
        shown: list[Any] = []
        try:
            with closing(self._outputs(first, source, _child(config, run))) as outputs:
                tap = _tap(run, "tap_output_iter")
                for output in outputs if tap is None else tap(run.run_id, outputs):
                    shown.append(output)
                    yield output
        except GeneratorExit:
            run.on_chain_end(sum_of(shown))
            raise
        except BaseException as error:
            run.on_chain_error(error)
            raise
        else:
            run.on_chain_end(sum_of(shown))
        finally:
            if callable(close := getattr(source, "close", None)):
                close()

    async def atransform(
        self,
        input: AsyncIterator[Any],  # noqa: A002  # the host's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """As `transform`, for async code."""
        config, source = ensure_config(config), aiter(input)
        first = await anext(source, None)
        run = await self._astart(config)
        shown: list[Any] = []
        try:
            async with aclosing(self._aoutputs(first, source, _child(config, run))) as outputs:
                tap = _tap(run, "tap_output_aiter")
                async for output in outputs if tap is None else tap(run.run_id, outputs):
                    shown.append(output)
                    yield output
        except GeneratorExit:
            await run.on_chain_end(sum_of(shown))
            raise
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        else:
            await run.on_chain_end(sum_of(shown))
        finally:
            if callable(aclose := getattr(source, "aclose", None)):
                await aclose()

    def _outputs(self, first: Any, source: Iterator[Any], config: RunnableConfig) -> Generator[Any, None, None]:
        if is_whole(first):
            with closing(self._answers(iter([as_chat_chunk(first)]), config)) as chunks:
                yield judged(first, list(chunks))
            return
        as_text = isinstance(first, str)
        with closing(self._answers(items_as_chunks(first, source), config)) as chunks:
            for chunk in chunks:
                if (output := as_output(chunk, as_text=as_text)) is not None:
                    yield output

    async def _aoutputs(
        self, first: Any, source: AsyncIterator[Any], config: RunnableConfig
    ) -> AsyncGenerator[Any, None]:
        if is_whole(first):
            async with aclosing(self._aanswers(only(as_chat_chunk(first)), config)) as chunks:
                yield judged(first, [chunk async for chunk in chunks])
            return
        as_text = isinstance(first, str)
        async with aclosing(self._aanswers(aitems_as_chunks(first, source), config)) as chunks:
            async for chunk in chunks:
                if (output := as_output(chunk, as_text=as_text)) is not None:
                    yield output

    def _answers(
        self, source: Iterator[ChatGenerationChunk], config: RunnableConfig
    ) -> Generator[ChatGenerationChunk, None, None]:
        """The chunks that pass, and the one that ends an answer that was cut."""
        relay, reporter = self._relay(), _reporter(config)
        try:
            with closing(self.guard.stream_from(relay.deltas(source), **self._asked(config))) as events:
                for event in events:
                    reporter.tell(event)
                    yield from relay.chunks(event)
        except GenerationError:
            if relay.failure is None:
                raise
        if relay.failure is not None:
            raise relay.failure

    async def _aanswers(
        self, source: AsyncIterator[ChatGenerationChunk], config: RunnableConfig
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        relay, reporter = self._relay(), _reporter(config)
        try:
            async with aclosing(self.guard.astream_from(relay.adeltas(source), **self._asked(config))) as events:
                async for event in events:
                    await reporter.atell(event)
                    for chunk in relay.chunks(event):
                        yield chunk
        except GenerationError:
            if relay.failure is None:
                raise
        if relay.failure is not None:
            raise relay.failure

    def _relay(self) -> Relay:
        return ObservedRelay(raises=self.guard.policy.on_flag == "raise")

    def _asked(self, config: RunnableConfig) -> dict[str, Any]:
        given = self._messages(config) if callable(self._messages) else self._messages
        return {
            "messages": guard_messages(convert_to_messages(given if given is not None else [("user", STAND_IN)])),
            "tools": guard_tools(self._tools),
            "template_kwargs": self._template_kwargs,
        }

    def _start(self, config: RunnableConfig) -> CallbackManagerForChainRun:
        return get_callback_manager_for_config(config).on_chain_start(None, {"input": ""}, **self._told(config))

    async def _astart(self, config: RunnableConfig) -> AsyncCallbackManagerForChainRun:
        manager = get_async_callback_manager_for_config(config)
        return await manager.on_chain_start(None, {"input": ""}, **self._told(config))

    def _told(self, config: RunnableConfig) -> dict[str, Any]:
        return {"name": config.get("run_name") or self.get_name(), "run_id": config.pop("run_id", None)}


def _child(config: RunnableConfig, run: Any) -> RunnableConfig:
    return patch_config(config, callbacks=run.get_child())


def _reporter(config: RunnableConfig) -> Reporter:
    callbacks: Any = config["callbacks"]
    told = callbacks.copy()
    told.add_metadata({TOLD_ONCE: True}, inherit=False)
    with set_config_context(patch_config(config, callbacks=told)) as context:
        return context.run(Reporter, None)


def _tap(run: Any, method: str) -> Callable[[Any, Any], Any] | None:
    """How ``astream_events`` listens to what a step gives out."""
    return next((getattr(handler, method) for handler in run.handlers if hasattr(handler, method)), None)
