"""Structured output of a guarded ChatOpenAI: the same objects, and after a cut an error, never a silent None."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import pytest
from langchain_core import exceptions
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from ada_guard import ConfigError, Guard, Policy
from ada_guard.policy import Schedule
from ada_guard.testing import UNSAFE, Chunk, Reply, ScriptedEndpoint, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard, StructuredOutputCutError

pytestmark = [
    pytest.mark.allow_hosts(["127.0.0.1"]),
    # ChatOpenAI's own, whenever it streams a json_schema, guarded or not.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

Method = Literal["function_calling", "json_schema", "json_mode"]
Serve = Callable[..., ChatOpenAI]
CUT: type[Exception] = getattr(exceptions, "ModelRefusalError", StructuredOutputCutError)

both = pytest.mark.parametrize("how", ["sync", "async"])
methods = pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
raw_too = pytest.mark.parametrize("include_raw", [False, True])


class Recipe(BaseModel):
    """How to make something."""

    name: str
    steps: list[str]


BENIGN = json.dumps({"name": "paper boat", "steps": ["fold the paper once", "turn it over", "fold it again"]})
HARMFUL = json.dumps({"name": "a thing", "steps": ["take the first part", f"mix the {UNSAFE} stuff", "and the rest"]})


def pieces(text: str) -> list[str]:
    return [text[at : at + 6] for at in range(0, len(text), 6)]


def endpoint(said: str, method: Method) -> ScriptedEndpoint:
    """One that answers in the way of a method: with a tool call, or with text."""
    if method != "function_calling":
        return ScriptedEndpoint(Reply(items=pieces(said)))
    function: dict[str, Any] = {"name": "Recipe", "arguments": ""}
    head = {"index": 0, "id": "c1", "type": "function", "function": function}
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in pieces(said)]
    items = [Chunk(delta={"tool_calls": [call]}) for call in (head, *rest)]
    return ScriptedEndpoint(Reply(items=items, finish_reason="tool_calls"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an endpoint and gives a client of it."""
    with ExitStack() as stack:

        def client(served: ScriptedEndpoint, **settings: Any) -> ChatOpenAI:
            url = stack.enter_context(served.serve())
            key = SecretStr("none")
            return ChatOpenAI(model="m", base_url=url, api_key=key, max_retries=0, streaming=True, **settings)

        yield client


def guarded(inner: BaseChatModel) -> ChatAdaGuard:
    return ChatAdaGuard(inner=inner, guard=Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=Schedule.every(4))))


async def invoked(runnable: Any, how: str) -> Any:
    return runnable.invoke("?") if how == "sync" else await runnable.ainvoke("?")


async def streamed(runnable: Any, how: str) -> list[Any]:
    return list(runnable.stream("?")) if how == "sync" else [part async for part in runnable.astream("?")]


def plain(result: Any) -> Any:
    """A result without what differs from run to run."""
    if not isinstance(result, dict) or "raw" not in result:
        return result
    return {**result, "raw": (result["raw"].content, result["raw"].tool_calls)}


@both
@methods
@raw_too
async def test_a_benign_object_is_the_unguarded_one(how: str, method: Method, include_raw: bool, serve: Serve) -> None:
    inner = serve(endpoint(BENIGN, method))
    expected = await invoked(inner.with_structured_output(Recipe, method=method, include_raw=include_raw), how)
    ours = guarded(inner).with_structured_output(Recipe, method=method, include_raw=include_raw)
    assert plain(await invoked(ours, how)) == plain(expected)
    parsed = expected["parsed"] if include_raw else expected
    assert parsed == Recipe.model_validate_json(BENIGN)


@both
@methods
async def test_an_object_that_was_cut_is_an_error(how: str, method: Method, serve: Serve) -> None:
    structured = guarded(serve(endpoint(HARMFUL, method))).with_structured_output(Recipe, method=method)
    with pytest.raises(CUT) as raised:
        await invoked(structured, how)
    assert "take" not in str(raised.value)
    with pytest.raises(CUT):
        await streamed(structured, how)


@both
@methods
async def test_with_raw_the_error_of_a_cut_stands_beside_the_replacement(
    how: str, method: Method, serve: Serve
) -> None:
    model = guarded(serve(endpoint(HARMFUL, method)))
    found = await invoked(model.with_structured_output(Recipe, method=method, include_raw=True), how)
    assert isinstance(found["parsing_error"], CUT)
    assert found["parsed"] is None
    assert found["raw"].response_metadata["ada_guard"]["verdict"] == "flag"
    assert UNSAFE not in str(found)
    assert found["raw"].tool_calls == []


@both
@pytest.mark.parametrize("method", ["json_mode", "json_schema"])
async def test_partial_objects_of_a_stream_grow_to_the_unguarded_one(how: str, method: Method, serve: Serve) -> None:
    inner = serve(endpoint(BENIGN, method))
    schema = Recipe.model_json_schema()
    plain_parts = await streamed(inner.with_structured_output(schema, method=method), how)
    parts = await streamed(guarded(inner).with_structured_output(schema, method=method), how)
    assert parts[-1] == plain_parts[-1] == json.loads(BENIGN)
    assert all(part in plain_parts for part in parts if part)


@both
@pytest.mark.parametrize("method", ["json_mode", "json_schema"])
async def test_no_partial_object_of_a_stream_that_is_cut_holds_what_was_cut(
    how: str, method: Method, serve: Serve
) -> None:
    structured = guarded(serve(endpoint(HARMFUL, method))).with_structured_output(
        Recipe.model_json_schema(), method=method
    )
    parts: list[Any] = []

    async def collect() -> None:
        if how == "sync":
            parts.extend(structured.stream("?"))
        else:
            async for part in structured.astream("?"):
                parts.append(part)  # noqa: PERF401  # kept also when the stream raises

    with pytest.raises(CUT):
        await collect()
    assert UNSAFE not in str(parts)


@both
async def test_a_model_that_puts_a_step_before_itself_does_not_give_a_silent_none(how: str, serve: Serve) -> None:
    class Prompting(ChatOpenAI):
        def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
            return RunnableLambda(lambda asked: asked) | super().with_structured_output(schema, **kwargs)

    served = serve(endpoint(HARMFUL, "function_calling"))
    inner = Prompting(model="m", base_url=served.openai_api_base, api_key=SecretStr("none"), max_retries=0)
    with pytest.raises(CUT):
        await invoked(guarded(inner).with_structured_output(Recipe, method="function_calling"), how)


class Hidden(ChatOpenAI):
    """Builds a runnable in which nobody finds the model."""

    def with_structured_output(self, *args: Any, **kwargs: Any) -> Any:
        return RunnableLambda(lambda asked: self.invoke(asked))

    def bind_tools(self, *args: Any, **kwargs: Any) -> Any:
        return RunnableLambda(lambda asked: self.invoke(asked))


def test_a_model_that_hides_itself_is_a_config_error() -> None:
    model = guarded(Hidden(model="m", api_key=SecretStr("none")))
    with pytest.raises(ConfigError, match=r"Hidden\.with_structured_output hides its model"):
        model.with_structured_output(Recipe)
    with pytest.raises(ConfigError, match=r"Hidden\.bind_tools hides its model"):
        model.bind_tools([Recipe])


def test_a_model_without_structured_output_says_so_itself() -> None:
    class Bare(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "bare"

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            raise AssertionError

    with pytest.raises(NotImplementedError):
        guarded(Bare()).with_structured_output(Recipe)
