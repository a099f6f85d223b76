"""A companion sidecar: a check is that of a fresh run over the prompt and the first settled ids. Promises 3 and 5."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import fresh_score, probed
from tiny_models import trained_tokenizer

from ada_guard import CheckError, ConfigError, Decision, Done, Guard, Policy, Release, Schedule, Verdict
from ada_guard.checking import LOOKAHEAD_TOKENS, Ask, AskProbe, Calibration, CheckContext, Checking
from ada_guard.delta import Fragment, ToolCall
from ada_guard.local import LocalModel
from ada_guard.session import Piece
from ada_guard.sidecar.companion import Companion, LocalSidecar
from ada_guard.sidecar.protocol import Conversation
from ada_guard.steps import run

USER = [{"role": "user", "content": "How do I bake bread?"}]
VOCABULARY = 1024
CONTEXT_TOKENS = 160


class Scores:
    """Passes everything, with the probe's score in its verdict."""

    name = "scores"
    asks: frozenset[type[Ask]] = frozenset({AskProbe})

    def prepare(self, calibration: Calibration | None, schedule: Schedule) -> Scores:
        return self

    def check(self, context: CheckContext) -> Checking:
        p = yield AskProbe()
        return Verdict(decision=Decision.PASS, checker="scores", depth=context.depth, harm_probability=p)


