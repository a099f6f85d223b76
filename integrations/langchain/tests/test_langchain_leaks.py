"""Every surface, every place in an answer: a cut word is found nowhere, and a benign answer stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from ada_guard import ContentFlaggedError
from ada_guard.errors import GenerationError
from ada_guard.policy import DEFAULT_REPLACEMENT
from ada_guard.testing import UNSAFE
from langchain_ada_guard import ChatAdaGuard
from leak_matrix.matrix import SURFACES, Cell, arun_cell, run_sync_cell
from leak_matrix.plants import BENIGN, PLANTS
from leak_matrix.positions import OURS, PASSED, POSITIONS, Position, Setup, scripted_guard
from leak_matrix.surface import Surface
from leak_matrix.table import DOCS, block, by_plant, by_surface, recorded_versions, replaced, versions

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
NO_GUARD = next(position for position in POSITIONS if position.name == "no guard")
GUARDED = [position for position in POSITIONS if position.name in OURS]
BEHIND = next(position for position in POSITIONS if position.name == "RunnableAdaGuard")
ONLY_TEXT = {"chain.stream"}
"""Surfaces that show the text of an answer and nothing else of it."""
OF_EACH_KIND = ("text", "reasoning_content", "thinking block", "tool arguments", "logprobs and raw")
"""Plants that take each another way through the package."""
ALONE_RUNS: dict[tuple[str, str, str, str], Cell] = {}
"""Benign runs without a guard, kept for all that is compared with them."""


def shown(surface: Surface, plant: str) -> bool:
    """Whether a surface shows that part of an answer at all."""
    is_text = any(UNSAFE in str(chunk.text) for chunk in PLANTS[plant](UNSAFE))
    by_blocks = "stream_events v3" in surface.name and plant == "thinking block"  # no block of the event protocol
    return surface.has_words and (is_text or surface.name not in ONLY_TEXT) and not by_blocks


def cells(positions: Sequence[Position], plants: Sequence[str] = tuple(PLANTS), *, agents: bool = True) -> list[Any]:
    """Surface, position, plant and way, for each cell there is."""
    return [
        pytest.param(surface, position, plant, way, id=f"{surface.name}-{position.name}-{plant}-{way}")
        for surface in SURFACES
        for position in positions
        if surface.kind in position.kinds and (agents or surface.kind != "agent")
        for plant in plants
        if position is not NO_GUARD or shown(surface, plant)
        for way, use in (("sync", surface.use), ("async", surface.ause))
        if use is not None
    ]


async def run(surface: Surface, position: Position, plant: str, way: str, word: str = UNSAFE) -> Cell:
    if way == "sync":
        return run_sync_cell(surface, position, plant, word)
    return await arun_cell(surface, position, plant, word)


async def run_alone(surface: Surface, position: Position, plant: str, way: str) -> Cell:
    """The benign run without a guard."""
    key = (surface.name, position.name, plant, way)
    if key not in ALONE_RUNS:
        ALONE_RUNS[key] = await run(surface, position, plant, way, BENIGN)
    return ALONE_RUNS[key]


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells(GUARDED))
async def test_a_cut_word_is_found_nowhere(surface: Surface, position: Position, plant: str, way: str) -> None:
    cell = await run(surface, position, plant, way)
    assert cell.record.seen or not surface.has_words
    assert cell.record.found == []
    assert cell.record.error is None
    assert cell.setup.tool.executed == []
    assert list(calls_in(cell.record.outcomes)) == []
    # A call is judged when it is complete, which here is when the answer is.
    assert cell.harmful
    assert cell.ran_on == ([] if plant != "tool arguments" else cell.harmful)


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells([*GUARDED, BEHIND], OF_EACH_KIND))
async def test_a_benign_answer_is_that_of_the_model_alone(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    guarded = await run(surface, position, plant, way, BENIGN)
    alone = await run_alone(surface, NO_GUARD, plant, way)
    assert guarded.record.error is None
    assert guarded.record.outcomes == alone.record.outcomes
    assert guarded.setup.tool.executed == alone.setup.tool.executed
    assert guarded.setup.speaker.given == alone.setup.speaker.given


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells([NO_GUARD], OF_EACH_KIND))
async def test_without_a_guard_the_word_is_found(surface: Surface, position: Position, plant: str, way: str) -> None:
    cell = await run(surface, position, plant, way)
    assert cell.leaked
    assert cell.harmful
    assert all(answer.given == answer.length for answer in cell.harmful)


def calls_in(value: Any) -> Any:
    """Tool calls in what a surface gave in the end, repaired ones too."""
    if isinstance(value, dict):
        yield from [*(value.get("tool_calls") or []), *(value.get("invalid_tool_calls") or [])]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from calls_in(inner)


STREAMED = {
    *("stream", "chain.stream", "astream_events v2", "stream_events v3", "tracer", "LangSmith tracer"),
    *("agent.stream messages", "graph node, messages"),
}
"""What adds up the chunks of a stream by itself."""
WITHOUT_ANSWERS = {"usage callback", "agent.stream custom", "agent.stream debug"}


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells(GUARDED, ["text"]))
async def test_streams_show_what_passed_and_the_replacement_once_and_all_else_the_replacement_alone(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    if surface.name in WITHOUT_ANSWERS:
        return
    said_there = [text_of(outcome) for outcome in (await run(surface, position, plant, way)).record.outcomes]
    assert said_there
    both = {PASSED + DEFAULT_REPLACEMENT}
    if surface.name in STREAMED:
        assert set(said_there) == both
    elif surface.name in ("callbacks", "agent.astream_events v2"):  # a stream and an answer
        assert set(said_there) == {*both, DEFAULT_REPLACEMENT}
    else:
        assert set(said_there) == {DEFAULT_REPLACEMENT}


def text_of(outcome: Any) -> str:
    """The text of a message, however a surface keeps it."""
    content = (outcome.get("raw") or outcome)["content"] if isinstance(outcome, dict) else outcome
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells(GUARDED, ["text"]))
async def test_what_a_model_says_in_an_error_is_found_nowhere(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    failing = replace(surface, settings=lambda: {**surface.settings(), "failing": True})
    cell = await run(failing, position, plant, way, BENIGN)
    assert cell.record.found == []
    assert isinstance(cell.record.error, GenerationError)


def place_raising(setup: Setup) -> None:
    setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard(on_flag="raise"))


def place_halting(setup: Setup) -> None:
    setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard(on_flag="halt"))


def place_judging_whole_answers(setup: Setup) -> None:
    setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard(), stream_invoke=False)


def leave_not_streaming(setup: Setup) -> None:
    setup.speaker.disable_streaming = True


def place_not_streaming(setup: Setup) -> None:
    leave_not_streaming(setup)
    setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard())


def leave_with_standard_content(setup: Setup) -> None:
    setup.speaker.output_version = "v1"


def place_with_standard_content(setup: Setup) -> None:
    leave_with_standard_content(setup)
    setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard())


def position(place: Any) -> Position:
    return Position(name=place.__name__, kinds=NO_GUARD.kinds, place=place)


SETTINGS = [
    position(place)
    for place in (place_halting, place_judging_whole_answers, place_not_streaming, place_with_standard_content)
]
ALONE = {
    place_halting.__name__: NO_GUARD,
    place_judging_whole_answers.__name__: NO_GUARD,
    place_not_streaming.__name__: position(leave_not_streaming),
    place_with_standard_content.__name__: position(leave_with_standard_content),
}


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells(SETTINGS, ["text"], agents=False))
async def test_a_cut_word_is_found_nowhere_under_any_setting(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    cell = await run(surface, position, plant, way)
    assert cell.record.found == []
    assert cell.record.error is None
    benign = await run(surface, position, plant, way, BENIGN)
    alone = await run_alone(surface, ALONE[position.name], plant, way)
    assert benign.record.outcomes == alone.record.outcomes


@pytest.mark.parametrize(("surface", "position", "plant", "way"), cells([position(place_raising)], ["text"]))
async def test_a_word_is_found_nowhere_where_the_guard_raises(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    cell = await run(surface, position, plant, way)
    assert cell.record.found == []
    assert isinstance(cell.record.error, ContentFlaggedError)
    assert cell.harmful
    assert cell.ran_on == []


def usage_of(word: str, place: Any) -> list[Any]:
    usage = next(surface for surface in SURFACES if surface.name == "usage callback")
    cell = run_sync_cell(usage, position(place), "text", word)
    assert cell.record.error is None
    return cell.record.outcomes


def test_usage_is_counted_once_and_after_a_cut_too() -> None:
    def place(setup: Setup) -> None:
        setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard())

    [benign] = usage_of(BENIGN, place)
    assert benign == {"scripted": {"input_tokens": 5, "output_tokens": 0, "total_tokens": 5}}
    [cut] = usage_of(UNSAFE, place)
    counted = cut["scripted"]
    assert counted["output_tokens"] == 32
    assert counted["total_tokens"] == counted["input_tokens"] + counted["output_tokens"]


def test_the_table_in_the_documentation_is_what_comes_out_here() -> None:
    page = DOCS.read_text(encoding="utf-8")
    if recorded_versions(page) != versions():
        pinned = f"langchain-core=={versions()['langchain-core']}"
        assert pinned not in CONSTRAINTS.read_text(encoding="utf-8").splitlines(), "the page is older than the pins"
        pytest.skip("the table was made with other versions of LangChain: what it compares with may differ here")
    assert replaced(page, block([by_surface(), by_plant()])) == page


def leave_in_pieces(setup: Setup) -> None:
    whole = setup.speaker.script

    def script(messages: Any) -> list[AIMessageChunk]:
        return [piece for chunk in whole(messages) for piece in halves(chunk)]

    setup.speaker.script = script


def place_on_pieces(setup: Setup) -> None:
    leave_in_pieces(setup)
    setup.model = ChatAdaGuard(inner=setup.speaker, guard=scripted_guard())


def halves(chunk: AIMessageChunk) -> list[AIMessageChunk]:
    text = str(chunk.content)
    return [AIMessageChunk(content=half, id=chunk.id) for half in (text[:4], text[4:])] if UNSAFE in text else [chunk]


IN_PIECES = {"stream": "a chunk", "chain.stream": "a piece", "callbacks": "on_llm_new_token"}
"""Surfaces that hand out text piece by piece, and what they call it."""


@pytest.mark.parametrize(
    ("surface", "position", "plant", "way"),
    [cell for cell in cells([position(leave_in_pieces)], ["text"]) if cell.values[0].name in IN_PIECES],
)
async def test_a_word_that_is_streamed_in_pieces_is_found(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    assert IN_PIECES[surface.name] in (await run(surface, position, plant, way)).record.found


@pytest.mark.parametrize(
    ("surface", "position", "plant", "way"), cells([position(place_on_pieces)], ["text"], agents=False)
)
async def test_a_cut_word_that_came_in_pieces_is_found_nowhere(
    surface: Surface, position: Position, plant: str, way: str
) -> None:
    cell = await run(surface, position, plant, way)
    assert cell.record.error is None
    assert cell.record.found == []
