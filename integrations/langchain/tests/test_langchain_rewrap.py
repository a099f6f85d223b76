"""`guard_model` guards every model that could answer, or says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableBranch, RunnableLambda, RunnableParallel

from ada_guard import ConfigError, Guard, Policy
from ada_guard.policy import DEFAULT_REPLACEMENT, Schedule
from ada_guard.testing import UNSAFE, ScriptedSidecar
from langchain_ada_guard import guard_model
from langchain_ada_guard.testing import ScriptedChatModel

BENIGN = "Fold the paper once, turn it over and fold it again."
HARMFUL = f"Take the first one and the next {UNSAFE} stuff, then the rest of it."
WHICH = ConfigurableField(id="which")


def guard() -> Guard:
    return Guard(sidecar=ScriptedSidecar(), policy=Policy(schedule=Schedule.every(4)))


def saying(text: str) -> Any:
    return ScriptedChatModel.saying(text)


def configured() -> Any:
    return init_chat_model("gpt-4o", model_provider="openai", configurable_fields=("temperature",), api_key="k")


def test_an_alternative_that_is_made_when_it_is_chosen_is_guarded() -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return saying(HARMFUL).bind(stop=["x"])

    model = guard_model(
        saying(BENIGN).configurable_alternatives(WHICH, default_key="a", b=make, c=saying(HARMFUL)), guard()
    )
    assert made == []
    assert model.invoke("?").text == BENIGN
    for which in "bc":
        assert model.with_config(configurable={"which": which}).invoke("?").text == DEFAULT_REPLACEMENT
    assert made == [1]


def test_an_alternative_of_a_prompt_may_be_made_when_it_is_chosen() -> None:
    prompts = ChatPromptTemplate.from_template("{x}").configurable_alternatives(
        WHICH, b=lambda: ChatPromptTemplate.from_template("b {x}")
    )
    model = guard_model(prompts | saying(HARMFUL), guard())
    assert model.with_config(configurable={"which": "b"}).invoke({"x": "?"}).text == DEFAULT_REPLACEMENT


@pytest.mark.parametrize("make", [lambda: FakeListLLM(responses=[HARMFUL]), lambda: RunnableLambda(str)])
def test_an_alternative_without_a_chat_model_is_a_config_error_when_it_is_made(make: Any) -> None:
    model = guard_model(saying(BENIGN).configurable_alternatives(WHICH, b=make), guard())
    with pytest.raises(ConfigError, match="no chat model"):
        model.with_config(configurable={"which": "b"}).invoke("?")


UNGUARDED = {
    "a fallback that is a model of plain text": lambda: saying(BENIGN).with_fallbacks([FakeListLLM(responses=["a"])]),
    "a fallback that a call makes": lambda: saying(BENIGN).with_fallbacks([configured()]),
    "a fallback that is a function": lambda: saying(BENIGN).with_fallbacks([RunnableLambda(str)]),
    "the other way round": lambda: FakeListLLM(responses=["a"]).with_fallbacks([saying(BENIGN)]),
    "an alternative of plain text": lambda: saying(BENIGN).configurable_alternatives(
        WHICH, b=FakeListLLM(responses=["a"])
    ),
    "an alternative of something else": lambda: FakeListLLM(responses=["a"]).configurable_alternatives(
        WHICH, b=saying(BENIGN)
    ),
    "a branch": lambda: RunnableBranch((lambda _: True, configured()), saying(BENIGN)),
    "one beside it": lambda: RunnableParallel(a=saying(BENIGN), b=FakeListLLM(responses=["a"]).bind(stop=["x"])),
}


@pytest.mark.parametrize("build", UNGUARDED.values(), ids=UNGUARDED)
def test_what_would_answer_unguarded_beside_a_chat_model_is_one_clear_line(build: Any) -> None:
    with pytest.raises(ConfigError, match="chat model") as raised:
        guard_model(build(), guard())
    assert "\n" not in str(raised.value)


def test_functions_among_the_steps_are_left_alone() -> None:
    chain = (
        RunnableLambda(str) | saying(HARMFUL).with_fallbacks([saying(BENIGN)]) | RunnableLambda(lambda said: said.text)
    )
    assert guard_model(chain, guard()).invoke("?") == DEFAULT_REPLACEMENT