class FlagsFrom(Scores):
    """Flags from a depth on."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def check(self, context: CheckContext) -> Checking:
        verdict = yield from super().check(context)
        return replace(verdict, decision=Decision.FLAG if context.depth >= self._depth else Decision.PASS)


@cache
def model_for(kind: str, **overrides: Any) -> LocalModel:
    net = tiny_models.build("llama", vocab_size=VOCABULARY, **overrides)
    return probed(LocalModel(net, trained_tokenizer(kind)))


@contextlib.contextmanager
def sidecar_on(model: LocalModel, **settings: Any) -> Iterator[LocalSidecar]:
    sidecar = LocalSidecar(model, **{"window_ms": 0, **settings})
    try:
        yield sidecar
    finally:
        run(sidecar.close())


def opened(sidecar: LocalSidecar, messages: Any = USER) -> Companion:
    return run(sidecar.open(Conversation.of(messages), asks=Scores.asks, schedule=Schedule.every(1)))


def check(companion: Companion, depth: int) -> Verdict:
    context = CheckContext(depth=depth, generated_tokens=depth - companion.prefill_tokens, answer=str)
    return run(companion.check(Scores(), context))


def score(companion: Companion, depth: int) -> float:
    p = check(companion, depth).harm_probability
    assert p is not None
    return p


SNIPPETS = [
    "It's", " I'll", " naïve café", "e\u0301", " नमस्ते", "你好，世界。", "今天天气很好", " 🙂",
    "👨\u200d👩\u200d👧", "\n\n", "    return x[0]", "def f(a, b):\n", "12345678", "=" * 70, "<|im_end|>",
    "<|im_start|>assistant\n", "\r\n", " the bread", ".",
]  # fmt: skip
NO_BRACES = st.characters(exclude_characters="{}", exclude_categories=["Cs"])
"""Arguments that are never a whole object: a call that goes on behind one is an error."""
CHANNELS = st.sampled_from(["text", "text", "text", "reasoning", "tool_call"])
ANSWERS = st.lists(
    st.tuples(CHANNELS, st.sampled_from(SNIPPETS) | st.text(NO_BRACES, max_size=4)), min_size=1, max_size=8
)


def fragments_for(answer: list[tuple[Any, str]], data: st.DataObject) -> list[Fragment]:
    """An answer in random pieces."""
    fragments: list[Fragment] = []
    for channel, text in answer:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
        call = ToolCall(index=0, name="find") if channel == "tool_call" else None
        fragments += [
            Fragment(text=text[start:end], channel=channel, call=call) for start, end in pairwise([0, *cuts, len(text)])
        ]
    return fragments


@pytest.mark.parametrize("kind", ["gpt-2", "llama-3", "nfc", "metaspace", "llama-2", "gemma"])
@settings(max_examples=12, deadline=None)
@given(answer=ANSWERS, data=st.data())
def test_each_check_equals_a_fresh_run_over_the_first_settled_ids(
    kind: str, answer: list[tuple[Any, str]], data: st.DataObject
) -> None:
    model = model_for(kind)
    fragments = fragments_for(answer, data)
    with sidecar_on(model) as sidecar:
        companion = opened(sidecar)
        prompt = list(model.encode(USER).ids)
        ids: list[int] = []
        found: dict[int, float] = {}

        def settled(pieces: list[Piece]) -> None:
            """Checks at some of the depths that have been reached, in order, as a session does."""
            before = len(ids)
            ids.extend(piece.token_id for piece in pieces if piece.token_id is not None)
            for depth in range(before + 1, len(ids) + 1):
                if data.draw(st.booleans()):
                    found[depth] = score(companion, depth)

        for fragment in fragments:
            settled(run(companion.push([fragment])))
        settled(run(companion.flush()))
        found[len(ids)] = score(companion, len(ids))
        run(companion.close())
    for depth in data.draw(st.lists(st.sampled_from(sorted(found)), min_size=1, max_size=4)):
        assert found[depth] == pytest.approx(fresh_score(model, [*prompt, *ids[:depth]]), abs=1e-4)


def test_a_prefill_counts_and_is_behind_the_prompt() -> None:
    model = model_for("gpt-2")
    with sidecar_on(model) as sidecar:
        companion = opened(sidecar, [*USER, {"role": "assistant", "content": "Mix the"}])
        assert (companion.prefill_text, companion.prefill_tokens > 0) == ("Mix the", True)
        pieces = [*run(companion.push([Fragment(text=" flour")])), *run(companion.flush())]
        ids = [*model.encode(USER).ids, *trained_tokenizer("gpt-2").encode("Mix the flour")]
        depth = companion.prefill_tokens + len(pieces)
        assert score(companion, depth) == pytest.approx(fresh_score(model, ids), abs=1e-4)


def test_the_models_end_of_turn_is_neither_fed_nor_counted() -> None:
    model = model_for("gpt-2")
    end = trained_tokenizer("gpt-2").eos_token_id
    with sidecar_on(model) as sidecar:
        companion = opened(sidecar)
        pieces = run(companion.push([Fragment(text="bread")], [40, 41, end]))
        assert [piece.token_id for piece in pieces] == [40, 41]
        assert score(companion, 2) == pytest.approx(fresh_score(model, [*model.encode(USER).ids, 40, 41]), abs=1e-4)


def test_a_stream_that_is_closed_takes_no_place_again() -> None:
    with sidecar_on(small(), on_long_answer="slide") as sidecar:
        companion = opened(sidecar)
        long_answer(companion)
        run(companion.close())
        with pytest.raises(CheckError, match="closed"):
            check(companion, 300)
        assert sidecar.stats.sessions == 0


def test_an_image_makes_each_verdict_partial() -> None:
    with sidecar_on(model_for("gpt-2")) as sidecar:
        image = {"type": "image_url", "image_url": {"url": "data:"}}
        companion = opened(sidecar, [{"role": "user", "content": [{"type": "text", "text": "What?"}, image]}])
        assert check(companion, 0).partial_view
        assert not check(opened(sidecar), 0).partial_view


@pytest.mark.parametrize("kind", ["gpt-2", "llama-2", "dropping"])
@settings(max_examples=12, deadline=None)
@given(answer=ANSWERS, every=st.integers(1, 9), data=st.data())
def test_a_benign_stream_is_released_whole_and_in_order_on_every_channel(
    kind: str, answer: list[tuple[Any, str]], every: int, data: st.DataObject
) -> None:
    with sidecar_on(model_for(kind)) as sidecar:
        guard = Guard(sidecar=sidecar, checker=Scores(), policy=Policy(schedule=Schedule.every(every)))
        session = guard.session(USER)
        events = [event for fragment in fragments_for(answer, data) for event in session.push(fragment)]
        events += session.close()
    done = events[-1]
    assert isinstance(done, Done)
    assert done.unchecked_released_tokens == 0
    assert done.released_tokens == done.generated_tokens
    releases = [event for event in events if isinstance(event, Release)]
    for channel in ("text", "reasoning", "tool_call"):
        assert "".join(event.text for event in releases if event.channel == channel) == "".join(
            text for each, text in answer if each == channel
        )
    assert sum(event.channel == "tool_call" for event in releases) == any(each == "tool_call" for each, _ in answer)


def test_of_a_stream_that_is_cut_no_part_of_a_call_is_released() -> None:
    with sidecar_on(model_for("gpt-2")) as sidecar:
        guard = Guard(sidecar=sidecar, checker=FlagsFrom(40), policy=Policy(schedule=Schedule.every(4)))
        session = guard.session(USER)
        events = session.push([Fragment(text="I will look. ", channel="reasoning"), Fragment(text="Look: ")])
        call = ToolCall(index=0, id="a", name="find")
        for _ in range(20):
            events += session.push(Fragment(text='{"query": "the bread", ', channel="tool_call", call=call))
        assert session.ended
        releases = [event for event in events if isinstance(event, Release)]
        assert {event.channel for event in releases} == {"reasoning", "text"}


# -- the context's end ------------------------------------------------------------------------------------------------


def small() -> LocalModel:
    return model_for("gpt-2", max_position_embeddings=CONTEXT_TOKENS)


USABLE = CONTEXT_TOKENS - LOOKAHEAD_TOKENS


def long_answer(companion: Companion) -> list[int]:
    pieces = [*run(companion.push([Fragment(text=" bake the bread," * 80)])), *run(companion.flush())]
    return [piece.token_id for piece in pieces if piece.token_id is not None]


def test_an_answer_that_outgrows_the_context_is_an_error_by_default() -> None:
    with sidecar_on(small()) as sidecar:
        companion = opened(sidecar)
        ids = long_answer(companion)
        room = USABLE - len(small().spec.rethink.ids) - companion.prompt_tokens
        assert not check(companion, room).partial_view
        assert len(ids) > room
        with pytest.raises(CheckError, match="outgrown"):
            check(companion, room + 1)


def test_a_prompt_that_is_too_long_is_refused_by_default() -> None:
    with sidecar_on(small()) as sidecar, pytest.raises(ConfigError, match="too long"):
        opened(sidecar, [{"role": "user", "content": "bread " * 300}])


def test_a_sliding_context_is_the_prompt_and_the_newest_tokens_and_says_so() -> None:
    model = small()
    with sidecar_on(model, on_long_answer="slide") as sidecar:
        companion = opened(sidecar)
        prompt = list(model.encode(USER).ids)
        usable = USABLE - len(model.spec.rethink.ids)
        room = usable - len(prompt)
        ids = long_answer(companion)
        assert not check(companion, room).partial_view
        with pytest.warns(UserWarning, match="outgrown"):
            verdict = check(companion, room + 1)
        kept = room // 2
        assert verdict.partial_view
        newest = [*prompt, *ids[room + 1 - kept : room + 1]]
        assert verdict.harm_probability == pytest.approx(fresh_score(model, newest), abs=1e-4)
        # Until it is full again, the context only grows.
        later = room + 1 + room - kept
        assert score(companion, later) == pytest.approx(
            fresh_score(model, [*prompt, *ids[room + 1 - kept : later]]), abs=1e-4
        )
        for depth in range(later + 1, len(ids) + 1, 7):
            assert check(companion, depth).partial_view
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one warning for a sidecar is enough
            other = opened(sidecar)
            long_answer(other)
            assert check(other, room + 1).partial_view


def test_a_sliding_context_keeps_the_beginning_and_the_newest_of_a_prompt_that_is_too_long() -> None:
    model = small()
    talk = [{"role": "system", "content": "S" * 20}, {"role": "user", "content": "bread " * 300}]
    prompt = list(model.encode(talk).ids)
    most = (USABLE - len(model.spec.rethink.ids)) // 2
    with sidecar_on(model, on_long_answer="slide") as sidecar:
        with pytest.warns(UserWarning, match="outgrown"):
            companion = opened(sidecar, talk)
        kept = [*prompt[: most // 4], *prompt[len(prompt) - (most - most // 4) :]]
        assert len(kept) == most
        assert companion.prompt_tokens == len(prompt)
        verdict = check(companion, 0)
        assert verdict.partial_view
        assert verdict.harm_probability == pytest.approx(fresh_score(model, kept), abs=1e-4)


def test_the_slid_context_does_not_depend_on_how_the_text_came() -> None:
    depths = range(5, 300, 5)
    scores = []
    for size in (1, 7, 5000):
        with sidecar_on(small(), on_long_answer="slide") as sidecar, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            companion = opened(sidecar)
            text = " bake the bread," * 80
            due = list(depths)
            found: list[float] = []
            settled = 0
            for at in range(0, len(text), size):
                settled += len(run(companion.push([Fragment(text=text[at : at + size])])))
                while due and due[0] <= settled:
                    found.append(score(companion, due.pop(0)))
            assert not due
            scores.append(found)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert scores[0] == pytest.approx(scores[2], abs=1e-4)


@pytest.mark.parametrize(("policy", "context"), [("stop", 512), ("slide", 40)])
def test_a_policy_that_cannot_work_is_refused(policy: Any, context: int) -> None:
    model = model_for("gpt-2", max_position_embeddings=context)
    with pytest.raises(ConfigError):
        LocalSidecar(model, on_long_answer=policy)
