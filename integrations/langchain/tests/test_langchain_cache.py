"""What LangChain's cache keeps of guarded answers: what the guard let pass, under a key of this guard alone."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.tracers._streaming import _StreamingCallbackHandler

from ada_guard import Guard, Policy
from ada_guard.errors import CheckError
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, ScriptedSidecar
from langchain_ada_guard import ChatAdaGuard
from langchain_ada_guard.testing import ScriptedChatModel

BENIGN = "Fold the paper once, turn it over and fold it again until it looks like a small boat."
HARMFUL = f"Take the first one and the next {UNSAFE} stuff, then the secret rest of all of it follows here."

both = pytest.mark.parametrize("how", ["sync", "async"])
places = pytest.mark.parametrize("place", ["own", "global"])


@pytest.fixture
def shared() -> Iterator[InMemoryCache]:
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


def guarded(said: str, *, unsafe: str = UNSAFE, sidecar: Any = None, **settings: Any) -> ChatAdaGuard:
    sidecar = sidecar or ScriptedSidecar(unsafe)
    guard = Guard(sidecar=sidecar, policy=Policy(schedule=settings.pop("schedule", Schedule.every(4))))
    return ChatAdaGuard(inner=ScriptedChatModel.saying(said), guard=guard, **settings)


async def invoked(model: Any, how: str, **config: Any) -> Any:
    return model.invoke("?", config) if how == "sync" else await model.ainvoke("?", config)


@both
@places
@pytest.mark.parametrize(("said", "shown"), [(BENIGN, BENIGN), (HARMFUL, DEFAULT_REPLACEMENT)])
async def test_a_hit_replays_the_guarded_answer(
    how: str, place: str, said: str, shown: str, shared: InMemoryCache
) -> None:
    cache = InMemoryCache() if place == "own" else None
    model = guarded(said, **({"cache": cache} if cache else {}))
    asked = [await invoked(model, how), await invoked(model, how)]
    assert [answer.text for answer in asked] == [shown, shown]
    assert isinstance(model.inner, ScriptedChatModel)
    assert model.inner.closed == 1
    kept = str(list((cache or shared)._cache.values()))
    assert shown in kept
    assert UNSAFE not in kept
    assert "Take" not in kept


@both
async def test_an_entry_of_an_answer_that_was_watched_holds_no_released_prefix_either(
    how: str, shared: InMemoryCache
) -> None:
    model = guarded(HARMFUL)
    watching = _Watching()
    await invoked(model, how, callbacks=[watching])
    assert watching.heard > 2
    assert "Take" not in str(list(shared._cache.values()))


class _Watching(BaseCallbackHandler, _StreamingCallbackHandler):  # type: ignore[misc]  # as LangGraph's own are made
    """Makes `invoke` stream."""

    heard = 0

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.heard += 1

    def tap_output_iter(self, run_id: Any, output: Any) -> Any:
        return output

    def tap_output_aiter(self, run_id: Any, output: Any) -> Any:
        return output


class FailingOnce(ScriptedSidecar):
    """Cannot judge its first stream."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        following = yield from super().open(*args, **kwargs)
        if len(self.followed) == 1:

            def fails(depth: int) -> float:
                raise CheckError("no answer")

            following._harm = fails
        return following


@both
@places
async def test_an_answer_that_could_not_be_checked_is_not_kept(how: str, place: str, shared: InMemoryCache) -> None:
    cache = InMemoryCache() if place == "own" else None
    model = guarded(BENIGN, sidecar=FailingOnce(), **({"cache": cache} if cache else {}))
    first = await invoked(model, how)
    assert first.response_metadata["ada_guard"]["verdict"] == "unchecked"
    assert (cache or shared)._cache == {}
    assert (await invoked(model, how)).text == BENIGN


@both
async def test_another_guard_and_no_guard_do_not_find_the_answer(how: str, shared: InMemoryCache) -> None:
    models = [
        guarded(BENIGN).inner,
        guarded(BENIGN),
        guarded(BENIGN, unsafe="other"),
        guarded(BENIGN, schedule=Schedule.every(3)),
        guarded(BENIGN, template_kwargs={"enable_thinking": False}),
    ]
    for model in models:
        await invoked(model, how)
    assert len(shared._cache) == len(models)


@both
async def test_cache_off_is_off(how: str, shared: InMemoryCache) -> None:
    model = guarded(BENIGN, cache=False)
    await invoked(model, how)
    assert shared._cache == {}


async def test_a_cache_that_was_asked_for_and_is_not_there_is_langchains_error() -> None:
    with pytest.raises(ValueError, match="no cache found"):
        guarded(BENIGN, cache=True).invoke("?")
