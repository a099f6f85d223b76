"""Structured output of a guarded LLM: a cut is an error there, never a value that is silently missing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import InstanceOf

from ada_guard import CheckError, ConfigError, ContentFlaggedError, Event, Guard, Verdict
from ada_guard.events import Check, Halt
from ada_guard.verdict import Decision

__all__ = ["StructuredCalls", "cut_error", "wants_value"]

_WANTS_VALUE: ContextVar[bool] = ContextVar("ada_guard_wants_value", default=False)
_END = object()


def wants_value() -> bool:
    """Whether whoever calls now makes a value of the answer, and could make none of a replacement."""
    return _WANTS_VALUE.get()


def cut_error(events: Sequence[Event]) -> ContentFlaggedError | CheckError:
    """What is raised in the place of a value, from the events of the stream that was cut."""
    halt = next(event for event in events if isinstance(event, Halt))
    if halt.reason != "flag":
        return CheckError(f"check at depth {halt.depth} failed: there is no structured output")
    check = [event for event in events if isinstance(event, Check) and event.decision == "flag"][-1]
    return ContentFlaggedError(
        Verdict(
            decision=Decision.FLAG,
            checker=check.checker,
            depth=check.depth,
            harm_probability=check.harm_probability,
            threshold=check.threshold,
            reason=check.reason,
            lookahead_tokens=check.lookahead_tokens,
            partial_view=check.partial_view,
        )
    )


class StructuredCalls(FunctionCallingLLM):
    """The four methods that make a value of an answer. After a cut they raise, whatever the policy does elsewhere."""

    # A setting that is misspelt would be one that silently does not hold.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    guard: InstanceOf[Guard] = Field(exclude=True, repr=False, description="Who judges, when, and what happens then.")

    def __reduce__(self) -> NoReturn:
        """Refuses to be pickled, before LlamaIndex takes apart the object for it.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("a guarded LLM cannot be pickled: it holds a guard")

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy with the same guard: models and connections are not copied."""
        return super().__deepcopy__({**(memo or {}), id(self.guard): self.guard})

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """A value of the class asked for.

        Raises:
            ContentFlaggedError: The answer was cut.
            CheckError: It was cut because a check could not be made.
        """
        with _wanting_value():
            return super().structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`, for async code."""
        with _wanting_value():
            return await super().astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        """As `structured_predict`, with the value as far as it has come."""
        values: Any = super().stream_structured_predict(*args, **kwargs)

        def stream() -> Generator[Any, None, None]:
            with closing(values):
                while True:
                    with _wanting_value():
                        value = next(values, _END)
                    if value is _END:
                        return
                    yield value

        return stream()

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """As `stream_structured_predict`, for async code."""
        values: Any = await super().astream_structured_predict(*args, **kwargs)

        async def stream() -> AsyncGenerator[Any, None]:
            async with aclosing(values):
                while True:
                    with _wanting_value():
                        value = await anext(values, _END)
                    if value is _END:
                        return
                    yield value

        return stream()


@contextmanager
def _wanting_value() -> Iterator[None]:
    token = _WANTS_VALUE.set(True)
    try:
        yield
    finally:
        _WANTS_VALUE.reset(token)
