"""The guard as a middleware of LangChain's agents. Holds no guard logic: it puts guarded models into their requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.runtime import Runtime

from ada_guard import ConfigError, Guard
from langchain_ada_guard.agent_cut import AnswerCut, kept_message, owing, raise_owed
from langchain_ada_guard.agent_report import annotate_trace
from langchain_ada_guard.agent_request import Watch
from langchain_ada_guard.agent_words import ajudged, judged
from langchain_ada_guard.cut import cut_of

__all__ = ["AdaGuardMiddleware"]

try:
    from langchain_ada_guard.agent_channel import VerdictTransformer
except ImportError:  # langgraph before its named channels: the custom stream has the verdicts all the same
    _TRANSFORMERS: tuple[Any, ...] = ()
else:
    _TRANSFORMERS = (VerdictTransformer,)


class AdaGuardMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Guards an agent's own model calls: no surface of the agent shows of them what the guard has not passed.

    Put it last in the list: a middleware behind it sees a guarded model where it may look for its provider's class.
    A model that such a middleware puts into the request is guarded too. One that it calls by itself is not: what that
    says is refused with a `ConfigError`, but its tokens may have been streamed by then. What a middleware behind it
    says of a model that failed is judged like an answer; what one in front of it says is not.

    A middleware in front of it that asks the agent's model by itself, as `LLMToolSelectorMiddleware` does if it is
    given none, asks the model that the agent was made with. Make the agent with ``guard_model(model, guard)`` then:
    all of its calls are guarded, this middleware keeps that guard and adds all that follows here. Models that tools
    and other middlewares bring along are guarded in the same way.

    After a cut, streams show the released text and the replacement; the agent's state and its checkpoints hold the
    replacement only. With ``on_flag="raise"`` the agent raises `ContentFlaggedError` after the model's step, where
    `ModelRetryMiddleware` and `ModelFallbackMiddleware` do not ask again; its state then ends with the replacement. So
    it does with the error of a replacement function that failed. A `CheckError`, which says that the sidecar could not
    judge, is raised by the model itself and may be retried. An agent with a ``response_format`` raises langchain-core's
    ``ModelRefusalError`` or `StructuredOutputCutError` after a cut, whatever the policy says.

    That takes an ``after_model`` hook: one more step of the graph, and one more checkpoint, for each answer of the
    model. Count it where you set a ``recursion_limit``. Such hooks run from the last middleware to the first: one
    behind this that jumps, or adds a message of the user, passes the error by: the agent ends with the replacement.

    What the guard finds is written to the run's custom stream as ``{"ada_guard": {...}}``, on ``version="v3"`` runs
    also to ``run.extensions["ada_guard"]``, and stands in the metadata of the LangSmith run and in the attributes of
    the OpenTelemetry span around the model's step: ``ada_guard.verdict``, ``.depth``, ``.released_depth``, ``.checks``.

    Args:
        guard: Who judges, when, and what happens then.
        template_kwargs: Variables of the sidecar's chat template.

    Example:
        ```python
        agent = create_agent(model, tools, middleware=[AdaGuardMiddleware(guard)])
        ```
    """

    transformers = _TRANSFORMERS

    def __init__(self, guard: Guard, *, template_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if not isinstance(guard, Guard):
            raise ConfigError("AdaGuardMiddleware takes a Guard: Guard.for_sidecar makes one of a sidecar")
        self.tools = []
        self.guard = guard
        self.template_kwargs = template_kwargs

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Calls the model guarded."""
        with self._watching(request) as watch:
            try:
                response = handler(watch.request(request))
            except* AnswerCut as cuts:  # one, or one in the group of a middleware's tasks
                response = ModelResponse(result=[AnswerCut.first_of(cuts).message])
            return self._kept(judged(response, watch, request), watch, request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`, for async code."""
        with self._watching(request) as watch:
            try:
                response = await handler(watch.request(request))
            except* AnswerCut as cuts:
                response = ModelResponse(result=[AnswerCut.first_of(cuts).message])
            return self._kept(await ajudged(response, watch, request), watch, request)

    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """Raises what a cut answer owes."""
        del runtime
        raise_owed(state["messages"])

    async def aafter_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """As `after_model`, for async code."""
        self.after_model(state, runtime)

    @contextmanager
    def _watching(self, request: ModelRequest[Any]) -> Iterator[Watch]:
        """One request's watch; what it has heard goes to the trace."""
        watch = Watch(self.guard, self.template_kwargs, getattr(request.runtime, "stream_writer", None))
        try:
            yield watch
        finally:
            if watch.report is not None:
                annotate_trace(watch.report.summary)

    def _kept(self, response: ModelResponse[Any], watch: Watch, request: ModelRequest[Any]) -> ModelResponse[Any]:
        """The response as the agent's state may hold it."""
        return replace(response, result=[self._kept_message(message, watch, request) for message in response.result])

    def _kept_message(self, message: BaseMessage, watch: Watch, request: ModelRequest[Any]) -> BaseMessage:
        if not isinstance(message, AIMessage):
            return message
        if not watch.wrote(message):
            raise ConfigError(
                "inside AdaGuardMiddleware a model answered that it could not guard: "
                "put AdaGuardMiddleware last in the middleware list"
            )
        kept = kept_message(message, self.guard.policy)
        return owing(kept, "refusal") if request.response_format is not None and cut_of(kept) is not None else kept
