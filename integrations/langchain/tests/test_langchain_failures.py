"""An error of the model inside that could quote its answer is only named; one about reaching it comes through."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import BaseModel, ValidationError

from ada_guard import ContentFlaggedError, Guard, Policy
from ada_guard.errors import GenerationError
from ada_guard.policy import Schedule
from ada_guard.testing import UNSAFE, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.testing import ScriptedChatModel, word_chunks

HARMFUL = f"one two three four five six seven eight nine {UNSAFE} ten"
both = pytest.mark.parametrize("how", ["sync", "async"])
verbs = pytest.mark.parametrize("verb", ["invoke", "stream"])


class Answer(BaseModel):
    x: int


def unread() -> ValidationError:
    try:
        Answer.model_validate_json(json.dumps({"x": HARMFUL}))
    except ValidationError as error:
        return error
    raise AssertionError


def unread_behind_a_response() -> Exception:
    error = RefusedError("invalid")
    error.__cause__ = unread()
    return error


class RefusedError(Exception):
    """As the clients of providers raise it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.status_code = 429


class Failing(BaseChatModel):
    """A model that does not stream, and fails."""

    error: Any

    @property
    def _llm_type(self) -> str:
        return "failing"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise self.error


class FailingStream(Failing):
    """One that streams, and fails behind some chunks."""

    before: tuple[AIMessageChunk, ...] = ()

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self.before:
            yield ChatGenerationChunk(message=chunk.model_copy())
        raise self.error


def guarded(inner: BaseChatModel, *, on_flag: Any = "replace", **settings: Any) -> ChatAdaGuard:
    policy = Policy(schedule=Schedule.every(4), on_flag=on_flag)
    return ChatAdaGuard(inner=inner, guard=Guard(sidecar=ScriptedSidecar(), policy=policy), **settings)


async def error_of(model: Any, how: str, verb: str) -> BaseException:
    async def call() -> None:
        if how == "sync":
            model.invoke("?") if verb == "invoke" else list(model.stream("?"))
        elif verb == "invoke":
            await model.ainvoke("?")
        else:
            [chunk async for chunk in model.astream("?")]

    with pytest.raises(Exception) as raised:
        await call()
    return raised.value


QUOTING = [ValueError(HARMFUL), unread(), OutputParserException(HARMFUL), unread_behind_a_response()]
TRANSPORT = [
    ConnectionError("down"),
    TimeoutError("late"),
    RefusedError("busy"),
    httpx.ReadTimeout("late"),
    httpx.HTTPStatusError("busy", request=httpx.Request("GET", "http://x"), response=httpx.Response(503)),
]


@both
@verbs
@pytest.mark.parametrize("error", QUOTING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("settings", [{}, {"stream_invoke": False}, {"disable_streaming": True}], ids=str)
async def test_an_error_of_a_whole_answer_that_could_quote_it_is_named_only(
    how: str, verb: str, error: Exception, settings: dict[str, Any]
) -> None:
    raised = await error_of(guarded(Failing(error=error), **settings), how, verb)
    assert isinstance(raised, GenerationError)
    assert str(raised) == f"the source failed ({type(error).__name__})"
    assert UNSAFE not in "".join(traceback.format_exception(raised))
    assert (raised.__cause__, raised.__context__) == (None, None)


@both
@verbs
@pytest.mark.parametrize("error", TRANSPORT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [Failing, FailingStream])
async def test_an_error_about_reaching_the_model_comes_through(
    how: str, verb: str, error: Exception, kind: type[Failing]
) -> None:
    # A worker thread's TimeoutError is made anew on its way.
    assert repr(await error_of(guarded(kind(error=error)), how, verb)) == repr(error)


@both
@verbs
async def test_before_its_first_chunk_a_stream_may_fail_with_anything_that_does_not_quote(how: str, verb: str) -> None:
    error = TypeError("unknown setting")
    assert await error_of(guarded(FailingStream(error=error)), how, verb) is error
    for quoting in QUOTING[1:]:
        assert isinstance(await error_of(guarded(FailingStream(error=quoting)), how, verb), GenerationError)


@both
@verbs
async def test_behind_a_chunk_without_text_only_errors_about_reaching_the_model_come_through(
    how: str, verb: str
) -> None:
    before = (AIMessageChunk(content="", id="m"),)
    late = TimeoutError("late")
    assert await error_of(guarded(FailingStream(error=late, before=before)), how, verb) is late
    raised = await error_of(guarded(FailingStream(error=ValueError(HARMFUL), before=before)), how, verb)
    assert isinstance(raised, GenerationError)
    assert UNSAFE not in "".join(traceback.format_exception(raised))


@both
@verbs
async def test_behind_text_no_error_of_the_model_comes_through(how: str, verb: str) -> None:
    before = tuple(word_chunks("one two three")[:3])
    for error in [*QUOTING, *TRANSPORT]:
        assert isinstance(
            await error_of(guarded(FailingStream(error=error, before=before)), how, verb), GenerationError
        )


@both
@verbs
async def test_what_a_guard_inside_raises_stays_what_it_is(how: str, verb: str) -> None:
    inside = guarded(ScriptedChatModel.saying(HARMFUL), on_flag="raise")
    assert isinstance(await error_of(guarded(inside), how, verb), ContentFlaggedError)
